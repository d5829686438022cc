"""What encoders see in a few images, side by side: attention of each head, components of tokens, likeness.

Of a volume the middle slice is shown, and what the encoder, which sees the whole volume, makes of that slice.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.explain.map_images import COLUMNS, colours_png, maps_png, plane_png
from evaluation.explain.token_maps import BoolArray, attention_received, last_attention, likeness, token_colours
from evaluation.statistics.intervals import FloatArray
from imaging.config import ImageConfig
from imaging.reading.planes import middle_slice, shown_plane
from imaging.views.augment import Augmentation
from imaging.views.saliency import crop_saliency, entropy_map
from ssl_methods.encoders.outputs import feature_maps

Kind = Literal["image", "attention", "components", "likeness", "restoration"]
Point = tuple[float, float]
"""x and y as shares of the image's side, from its left upper corner."""
TITLES: dict[Kind, str] = {
    "image": "The image",
    "attention": "Attention of each head of the last block",
    "components": "Patches by their three principal components",
    "likeness": "Likeness of each patch to the marked one",
    "restoration": "What the pretext task restores",
}
EXPLANATIONS: dict[Kind, str] = {
    "image": "A ring marks the place that likeness is asked for. Of a volume: its middle slice.",
    "attention": (
        "How much of all patches’ attention each patch receives, on average: these encoders have no class token whose "
        "attention could be shown. Middle of the scale: an even share; bright: twice as much or, where a patch of this "
        "head receives more, the most; dark: as many times less. A head that looks everywhere alike has one colour."
    ),
    "components": (
        "Red, green and blue are the first three principal components of what the encoder makes of a patch: alike "
        "colours, alike to the encoder. Fitted on all images shown here together, on the patches that show something "
        "(entropy of intensities at least a fifth of the richest patch’s); others are black. Each encoder has its "
        "own components: compare where colours change, not the colours."
    ),
    "likeness": (
        "Cosine similarity of what the encoder makes of each patch to that of the marked one. Dark: the least in this "
        "image; bright: 1, the same. Where even the least is near 1, patches hardly differ to this encoder."
    ),
    "restoration": (
        "A crop as in training, what the encoder sees of it (blue-grey: hidden), and what encoder and decoder make of "
        "that. A blurred restoration is no fault: the task trains the encoder, and the decoder is thrown away."
    ),
}
"""What a person has to know to read each kind; for a page to say once."""
LEAST_TIMES = 2.0
"""Attention is shown from this many times less than an even share to as many times more, or further."""
LEAST_ENTROPY = 0.2
"""Share of the richest patch's entropy below which a patch is background: noise of scanners has more than none."""


@dataclass(frozen=True)
class Shown:
    """An encoder in evaluation mode, on the device to use, and the images as it sees them.

    images: float32 ``[N, *image.shape]`` in [0, 1], the same N images for every encoder.
    """

    name: str
    encoder: nn.Module
    image: ImageConfig
    images: Tensor


@dataclass(frozen=True)
class ImagePanel:
    """One small image. image: its number from 1; encoder: its name, "" for the image itself.

    png: None where this encoder has no such map; the caption says why. alt: for those who do not see it.
    """

    kind: Kind
    image: int
    encoder: str
    caption: str
    alt: str
    png: bytes | None

    @property
    def source(self) -> str:
        """A ``data:`` address, "" where there is no image."""
        return "" if self.png is None else "data:image/png;base64," + base64.b64encode(self.png).decode()


def encoder_panels(shown: Iterable[Shown], points: Sequence[Point]) -> list[ImagePanel]:
    """Panels image by image: itself as the first encoder sees it, then each kind of map, encoder by encoder.

    points: of each image, the place whose patch all others are compared with. Encoders are taken one at a time, so
    that an iterator need not hold all of them. ValueError where images and points differ in number.
    """
    found: list[ImagePanel] = []
    for number, one in enumerate(shown):
        if len(points) != len(one.images):
            raise ValueError(f"{len(one.images)} images, but {len(points)} points")
        if number == 0:
            found += _inputs(one, points)
        found += _maps(one, points)
    return in_order(found)


def in_order(found: Iterable[ImagePanel]) -> list[ImagePanel]:
    """Image by image, then by kind as in TITLES; encoders of a kind stay as they came."""
    order = list(TITLES)
    return sorted(found, key=lambda panel: (panel.image, order.index(panel.kind)))


def salient_points(images: Tensor) -> list[Point]:
    """The middle of the cell of each ``[N, C, (D,) S, S]`` (of its middle slice) about which intensities tell most.

    The cells around it count as much as itself, and beyond the image's edge is nothing: no rim between skin and air.
    """
    planes = _slice(crop_saliency(images), 1)  # [N, h, w]
    planes = functional.avg_pool2d(planes[:, None], 3, stride=1, padding=1)[:, 0]
    rows, columns = np.unravel_index(planes.flatten(1).argmax(dim=1).numpy(), planes.shape[1:])
    height, width = planes.shape[1:]
    return [((x + 0.5) / width, (y + 0.5) / height) for x, y in zip(columns.tolist(), rows.tolist(), strict=True)]


def _inputs(one: Shown, points: Sequence[Point]) -> Iterator[ImagePanel]:
    what = "Middle slice of volume" if one.image.dimensions == 3 else "Image"
    for number, (image, point) in enumerate(zip(one.images, points, strict=True), start=1):
        png = plane_png(shown_plane(image.cpu(), one.image), point)
        alt = f"{what} {number}, with a ring at {_place(point)}."
        yield ImagePanel("image", number, "", f"{what} {number}", alt, png)


def _maps(one: Shown, points: Sequence[Point]) -> Iterator[ImagePanel]:
    outputs = _Outputs(one)
    for number, point in enumerate(points, start=1):
        yield _attention(outputs, number)
        yield _components(outputs, number)
        yield _likeness(outputs, number, point)


class _Outputs:
    """What one encoder makes of the images, each asked for once; axes of the grid: those of the shown slice."""

    def __init__(self, one: Shown) -> None:
        self.name = one.name
        self.encoder = one.encoder
        self._raw = one.images
        device = next(one.encoder.parameters()).device
        self._images = Augmentation(one.image).plain(one.images.to(device))
        with torch.no_grad():
            self._maps = feature_maps(one.encoder, self._images).float().cpu()
        self.maps: FloatArray = _slice(self._maps, 2).numpy()  # [N, D, h, w]

    @cached_property
    def attention(self) -> FloatArray:
        """``[N, heads, h, w]`` as shares of all that is received within the image or volume, times its patches."""
        received = attention_received(self.encoder, self._images).float().cpu()
        return np.asarray(_slice(received, 2).numpy() * received[0, 0].numel())

    @cached_property
    def inside(self) -> BoolArray:
        """``[N, (d,) h, w]``: patches that show something, whatever the encoder makes of them."""
        entropy = entropy_map(self._raw.cpu(), self._maps.shape[2:])
        richest = entropy.flatten(1).amax(dim=1).view(-1, *[1] * (entropy.ndim - 1))
        return np.asarray(((entropy > 0) & (entropy >= LEAST_ENTROPY * richest)).numpy())

    @cached_property
    def colours(self) -> tuple[FloatArray, float]:
        """``[N, h, w, 3]``, and the share of variance in three components."""
        colours, share = token_colours(self._maps.numpy(), self.inside)
        return (colours[:, middle_slice(colours.shape[1])] if colours.ndim == 5 else colours), share


def _slice(maps: Tensor, axis: int) -> Tensor:
    """The middle slice of ``[..., d, h, w]`` where ``axis`` is that of depth; ``[..., h, w]`` as it is."""
    return maps.select(axis, middle_slice(maps.shape[axis])) if maps.ndim == axis + 3 else maps


def _attention(outputs: _Outputs, number: int) -> ImagePanel:
    if last_attention(outputs.encoder) is None:
        caption = "No attention maps: this is no plain vision transformer, whose patches attend to all others."
        return ImagePanel("attention", number, outputs.name, caption, caption, None)
    heads = list(outputs.attention[number - 1])
    most = [float(head.max()) for head in heads]
    ends = [math.log2(max(LEAST_TIMES, top)) for top in most]
    shares = [np.log2(np.maximum(head, 1e-6)) for head in heads]
    png = maps_png(shares, [(-end, end) for end in ends], "magma", None)
    row = f", {COLUMNS} a row" if len(heads) > COLUMNS else ""
    caption = f"{_heads(len(heads))}{row}; the brightest patch receives {_range(most)} times an even share."
    alt = f"Attention that patches of image {number} receive in {outputs.name}. {caption}"
    return ImagePanel("attention", number, outputs.name, caption, alt, png)


def _components(outputs: _Outputs, number: int) -> ImagePanel:
    colours, share = outputs.colours
    caption = f"The three components hold {share:.0%} of the variance of all images’ patches."
    alt = f"Patches of image {number} coloured by principal components in {outputs.name}. {caption}"
    return ImagePanel("components", number, outputs.name, caption, alt, colours_png(colours[number - 1]))


def _likeness(outputs: _Outputs, number: int, point: Point) -> ImagePanel:
    tokens = outputs.maps[number - 1]
    height, width = tokens.shape[1:]
    cell = (min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1))
    values = likeness(tokens, cell)
    png = maps_png([values], [(float(values.min()), 1.0)], "viridis", cell)
    caption = f"Dark: {values.min():.2f}; bright: 1. Median {np.median(values):.2f}."
    alt = f"Likeness of patches of image {number} to the one at {_place(point)} in {outputs.name}. {caption}"
    return ImagePanel("likeness", number, outputs.name, caption, alt, png)


def _heads(count: int) -> str:
    return "The one head" if count == 1 else f"Heads 1 to {count}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _place(point: Point) -> str:
    return f"{point[0]:.0%} of the width and {point[1]:.0%} of the height"
