"""Crops, turns and flips of a batch as one affine map per image, and the resampling that does them."""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_boxes(
    draws: tuple[Tensor, Tensor, Tensor, Tensor], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random windows: centre x, centre y, width and height, each ``[B]``, as fractions of the side.

    draws: uniform numbers ``[B]`` for area, ratio, left and top. The area is uniform in ``scale``; width
    / height is log-uniform in the part of ``ratio`` that fits this area into the image, so that no draw is
    rejected (torchvision's RandomResizedCrop tries ten times and then takes the middle).
    """
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    lowest = area.clamp(min=ratio[0]).minimum(1 / area).log()
    highest = (1 / area).clamp(max=ratio[1]).maximum(area).log()
    shape = (lowest + (highest - lowest) * draws[1]).exp()
    width, height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    return width / 2 + (1 - width) * draws[2], height / 2 + (1 - height) * draws[3], width, height


def turn(angle: Tensor) -> Tensor:
    """``[B, 2, 2]`` rotations by ``angle`` radians; positive is counter-clockwise, as in ``torch.rot90``."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)


def quarter_turn(count: Tensor) -> Tensor:
    """``[B, 2, 2]`` rotations by ``count`` (0 to 3) right angles, without the rounding of a cosine."""
    return _quarter_turns(count.device)[count].view(-1, 2, 2)


@functools.cache
def _quarter_turns(device: torch.device) -> Tensor:
    """``[4, 4]``: the rows of each map one behind the other."""
    return torch.tensor([[1.0, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]]).to(device)


def flip(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """``[B, 2, 2]`` mirrorings where the boolean ``[B]`` tensors are true."""
    return torch.diag_embed(torch.stack([1.0 - 2.0 * horizontal, 1.0 - 2.0 * vertical], dim=1))


def window(box: tuple[Tensor, Tensor, Tensor, Tensor], *maps: Tensor) -> Tensor:
    """The affine map ``[B, 2, 3]`` from places in the view to places in the image, both in [-1, 1].

    box: what ``crop_boxes`` returns. maps: linear maps ``[B, 2, 2]``; the first turns the window in the
    image, the others turn or mirror the view before it is stretched to the window: no map shears.
    """
    x, y, width, height = box
    linear = maps[0] @ torch.diag_embed(torch.stack([width, height], dim=1))
    for view_map in maps[1:]:
        linear = linear @ view_map
    return torch.cat([linear, torch.stack([2 * x - 1, 2 * y - 1], dim=1)[:, :, None]], dim=2)


def resample(images: Tensor, maps: Tensor, outside: Literal["zeros", "reflection"], size: int | None = None) -> Tensor:
    """Bilinear views of ``images`` ``[B, C, H, W]`` under ``maps`` ``[B, 2, 3]``.

    size: side of the views; None: as the images. A window is never larger than its image: views of the same
    side are enlarged and nothing can alias, so there is no low-pass filter. The small crops of multi-crop show a
    window little larger than themselves.
    """
    height, width = images.shape[-2:] if size is None else (size, size)
    across = (2 * torch.arange(width, device=images.device) + 1) / width - 1
    down = (2 * torch.arange(height, device=images.device) + 1) / height - 1
    # Two planes, x and y, each the sum of a column part and a row part: on a CPU thirty times faster than
    # F.affine_grid, and grid_sample takes planes as they are.
    columns = maps[:, :, 0, None, None] * across
    rows = maps[:, :, 1, None, None] * down[:, None] + maps[:, :, 2, None, None]
    grid = (columns + rows).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)
