"""What scanners, stains and display do to the values of a batch ``[B, C, H, W]``, image by image.

A name that ends in an underscore changes its argument. Parameters are ``[B]`` tensors beside the images.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Optical density of haematoxylin, eosin and DAB in red, green, blue (Ruifrok and Johnston 2001, table 1).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Luma and two chroma axes (YIQ, ITU-R BT.601): grey has no chroma, so hue and saturation leave it alone.
YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
DARKEST = 1 / 255
CACHED = 2**19
BIAS_ORDER = 3
BIAS_TERMS = (BIAS_ORDER + 1) * (BIAS_ORDER + 2) // 2 - 1


def per_image(values: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, 1, 1]``."""
    return values.view(-1, 1, 1, 1)


def stain_(images: Tensor, changes: Tensor) -> None:
    """Scale and shift the three stains of RGB tissue in decadic optical density (Tellez et al. 2018).

    changes: ``[B, 6]``, three relative changes of the amounts, then three additions to them.
    """
    vectors, inverse = _stain_vectors(images.device)
    scaled = inverse @ (torch.diag_embed(1 + changes[:, :3]) @ vectors)
    offset = changes[:, 3:] @ vectors
    density = images.clamp_(min=DARKEST).log10_().flatten(2)
    mixed = torch.baddbmm(-offset[:, :, None], scaled.transpose(1, 2), density)
    torch.pow(10.0, mixed, out=images.view_as(mixed))


@functools.cache
def _stain_vectors(device: torch.device) -> tuple[Tensor, Tensor]:
    """The stains as unit vectors ``[3, 3]``, and the inverse: on a GPU the host would wait for it in every step."""
    vectors = F.normalize(torch.tensor(STAINS), dim=1)
    return vectors.to(device), torch.linalg.inv(vectors).to(device)


def blur_(images: Tensor, sigma: Tensor, largest: float) -> None:
    """Gaussian blur by ``sigma`` pixels, kernels cut at 3 * ``largest`` pixels, edges repeated.

    Sums of shifted images, a few images at a time so that they stay in the processor's cache: on a CPU this is
    1.5 to 2 times as fast as a grouped convolution, which is moreover compiled anew for every number of images.
    """
    radius = max(1, math.ceil(3 * largest))
    sigma = sigma.clamp(min=0.01)  # a draw of 0: the kernel is then 1 in the middle, not 0 / 0
    distance = torch.arange(radius + 1, device=images.device)
    kernel = torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / (2 * kernel.sum(dim=1, keepdim=True) - 1)
    together = max(1, CACHED // images[0].numel()) if images.device.type == "cpu" else len(images)
    for part, weights in zip(torch.split(images, together), torch.split(kernel, together), strict=True):
        pair = torch.empty_like(part)
        for axis, margin in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
            padded, side = F.pad(part, margin, mode="replicate"), part.shape[axis]
            torch.mul(padded.narrow(axis, radius, side), per_image(weights[:, 0]), out=part)
            for step in range(1, radius + 1):
                before, after = padded.narrow(axis, radius - step, side), padded.narrow(axis, radius + step, side)
                part.add_(torch.add(before, after, out=pair).mul_(per_image(weights[:, step])))


@functools.lru_cache(maxsize=16)
def bias_basis(height: int, width: int, device: torch.device) -> Tensor:
    """``[terms, H*W]`` monomials x^i y^j, 1 <= i + j <= 3, each with mean 0; x and y in [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    powers = [(i, n - i) for n in range(1, BIAS_ORDER + 1) for i in range(n + 1)]
    basis = torch.stack([(x**i * y**j).flatten() for i, j in powers])
    return (basis - basis.mean(dim=1, keepdim=True)).to(device)


def bias_field_(images: Tensor, coefficients: Tensor) -> None:
    """Multiply by exp(polynomial), an MR coil's sensitivity (Van Leemput et al. 1999), alike in all channels.

    coefficients: ``[B, terms]`` of ``bias_basis``. The log of the field has mean 0.
    """
    height, width = images.shape[-2:]
    field = (coefficients @ bias_basis(height, width, images.device)).exp_()
    images.mul_(field.view(-1, 1, height, width))


@functools.lru_cache(maxsize=16)
def noise_bank(area: int, device: torch.device) -> Tensor:
    """A fixed table of standard-normal numbers, from which ``noise_at`` cuts planes of ``area`` pixels.

    Cutting is nine times faster than drawing on a CPU, and gives the same field on every device.
    """
    return torch.randn(2**18 + 8 * area, generator=torch.Generator().manual_seed(1955)).to(device)


def noise_at(start: Tensor, shape: torch.Size) -> Tensor:
    """Standard-normal noise ``[B, C, H, W]`` from the fractions ``start`` ``[B]`` of the table."""
    _, channels, height, width = shape
    area = height * width
    bank = noise_bank(area, start.device)
    starts = len(bank) - area + 1
    # One step is more than a plane, so that the channels of an image do not repeat each other.
    steps = torch.arange(channels, device=start.device) * (area + 31)
    offsets = ((start * starts).long()[:, None] + steps) % starts
    return bank.unfold(0, area, 1)[offsets.flatten()].view(shape)


def colour_maps(saturation: Tensor, hue: Tensor) -> Tensor:
    """``[B, 3, 3]`` maps of RGB: chroma times ``saturation``, turned by ``hue`` turns; luma is kept."""
    to_yiq, back = _yiq(saturation.device)
    along, across = saturation * (2 * math.pi * hue).cos(), saturation * (2 * math.pi * hue).sin()
    maps = torch.zeros(len(saturation), 3, 3, device=saturation.device)
    maps[:, 0, 0] = 1
    maps[:, 1, 1], maps[:, 1, 2], maps[:, 2, 1], maps[:, 2, 2] = along, -across, across, along
    return back @ maps @ to_yiq


@functools.cache
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """RGB to YIQ ``[3, 3]``, and back."""
    there = torch.tensor(YIQ)
    return there.to(device), torch.linalg.inv(there).to(device)


def colour(images: Tensor, maps: Tensor) -> Tensor:
    """``images`` ``[B, 3, H, W]`` under ``maps`` ``[B, 3, 3]``."""
    return torch.bmm(maps, images.flatten(2)).view_as(images)


def cut_out(images: Tensor, side: Tensor, x: Tensor, y: Tensor, fill: Tensor) -> Tensor:
    """One square per image set to ``fill`` (broadcast); side and centre in fractions of the image's."""
    height, width = images.shape[-2:]
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    rows = (torch.arange(height, device=images.device) + 0.5) / height
    across = (columns - x[:, None]).abs() < side[:, None] / 2
    down = (rows - y[:, None]).abs() < side[:, None] / 2
    return torch.where(per_plane(down, across), fill, images)


def per_plane(down: Tensor, across: Tensor) -> Tensor:
    """``[B, 1, H, W]``: true where both the row ``[B, H]`` and the column ``[B, W]`` are."""
    return down[:, None, :, None] & across[:, None, None, :]
