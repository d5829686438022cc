"""Swin UNETR's three pretext tasks for volumes (Tang et al. 2022, CVPR): turns, contrast and in-painting."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.components.classification import class_loss
from ssl_methods.components.heads import projector
from ssl_methods.contrastive.simclr import nt_xent, positive_groups
from ssl_methods.encoders.decoders import image_decoder
from ssl_methods.encoders.outputs import feature_dim, feature_maps
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig
from ssl_methods.predictive.rotation import TURNS, all_turns, upright_augmentation

SIDES = (0.05, 0.25)
"""Least and greatest side of a cut-out box, as a share of the volume's (their code)."""
MEAN_BOX = (sum(SIDES) / 2) ** 3
"""A box's share of the voxels, on average."""


def cut_boxes(draws: Tensor, most: float, shape: Sequence[int]) -> Tensor:
    """Which voxels ``[B, D, H, W]`` are cut out: boxes as long as together they have no more than a drawn share.

    draws ``[B, 1 + 6 K]``, uniform on the CPU: the share, up to ``most`` of the voxels, then of each of K boxes its
    sides and its place along depth, height and width. What boxes have in common counts twice, so that at most the
    share is cut out. Boxes lie inside the volume; their sides are whole voxels, rounded down and at least 1.
    """
    boxes = draws[:, 1:].reshape(len(draws), -1, len(shape), 2)  # [B, K, 3, 2]
    lengths = torch.tensor(shape)
    low, high = SIDES
    sides = ((low + (high - low) * boxes[..., 0]) * lengths).long().clamp(min=1)  # [B, K, 3]
    starts = (boxes[..., 1] * (lengths - sides + 1)).long()
    allowed = (most * draws[:, 0] * math.prod(shape)).long()
    kept = sides.prod(dim=2).cumsum(dim=1) <= allowed[:, None]  # [B, K]: the first ones
    lines = []
    for axis, length in enumerate(shape):
        place = torch.arange(length)
        start, side = starts[..., axis, None], sides[..., axis, None]
        lines.append(((place >= start) & (place < start + side)).float())  # [B, K, length]
    depth, height, width = lines
    planes = torch.einsum("bk,bkd,bkh->bdhk", kept.float(), depth, height).flatten(1, 2)  # [B, D * H, K]
    return (planes @ width).view(-1, *shape) > 0.5  # [B, D, H, W], from the number of boxes


def inpainting_loss(restored: Tensor, volumes: Tensor) -> Tensor:
    """Mean absolute error over all voxels of ``[N, C, D, H, W]``, cut out or not, at least in float32."""
    volumes = volumes if volumes.dtype == torch.float64 else volumes.float()
    return (restored.to(volumes.dtype) - volumes).abs().mean()


class SwinUNETRConfig(TwoViewConfig):
    """Turns, contrast and in-painting of volumes at once."""

    name: Literal["swin_unetr"] = "swin_unetr"
    rotation_weight: float = Field(default=1.0, ge=0.0, description="Factor on the loss of the guessed turn.")
    contrast_weight: float = Field(default=1.0, ge=0.0, description="Factor on the contrastive loss.")
    inpainting_weight: float = Field(default=1.0, ge=0.0, description="Factor on the loss of the restored voxels.")
    temperature: float = Field(default=0.5, gt=0.0, le=10.0, description="Divides the similarities, as in their code.")
    dropped: float = Field(
        default=0.3,
        gt=0.0,
        le=0.9,
        description="Largest share of the voxels that is cut out of a copy; each copy draws its share from 0 to this.",
    )
    projection: int = Field(default=512, ge=2, description="Channels in which copies are compared, as in their code.")
    decoder_width: int = Field(
        default=64,
        ge=16,
        description="Channels of the decoder's first stage; each further stage has half of them, and at least 16. "
        "Theirs has half of the encoder's and costs more than a small encoder.",
    )


class SwinUNETR(Method, name="swin_unetr"):
    """Two copies of a sub-volume, each turned and partly cut out: tell the turn, find the other copy, restore.

    A copy is turned about the slice axis by 0, 90, 180 or 270 degrees, drawn for itself; then boxes of noise of the
    standardised volume's mean and deviation are put over at most 30 % of it. The loss is L = w1 L_rotation +
    w2 L_contrast + w3 L_inpainting (all weights 1). In-painting is an L1 distance over the whole
    sub-volume, as in the paper's formula and code, not over what was cut out alone.

    Deviations. Heads see pooled features, which is what a study exports; their code reads two single tokens of the last
    map. Cut-out parts are not also swapped with those of another volume, as their code does: an image would then
    hold parts of another patient. The share cut out never exceeds the limit; theirs may by one box. Same-patient
    pairs are not each other's negatives. As they have one sub-volume for both copies, intensities are left alone; the
    sub-volume is the light view (image.augment.light_crop_scale) at the study's size (theirs: 96 voxels a side). The
    preset's up-down flip is left out (``upright_augmentation``). Their AdamW runs at 4e-4 with few volumes in a
    batch; the default training.learning_rate, 3.2e-3, is that for a step of 32.
    """

    Config: ClassVar[type[MethodConfig]] = SwinUNETRConfig
    config: SwinUNETRConfig

    def __init__(self, config: SwinUNETRConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.augmentation = upright_augmentation(image, config.name, self.augmentation.focus)
        width = feature_dim(encoder)
        self.rotation_head = projector([width, TURNS], normalisation="none", last="biased")
        self.contrast_head = projector([width, config.projection], normalisation="none", last="biased")
        self.decoder = image_decoder(encoder, image, config.decoder_width)
        self.boxes = math.ceil(config.dropped / MEAN_BOX)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The sub-volumes, the turns ``[B, 2]``, and the boxes and the noise of each copy."""
        draws: Draws = {name: self.augmentation.draw(count, generator) for name in ("first", "second")}
        draws["turns"] = torch.randint(TURNS, (count, 2), generator=generator)
        for name in ("first", "second"):
            chance = torch.rand(count, 1 + 6 * self.boxes, generator=generator)
            draws[f"{name}_hidden"] = cut_boxes(chance, self.config.dropped, self.image.shape[1:])
            draws[f"{name}_noise"] = torch.randn(count, *self.image.shape, generator=generator)
        return draws

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``first``, ``second`` ``[B, C, D, S, S]``: the turned copies; ``first_cut``, ``second_cut``: with boxes.

        ``turns`` ``[B, 2]``, 0 to 3, of both; ``patients``, ``groups`` ``[B]`` as SimCLR has them. The second copy is
        of the partner's sub-volume where the study asks for one.
        """
        whole = self.augmentation.light(batch.images, draws["first"])
        other = whole if batch.partners is None else self.augmentation.light(batch.partners, draws["second"])
        turns, places = draws["turns"], torch.arange(len(whole), device=whole.device)
        views: Views = {}
        for number, (name, copy) in enumerate({"first": whole, "second": other}.items()):
            views[name] = all_turns(copy)[places, turns[:, number]]
            hidden = draws[f"{name}_hidden"][:, None]
            views[f"{name}_cut"] = torch.where(hidden, draws[f"{name}_noise"], views[name])
        groups = positive_groups(batch, self.config.positives)
        return views | {"turns": turns, "patients": batch.patients, "groups": groups}

    def output(self, pooled: Tensor) -> Tensor:
        """What copies are compared by."""
        return cast(Tensor, self.contrast_head(pooled))

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; also its three terms, the share of guessed turns and of anchors left out."""
        config = self.config
        maps = feature_maps(self.encoder, torch.cat([views["first_cut"], views["second_cut"]]))  # [2B, D, *grid]
        pooled = maps.flatten(2).mean(dim=2)  # [2B, D]
        rotations, right = class_loss(self.rotation_head(pooled), views["turns"].T.flatten())
        rotation = rotations.mean()
        first, second = self.contrast_head(pooled).chunk(2)  # [B, projection] each
        contrast, counted = nt_xent(first, second, config.temperature, views["patients"], views["groups"])
        inpainting = inpainting_loss(self.decoder(maps), torch.cat([views["first"], views["second"]]))
        loss = (
            config.rotation_weight * rotation
            + config.contrast_weight * contrast
            + config.inpainting_weight * inpainting
        )
        terms = {"rotation_loss": rotation, "contrast_loss": contrast, "inpainting_loss": inpainting}
        scalars = {name: term.detach() for name, term in terms.items()}
        return loss, scalars | {"accuracy": right, "anchors_left_out": 1.0 - counted.float().mean()}

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """Both copies as they were and with their boxes; the first last, as its restoration follows."""
        shown = []
        for column, name in ((1, "second"), (0, "first")):
            turned = f"{name} copy, {90 * int(views['turns'][image, column])} degrees"
            shown += [(turned, views[name][image]), (f"{name} copy, cut", views[f"{name}_cut"][image])]
        return shown

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The first copies ``[B, C, D, S, S]`` as restored from what was left of them, as the encoder sees them."""
        restored = cast(Tensor, self.decoder(feature_maps(self.encoder, views["first_cut"])))
        return restored.to(views["first"].dtype)
