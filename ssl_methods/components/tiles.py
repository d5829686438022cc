"""Square tiles cut out of images, for the tasks that ask how tiles lie to each other."""

import math

import torch
from torch import Tensor, nn

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import features, patch_side

_FLATTEST = 0.05
"""Smallest deviation divided by, of the image's own: an empty tile stays flat and is not blown up to noise."""


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """``[B, V, C, side, side]``: V tiles of each image ``[B, C, S, S]``, upper left corners ``[B, V]``."""
    inside = torch.arange(side, device=images.device)
    rows = (top[:, :, None] + inside)[:, :, :, None]  # [B, V, side, 1]
    columns = (left[:, :, None] + inside)[:, :, None, :]  # [B, V, 1, side]
    own = torch.arange(len(images), device=images.device)[:, None, None, None]
    # Indices on both sides of a slice put the indexed axes first: [B, V, side, side, C].
    return images[own, :, rows, columns].movedim(-1, 2).contiguous()


def standardised(tiles: Tensor) -> Tensor:
    """Each channel of each tile ``[B, V, C, s, s]`` at mean 0 and deviation 1.

    Brightness and contrast run on from a tile to the next one, and colours shift towards the edge of a lens: with
    them a network finds a tile's place without looking at what it shows (Noroozi and Favaro 2016, sec. 3.3).
    """
    mean = tiles.mean(dim=(-2, -1), keepdim=True)
    spread = tiles.std(dim=(-2, -1), keepdim=True, correction=0)
    return (tiles - mean) / spread.clamp(min=_FLATTEST)


def mosaic(tiles: Tensor, places: Tensor) -> Tensor:
    """Up to nine tiles ``[V, C, s, s]`` laid 3 x 3 at ``places`` ``[V]`` (row by row), for a person to look at.

    ``[C, 3 s + 4, 3 s + 4]``: NaN between tiles and where none lies.
    """
    side = tiles.shape[-1]
    laid = tiles.new_full((tiles.shape[1], 3 * side + 4, 3 * side + 4), torch.nan)
    for tile, place in zip(tiles, places.tolist(), strict=True):
        top, left = (side + 2) * (place // 3), (side + 2) * (place % 3)
        laid[:, top : top + side, left : left + side] = tile
    return laid


def tile_unit(encoder: nn.Module) -> int:
    """A tile's side must be a multiple of this: the patch of a ViT or Swin; 1 for other encoders."""
    return patch_side(encoder) if hasattr(encoder, "patch_embed") else 1


def check_tiles(encoder: nn.Module, image: ImageConfig, side: int, method: str) -> None:
    """StudyError when the encoder gives no features of tiles of ``side`` pixels (0: not one patch fits)."""
    if side == 0:
        raise StudyError(
            f"method {method!r} cuts images of {image.size} pixels into tiles smaller than one patch of "
            f"{tile_unit(encoder)}: set encoder.patch_size smaller or image.size larger"
        )
    was_training = encoder.training
    try:
        with torch.no_grad():
            features(encoder.eval(), torch.zeros(1, image.channels, side, side))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise StudyError(
            f"method {method!r} cuts images of {image.size} pixels into tiles of {side}, which this encoder cannot "
            f"take: set image.size larger, or choose an encoder with fewer stages"
        ) from error
    finally:
        encoder.train(was_training)


def multiple_below(length: float, unit: int) -> int:
    """The largest multiple of ``unit`` that is no longer than ``length``; 0 where there is none."""
    return math.floor(length / unit + 1e-9) * unit
