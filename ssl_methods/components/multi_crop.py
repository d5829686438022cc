"""Multi-crop: two large views of each image and several small ones (SwAV: Caron et al. 2020, sec. 3.2)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.errors import StudyError
from imaging.config import AreaRange, ImageConfig
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import features, patch_side
from ssl_methods.method import Batch, Draws, Views, second_images
from ssl_methods.method_config import TwoViewConfig

SMALL_SHARE = 96 / 224
"""Side of a small view as a share of the large ones', in SwAV and DINO."""
CONVOLUTIONAL_STEP = 8


class MultiCropConfig(TwoViewConfig):
    """What every method has that compares large and small crops."""

    large_scale: AreaRange | None = Field(
        default=None,
        description="Area of a large crop; default: the modality preset's, as that is drawn so that a crop keeps the "
        "lesion (the papers: .14 to 1 in SwAV, .4 to 1 in DINO, .3 to 1 in LeJEPA).",
    )
    small_crops: int = Field(
        default=8, ge=0, le=32, description="Small crops of each image, which only the trained encoder sees."
    )
    small_scale: AreaRange = Field(
        default=(0.05, 0.4), description="Area of a small crop; what it leaves out is still in a large one."
    )
    small_size: int | None = Field(
        default=None,
        ge=1,
        description="Side of a small crop in pixels; default: 96/224 of image.size, as in the papers, to the nearest "
        "multiple of the encoder's patch (of 8 for a convolutional encoder).",
    )


def small_side(config: MultiCropConfig, encoder: nn.Module, image: ImageConfig) -> int:
    """Pixels along a side of the small crops; StudyError when the encoder cannot take crops of that side."""
    patched = hasattr(encoder, "patch_embed")
    step = patch_side(encoder) if patched else CONVOLUTIONAL_STEP
    side = config.small_size or max(1, round(SMALL_SHARE * image.size / step)) * step
    if side > image.size:
        raise StudyError(f"method.small_size {side} is over image.size {image.size}: small crops are never larger")
    if patched and side % step:
        fitting = max(1, side // step) * step
        raise StudyError(
            f"method.small_size {side} is no multiple of the encoder's patch of {step}: set {fitting}, say"
        )
    if not patched:
        _check_convolutional(encoder, image, side)
    return side


@torch.no_grad()
def _check_convolutional(encoder: nn.Module, image: ImageConfig, side: int) -> None:
    """StudyError when nothing is left of so small an image behind the last layer (DenseNet under 32 pixels)."""
    training = encoder.training
    weight = next(encoder.parameters())
    try:
        features(encoder.eval(), weight.new_zeros(1, image.channels, side, side))
    except RuntimeError as error:
        raise StudyError(
            f"crops of {side} pixels are too small for this encoder: set method.small_size to {2 * side}, say, "
            f"or method.small_crops to 0"
        ) from error
    finally:
        encoder.train(training)


def draw_crops(
    augmentation: Augmentation, count: int, generator: torch.Generator, config: MultiCropConfig, side: int
) -> Draws:
    """The random choices of ``crops_of`` ``count`` images, crop by crop."""
    sizes = [None, None, *[side] * config.small_crops]
    return {str(number): augmentation.draw(count, generator, size) for number, size in enumerate(sizes)}


def crops_of(augmentation: Augmentation, batch: Batch, draws: Draws, config: MultiCropConfig, side: int) -> Views:
    """``large`` ``[B, 2, C, S, S]`` and, where there are any, ``small`` ``[B, V, C, side, side]``.

    The second large crop is of the partner where the study asks for one, and so is every other small crop.
    """
    of = (batch.images, second_images(batch))
    large = [augmentation.strong(of[number], draws[str(number)], config.large_scale) for number in range(2)]
    views = {"large": torch.stack(large, dim=1)}
    if config.small_crops:
        small = [
            augmentation.strong(of[number % 2], draws[str(2 + number)], config.small_scale, side)
            for number in range(config.small_crops)
        ]
        views["small"] = torch.stack(small, dim=1)
    return views


def by_view(crops: Tensor) -> Tensor:
    """``[B, V, ...]`` -> ``[V * B, ...]``: the crops of the first view, then those of the second, ..."""
    return crops.transpose(0, 1).flatten(0, 1)


def crop_features(encoder: nn.Module, crops: Tensor) -> Tensor:
    """Pooled features ``[V, B, D]`` of crops ``[B, V, C, s, s]``, in one pass: BatchNorm sees them together."""
    count, views = crops.shape[:2]
    return features(encoder, by_view(crops)).reshape(views, count, -1)


def view_features(encoder: nn.Module, views: Views) -> Tensor:
    """Pooled features ``[2 + V, B, D]`` of the large crops and then the small ones, one pass for each size."""
    found = [crop_features(encoder, views[name]) for name in ("large", "small") if name in views]
    return torch.cat(found)
