"""Segmentation: a linear layer on frozen patch tokens, and a UNETR-style decoder trained with the whole encoder.

Both minimise cross-entropy + soft Dice of the structures (MONAI's DiceCELoss, Dice over the whole batch as in nnU-Net,
Isensee et al. 2021, so that small structures count and an image without any teaches as well) with AdamW, cosine and
warm-up. The number of epochs is fixed: no image outside the training patients is read, so neither test nor validation
can steer it. A structure that no training image has is never found.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.protocols.finetune import optimiser_for, settle
from evaluation.protocols.steps import batches, set_rate, take_step
from evaluation.protocols.trial import Trial
from foundation.randomness import seeded_torch, stream_seed, torch_generator
from foundation.schedules import warmup_cosine
from imaging.views.augment import Augmentation
from imaging.views.presets import Preset
from ssl_methods.encoders.pyramid import PyramidDecoder, feature_pyramid, pyramid_shapes

IMAGES_AT_ONCE = 128

Images = NDArray[Any]
Mask = NDArray[np.uint8]
Maps = Sequence[Tensor]
Logits = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Places in the training set ``[B]`` to logits ``[B, K, ...]`` and masks ``[B, ...]``, both on the device."""


class LinearHead(nn.Module):
    """Standardisation, dropout and a 1x1 convolution that starts at zero, for each map; their logits are summed.

    The sum, at the image's sides, is what one convolution gives of all maps side by side (hypercolumns, Hariharan et
    al. 2015). The standardisation is a BatchNorm whose statistics are those of all training images, as their maps are
    known, in place of running ones; its scale and shift would change nothing before a convolution.
    """

    def __init__(self, known: Maps, classes: int, dropout: float) -> None:
        """known: the training images' maps ``[N, D, *grid]``."""
        super().__init__()
        convolution = nn.Conv2d if known[0].ndim == 4 else nn.Conv3d
        self.statistics = [_statistics(maps) for maps in known]
        self.dropout = nn.Dropout(dropout)
        self.convolutions = nn.ModuleList(convolution(maps.shape[1], classes, 1) for maps in known)
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, maps: Maps, sides: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *sides]`` of maps ``[B, D, *grid]``."""
        parts = []
        for given, convolution, (spread, centre) in zip(maps, self.convolutions, self.statistics, strict=True):
            standard = (given - centre.to(given)) / spread.to(given)
            parts.append(enlarged(convolution(self.dropout(standard)), sides))
        return torch.stack(parts).sum(0)


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation and mean ``[1, D, 1, 1]`` of each channel over images and places; a constant one's deviation is 1."""
    spread, centre = torch.std_mean(maps, dim=(0, *range(2, maps.ndim)), correction=0, keepdim=True)
    return torch.where(spread > 1e-6, spread, torch.ones_like(spread)), centre


class Segmenter(nn.Module):
    """An encoder and a decoder over its pyramid."""

    def __init__(self, encoder: nn.Module, trial: Trial) -> None:
        super().__init__()
        self.encoder = encoder
        shapes = pyramid_shapes(encoder, trial.image)
        self.decoder = PyramidDecoder(shapes, trial.image, trial.classes, trial.config.segmentation.width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K, *sides]`` of standardised images ``[B, *image.shape]``."""
        return cast(Tensor, self.decoder(images, feature_pyramid(self.encoder, images)))


def linear_masks(train: tuple[Images, Mask], test: Images, trial: Trial) -> Mask:
    """Masks of the test images by a linear layer on the frozen encoder's maps (``linear_maps``).

    train: images ``[N, *image.shape]`` in [0, 1] and masks ``[N, S, S]`` (or ``[N, D, S, S]``) of ``trial.classes``
    values, 0 the background. The maps of the training images, unaltered, are computed once.
    """
    seed, device, settings = stream_seed(trial.seed, "linear segmentation"), trial.device, trial.config.segmentation
    with seeded_torch(seed, "dropout"):
        encoder = trial.encoder(0.0).to(device).eval()
        known = [torch.cat(parts) for parts in zip(*_frozen_maps(encoder, train[0], trial), strict=True)]
        head, masks = LinearHead(known, trial.classes, settings.dropout).to(device), torch.from_numpy(train[1])

        def logits(chosen: Tensor) -> tuple[Tensor, Tensor]:
            truth = masks[chosen].to(device)
            return head([maps[chosen].to(device) for maps in known], truth.shape[1:]), truth

        groups = [
            {
                "params": [weight],
                "scale": 1.0,
                "weight_decay": settings.weight_decay if weight.ndim > 1 else 0.0,
            }
            for weight in head.parameters()
        ]
        fit(head, torch.optim.AdamW(groups, lr=settings.learning_rate), logits, len(masks), trial, seed)
    head.eval()
    found = _frozen_maps(encoder, test, trial)
    return _likeliest((head([maps.to(device) for maps in part], test.shape[2:]) for part in found), train[1])


def decoder_masks(train: tuple[Images, Mask], test: Images, trial: Trial) -> Mask:
    """As ``linear_masks``, by a decoder over the encoder's pyramid; all weights of the encoder are trained with it.

    Lower layers learn more slowly (``segmentation.layer_decay``). Training images and their masks are flipped
    together, as often as the modality's augmentation preset flips.
    """
    seed, device = stream_seed(trial.seed, "decoder segmentation"), trial.device
    settings, augmentation = trial.config.segmentation, Augmentation(trial.image)
    shown, masks = (torch.from_numpy(part) for part in train)
    views = torch_generator(seed, "views")
    with seeded_torch(seed, "decoder"):
        network = Segmenter(trial.encoder(0.0), trial).to(device)

        def logits(chosen: Tensor) -> tuple[Tensor, Tensor]:
            images, truth = flipped(shown[chosen], masks[chosen], augmentation.preset, views)
            return network(augmentation.plain(images.to(device))), truth.to(device)

        optimiser = optimiser_for(network, settings.learning_rate, settings.layer_decay, settings.weight_decay)
        fit(network, optimiser, logits, len(shown), trial, seed)
    settle(network.encoder, shown, trial)
    network.eval()
    return _likeliest((network(images) for images in _standardised(test, trial)), train[1])


def fit(
    network: nn.Module, optimiser: torch.optim.Optimizer, logits: Logits, count: int, trial: Trial, seed: int
) -> None:
    """Train in place on ``count`` images; of a parameter group ``scale`` is its multiple of the rate."""
    from monai.losses.dice import DiceCELoss  # seconds to import, and most tasks are none of segmentation

    settings = trial.config.segmentation
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    network.train()
    for progress, chosen in batches(count, settings.epochs, settings.batch, seed):
        set_rate(optimiser, warmup_cosine(progress, settings.learning_rate, warmup=settings.warmup))
        found, truth = logits(chosen)
        take_step(network, optimiser, loss_of(found, truth[:, None].long()))


def flipped(images: Tensor, masks: Tensor, preset: Preset, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, ...]`` and masks ``[B, ...]``, some mirrored left-right and some up-down, both alike."""
    draws = torch.rand(2, len(masks), generator=generator)
    for axis, share, draw in ((-1, preset.horizontal_flip, draws[0]), (-2, preset.vertical_flip, draws[1])):
        mirrored = draw < share
        images = torch.where(_per_image(mirrored, images), images.flip(axis), images)
        masks = torch.where(_per_image(mirrored, masks), masks.flip(axis), masks)
    return images, masks


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def enlarged(logits: Tensor, sides: Sequence[int]) -> Tensor:
    """Logits ``[B, K, *grid]`` at the image's sides, by straight-line interpolation."""
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    return functional.interpolate(logits, tuple(sides), mode=mode, align_corners=False)


def linear_maps(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """What a linear layer sees of images: a ViT's last patch tokens on their grid, of others each stage's map.

    In words that hold for both: of the pyramid the last map on each grid. Grids finer than a quarter of the image are
    left out, as in feature pyramids for detection (Lin et al. 2017): they take the most memory and say the least. The
    last map alone has one place for 32 x 32 pixels in most convolutional networks and in Swin.
    """
    *finer, last = feature_pyramid(encoder, images)
    on_grid = {tuple(maps.shape[2:]): maps for maps in finer if 4 * maps.shape[-1] <= images.shape[-1]}
    return list((on_grid | {tuple(last.shape[2:]): last}).values())


def _standardised(images: Images, trial: Trial) -> Iterator[Tensor]:
    """The images, standardised, on the device, as many at once as memory bears."""
    augmentation = Augmentation(trial.image)
    for part in torch.split(torch.from_numpy(images), trial.image.at_once(IMAGES_AT_ONCE)):
        yield augmentation.plain(part.to(trial.device))


def _frozen_maps(encoder: nn.Module, images: Images, trial: Trial) -> Iterator[Maps]:
    """Maps ``[B, D, *grid]`` of the images, without gradient, on the CPU."""
    for part in _standardised(images, trial):
        with torch.no_grad():
            maps = [found.float().cpu() for found in linear_maps(encoder, part)]
        yield maps


@torch.no_grad()
def _likeliest(logits: Iterator[Tensor], known: Mask) -> Mask:
    """Of every pixel ``[N, *sides]`` the class of greatest logit among those that the training masks have."""
    present = np.unique(known)
    places = np.concatenate([part[:, present.tolist()].argmax(1).to(torch.uint8).cpu().numpy() for part in logits])
    return np.asarray(present[places], dtype=np.uint8)
