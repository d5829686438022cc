"""I-JEPA: image-based joint-embedding predictive architecture (Assran et al. 2023, CVPR)."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from foundation.schedules import linear, momentum_for_batch
from imaging.config import ImageConfig
from ssl_methods.components.block_masks import BlockRanges, block_masks, draw_blocks
from ssl_methods.components.focus import patch_weights
from ssl_methods.components.heads import TokenPredictor, check_width, take, width_and_heads
from ssl_methods.components.momentum import ema_update, follower
from ssl_methods.components.similarity import as_float32
from ssl_methods.components.token_masks import counted
from ssl_methods.encoders.outputs import block_count, feature_dim, grid_shape, grid_side, patch_shape, patch_tokens
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.reconstruction.mae import only_patches


def ijepa_loss(prediction: Tensor, tokens: Tensor, counted: Tensor | None = None) -> Tensor:
    """Of each image the smooth L1 (beta 1) between predictions and layer-normed target tokens, ``[B]``.

    At least in float32. prediction, tokens ``[B, M, D]``. The normalisation has no weights (their code; the paper's
    eq. 1 has the squared distance). counted ``[B, M]`` bool: the tokens that count, in every image at least one;
    None: all.
    """
    tokens = as_float32(tokens)
    target = functional.layer_norm(tokens, tokens.shape[-1:])
    error = functional.smooth_l1_loss(prediction.to(target.dtype), target, reduction="none").mean(dim=2)  # [B, M]
    if counted is None:
        return error.mean(dim=1)
    return (error * counted).sum(dim=1) / counted.sum(dim=1)


class IJEPAConfig(MethodConfig):
    """Prediction of hidden blocks in feature space."""

    name: Literal["ijepa"] = "ijepa"
    targets: int = Field(default=4, ge=1, le=16, description="Blocks to be predicted in each image.")
    target_scale: tuple[float, float] = Field(default=(0.15, 0.2), description="Area of a target block, as a share.")
    target_aspect: tuple[float, float] = Field(default=(0.75, 1.5), description="Height over width of a target block.")
    context_scale: tuple[float, float] = Field(
        default=(0.85, 1.0),
        description="Area of the square context block before the targets are cut out of it.",
    )
    context_kept: float = Field(
        default=0.25,
        gt=0.0,
        lt=1.0,
        description="Share of all patches that the encoder sees: so many are drawn from what the targets "
        "leave of the context block, in every image alike (at least 10; a third of a grid under 30).",
    )
    predictor_width: int | None = Field(
        default=None,
        ge=4,
        description="Channels of the predictor, a multiple of 4 and of predictor_heads; default: half the encoder's, "
        "at least 64 (the paper: 384, its encoders have 768 to 1408).",
    )
    predictor_depth: int | None = Field(
        default=None,
        ge=1,
        description="Blocks of the predictor; default: half of the encoder's (the paper: 6 for 12, 12 for 24 or 32).",
    )
    predictor_heads: int | None = Field(
        default=None,
        ge=1,
        description="Attention heads of the predictor; default: of 32 channels each, as the paper's for a ViT-B.",
    )
    momentum: float = Field(
        default=0.996,
        ge=0.0,
        le=1.0,
        description="Momentum of the target encoder at the study's start, for a step of momentum_batch "
        "images; it rises in a straight line to 1.",
    )
    momentum_batch: int = Field(
        default=32,
        ge=1,
        description="Images of the step that `momentum` is stated for; a step of another size forgets as "
        "much per image. The paper's 2048 needs half a million images to forget: a hospital study of "
        "some thousand steps of 16 to 64 would end with the target near its random start. With 32 it "
        "forgets over about 250 steps of 32, as the paper's does over 250 of its own.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_width(self.predictor_width, self.predictor_heads, "predictor")
        for name in ("target_scale", "target_aspect", "context_scale"):
            low, high = getattr(self, name)
            top = 10.0 if name == "target_aspect" else 1.0
            if not 0.0 < low <= high <= top:
                raise ValueError(f"{name} {low}, {high}: two numbers in (0, {top:g}], the smaller first")
        return self


class IJEPA(Method, name="ijepa"):
    """Predict from part of an image how an encoder that follows slowly sees hidden blocks of it.

    Deviations: blocks are drawn uniformly over all places, size and aspect independently (their code drives
    both with one random number and never reaches the last row or column); each image keeps a fixed number
    of context patches, drawn at random, where their code cuts all to the batch's shortest: so the loss is
    per-sample. Images are the preset's light views, by default crops of .5 to 1 of the area, nearly square, with the
    modality's flips; the paper has .3 to 1, 3/4 to 4/3 and no flip (image.augment sets them).
    """

    Config: ClassVar[type[MethodConfig]] = IJEPAConfig
    config: IJEPAConfig

    def __init__(self, config: IJEPAConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        wide, grid = feature_dim(encoder), grid_shape(encoder)
        width, heads = width_and_heads(wide, len(grid), config.predictor_width, config.predictor_heads)
        depth = config.predictor_depth or max(1, block_count(encoder) // 2)
        self.predictor = TokenPredictor(wide, wide, grid, width=width, depth=depth, heads=heads)
        self.target_encoder = follower(encoder).eval()
        self.ranges = BlockRanges(
            config.targets,
            config.target_scale,
            config.target_aspect,
            config.context_scale,
            config.context_kept,
        )

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the target encoder, which drops no path."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops and the blocks."""
        crops, focused = self.augmentation.draw(count, generator), self.config.focus != "none"
        return {
            "images": crops,
            "blocks": draw_blocks(count, grid_side(self.encoder), self.ranges, generator, focused),
        }

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``images`` ``[B, C, S, S]`` (crop, flip), ``context`` ``[B, K]``, ``targets`` ``[B, T, M]``.

        Where the study focuses also ``counted`` ``[B, T * M]``: the targets' patches that are not empty.
        """
        images = self.augmentation.light(batch.images, draws["images"])
        weights = patch_weights(self.config.focus, images, grid_shape(self.encoder), self.target_encoder)
        context, targets = block_masks(draws["blocks"], self.ranges.context_kept, weights)
        views = {"images": images, "context": context, "targets": targets}
        return views if weights is None else views | {"counted": counted(targets.flatten(1), weights)}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Smooth L1 between predicted and true features of the target blocks; also how far these are spread."""
        prediction, hidden = self._predicted(views)
        spread = hidden.float().flatten(0, 1).std(dim=0).mean()  # falls to 0 when the features collapse
        return ijepa_loss(prediction, hidden, views.get("counted")).mean(), {"target_std": spread}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: smooth L1 of each image's own target blocks."""
        return ijepa_loss(*self._predicted(views), views.get("counted"))

    def _predicted(self, views: Views) -> tuple[Tensor, Tensor]:
        """Predicted and true features of the target blocks, ``[B, T * M, D]`` each."""
        blocks = views["targets"].shape[1]
        asked = views["targets"].flatten(0, 1)  # [B * T, M]
        with torch.no_grad():
            whole = patch_tokens(self.target_encoder, views["images"])  # [B, N, D]
            hidden = take(whole, views["targets"].flatten(1))  # [B, T * M, D]
        tokens = patch_tokens(self.encoder, views["images"], views["context"])  # [B, K, D]
        # Every block is predicted by itself: the predictor runs once per image and block.
        seen = views["context"].repeat_interleave(blocks, dim=0)  # [B * T, K]
        prediction = self.predictor(tokens.repeat_interleave(blocks, dim=0), seen, asked)  # [B * T, M, D]
        return prediction.reshape(hidden.shape), hidden

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """The view, what of it the encoder sees, and the blocks whose features it has to predict."""
        whole, patch = views["images"][image], patch_shape(self.encoder)
        blocks = [("encoder sees", views["context"][image])]
        blocks += [(f"target {number}", block) for number, block in enumerate(views["targets"][image], start=1)]
        return [("view", whole), *((title, only_patches(whole, places, patch)) for title, places in blocks)]

    def after_step(self, progress: float, images: int) -> None:
        """Let the target encoder follow (sec. 3; momentum .996 -> 1 in a straight line, appendix A)."""
        momentum = linear(progress, self.config.momentum, 1.0)
        ema_update(
            self.target_encoder,
            self.encoder,
            momentum_for_batch(momentum, images, self.config.momentum_batch),
        )

    def start_local_parts(self) -> None:
        """Start the target encoder as a copy of the encoder, as the paper does."""
        ema_update(self.target_encoder, self.encoder, 0.0)
