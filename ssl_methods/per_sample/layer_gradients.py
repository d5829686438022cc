"""Gradients of single images in a layer's weights, from what the layer saw and the gradient of what it gave.

A layer that maps a sequence a_1 .. a_T to outputs with gradients g_1 .. g_T has the weight gradient sum_t g_t a_t^T: an
image's own where the sequence is the image's own (Goodfellow 2015). A group's sequence is that of all its images,
one after the other, filled up with zeros, which add nothing.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional

from foundation.vision_import import timm

_TIMM: Any = timm.layers
_AT_ONCE = 2**24
"""Numbers of an intermediate result: 64 MiB in float32."""


@dataclass(frozen=True)
class Grouping:
    """Which of B images belong together.

    present ``[P]`` int64: the groups that have images, in any order. row ``[B]``: each image's group, as a place in
    ``present``. slot ``[B]``: its place in the group. share ``[B]``: 1 / images of its group. longest: the most
    images that a group has.
    """

    count: int
    present: Tensor
    row: Tensor
    slot: Tensor
    share: Tensor
    longest: int

    def stacked(self, sequences: Tensor) -> Tensor:
        """``[P, longest * T, D]``, filled up with zeros, of ``[B, T, D]``."""
        if self.longest == 1:
            return sequences
        _, length, width = sequences.shape
        laid = sequences.new_zeros(len(self.present), self.longest, length, width)
        laid[self.row, self.slot] = sequences
        return laid.flatten(1, 2)

    def added(self, own: Tensor) -> Tensor:
        """The sums over the groups' images ``[P, ...]`` of ``[B, ...]``."""
        if self.longest == 1:
            return own
        return own.new_zeros(len(self.present), *own.shape[1:]).index_add_(0, self.row, own)

    def spread(self, values: Tensor) -> Tensor:
        """``[count]`` from ``[P]``: 0 where a group has no image."""
        return values.new_zeros(self.count).index_copy_(0, self.present, values)


def grouping(groups: Tensor, count: int) -> Grouping:
    """The grouping that ``groups`` ``[B]``, numbers in 0 to ``count`` - 1, says; ValueError for other numbers."""
    if groups.ndim != 1 or groups.dtype != torch.int64 or not len(groups):
        raise ValueError(f"groups {list(groups.shape)} {groups.dtype}: one int64 an image")
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise ValueError(f"a group outside 0 to {count - 1}")
    sizes = torch.bincount(groups, minlength=count)
    longest = int(sizes.max())
    if longest == 1:
        own = torch.arange(len(groups), device=groups.device)
        return Grouping(count, groups, own, torch.zeros_like(groups), torch.ones_like(groups), 1)
    present, row = torch.unique(groups, return_inverse=True)
    order = row.argsort(stable=True)
    held = sizes[present]
    slot = torch.empty_like(row)
    slot[order] = torch.arange(len(row), device=row.device) - (held.cumsum(0) - held)[row[order]]
    return Grouping(count, present, row, slot, 1.0 / held[row], longest)


@dataclass
class Call:
    """One call of a layer: its input ``[R, ...]``, detached, and its output, whose gradient is asked for.

    The output is its place in autograd's graph, for an activation may overwrite the tensor.
    """

    input: Tensor
    output: GradientEdge


@dataclass
class Watched:
    """A layer with trained weights: its name in the network, which of its weights are trained, and its calls."""

    name: str
    layer: Any
    trained: frozenset[str]
    calls: list[Call] = field(default_factory=list)

    def named(self, **sums: Tensor) -> dict[str, Tensor]:
        """Of ``weight``, ``bias``, ... those that are trained, by their names in the network and in their shapes."""
        return {
            f"{self.name}.{key}": value.reshape(getattr(self.layer, key).shape)
            for key, value in sums.items()
            if key in self.trained
        }


class LayerGradients(ABC):
    """Single images' gradients in one layer's weights, kept in a form from which norms and sums follow."""

    @abstractmethod
    def squared_norms(self, group: Grouping) -> Tensor:
        """Squared L2 norm of each present group's gradient in this layer, ``[P]``."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """The sum of image gradients times ``weights`` ``[B]``, by the weights' names.

        rows: the images that count, the others may hold anything; None: all.
        """


class Products(LayerGradients):
    """A weight whose gradient is sum_t left_t right_t^T, with or without a bias whose gradient is sum_t left_t."""

    def __init__(self, watched: Watched, left: Tensor, right: Tensor) -> None:
        """left ``[B, T, L]``, right ``[B, T, R]``; the weight has L x R numbers."""
        self._watched, self._left, self._right = watched, left, right

    def squared_norms(self, group: Grouping) -> Tensor:
        """By the shorter way: sum_tu (left_t . left_u)(right_t . right_u), or the gradient itself."""
        found = self._left.new_zeros(len(group.present))
        if "weight" in self._watched.trained:
            left, right = group.stacked(self._left), group.stacked(self._right)
            length, wide, long = left.shape[1], left.shape[2], right.shape[2]
            products = length * (wide + long) < wide * long
            chunk = max(1, _AT_ONCE // (length * length if products else wide * long))
            pieces = zip(torch.split(left, chunk), torch.split(right, chunk), strict=True)
            found = torch.cat([(_by_products if products else _by_gradient)(*piece) for piece in pieces])
        if "bias" in self._watched.trained:
            found = found + _squared(group.added(self._left.sum(dim=1)))
        return found

    def weighted_sum(self, weights: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """One product of matrices."""
        left, right = _chosen(rows, self._left, self._right)
        (weights,) = _chosen(rows, weights)
        left = left * weights[:, None, None]
        sums = {"weight": left.flatten(0, 1).T @ right.flatten(0, 1)}
        if "bias" in self._watched.trained:
            sums["bias"] = left.sum(dim=(0, 1))
        return self._watched.named(**sums)


class Small(LayerGradients):
    """Weights so few that each image's gradient is kept as it is: scales, shifts."""

    def __init__(self, watched: Watched, **own: Tensor) -> None:
        """own: the images' gradients ``[B, ...]`` of ``weight``, ``bias``, ..."""
        self._watched = watched
        self._own = {key: value for key, value in own.items() if key in watched.trained}

    def squared_norms(self, group: Grouping) -> Tensor:
        """The sums of squares."""
        return torch.stack([_squared(group.added(own)) for own in self._own.values()]).sum(dim=0)

    def weighted_sum(self, weights: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """One product of a vector and a matrix."""
        (weights,) = _chosen(rows, weights)
        sums = {key: torch.tensordot(weights, _chosen(rows, own)[0], dims=1) for key, own in self._own.items()}
        return self._watched.named(**sums)


class Convolved(LayerGradients):
    """A convolution whose windows overlap: its weight gradient is a convolution, of each group's images alone."""

    def __init__(self, watched: Watched, calls: list[tuple[Tensor, Tensor]], images: int) -> None:
        """calls: inputs and gradients of the outputs, ``[R, channels, ...]`` each."""
        self._watched = watched
        self._calls = [(_by_image(seen, images), _by_image(slope, images)) for seen, slope in calls]

    def squared_norms(self, group: Grouping) -> Tensor:
        """Group by group: the gradients of all of them together can be larger than memory."""
        members = [(group.row == place).nonzero().squeeze(1) for place in range(len(group.present))]
        summed = (self._sums(None, rows) for rows in members)
        return torch.stack([torch.stack([_squared(sums[None])[0] for sums in each.values()]).sum() for each in summed])

    def weighted_sum(self, weights: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        """The gradient of a batch whose output gradients are weighted."""
        return self._watched.named(**self._sums(weights, rows))

    def _sums(self, weights: Tensor | None, rows: Tensor | None) -> dict[str, Tensor]:
        """Sums over the images ``rows`` (None: all) of what is trained."""
        layer, sums = self._watched.layer, dict[str, Tensor]()
        for seen, slope in self._calls:
            seen, slope = _chosen(rows, seen, slope)
            if weights is not None:
                slope = slope * _chosen(rows, weights)[0].view(-1, *[1] * (slope.ndim - 1))
            seen, slope = seen.flatten(0, 1), slope.flatten(0, 1)
            places = [0, *range(2, slope.ndim)]
            own = {"weight": _convolution_gradient(layer, seen, slope), "bias": slope.sum(dim=places)}
            sums = {key: sums[key] + own[key] if key in sums else own[key] for key in self._watched.trained}
        return sums


def _by_products(left: Tensor, right: Tensor) -> Tensor:
    """``[P]``: squared norms of sum_t left_t right_t^T without forming it; ``[P, T, L]`` and ``[P, T, R]``."""
    products = torch.bmm(left, left.mT).mul_(torch.bmm(right, right.mT))
    return products.sum(dim=(1, 2)).clamp_(min=0)  # rounding may leave a little less than 0


def _by_gradient(left: Tensor, right: Tensor) -> Tensor:
    return _squared(torch.bmm(left.mT, right))


def _squared(own: Tensor) -> Tensor:
    """Squared norms ``[P]`` of ``[P, ...]``."""
    lengths: Tensor = torch.linalg.vector_norm(own.flatten(1), dim=1)
    return lengths.square()


def _chosen(rows: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if rows is None else tuple(tensor[rows] for tensor in tensors)


def _by_image(rows: Tensor, images: int) -> Tensor:
    """``[B, k, ...]`` of ``[B * k, ...]``, where row b * k + j belongs to image b."""
    if len(rows) % images:
        raise ValueError(f"a layer saw {len(rows)} rows of {images} images: rows belong to no image")
    return rows.reshape(images, len(rows) // images, *rows.shape[1:])


def _convolution_gradient(layer: Any, seen: Tensor, slope: Tensor) -> Tensor:
    """The weight gradient of a convolution."""
    axes = len(layer.kernel_size)
    shape = (layer.stride, layer.padding, layer.dilation, False, [0] * axes, layer.groups)
    found = torch.ops.aten.convolution_backward(slope, seen, layer.weight, None, *shape, [False, True, False])
    weight: Tensor = found[1]
    return weight


Slopes = list[tuple[Tensor, Tensor]]
"""Of each call of a layer its input and the gradient of its output."""


def _sequence(calls: Iterable[Tensor], images: int) -> Tensor:
    """``[B, T, D]``: the calls' ``[R, ..., D]`` one after the other."""
    return torch.cat([_by_image(call, images).reshape(images, -1, call.shape[-1]) for call in calls], dim=1)


def _linear(watched: Watched, slopes: Slopes, images: int) -> LayerGradients:
    seen, given = zip(*slopes, strict=True)
    return Products(watched, _sequence(given, images), _sequence(seen, images))


def _embedding(watched: Watched, slopes: Slopes, images: int) -> LayerGradients:
    layer = watched.layer
    if layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq:
        raise ValueError(f"{watched.name}: an embedding with padding, a largest norm or scaled gradients")
    seen, given = zip(*slopes, strict=True)
    places = [functional.one_hot(each, layer.num_embeddings).to(given[0].dtype) for each in seen]
    return Products(watched, _sequence(places, images), _sequence(given, images))


def _convolution(watched: Watched, slopes: Slopes, images: int) -> LayerGradients:
    layer = watched.layer
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(f"{watched.name}: a convolution with padding {layer.padding} of {layer.padding_mode}")
    sides = layer.kernel_size
    apart = tuple(layer.stride) == tuple(sides) and not any(layer.padding) and layer.groups == 1
    if apart and not any(size % side for seen, _ in slopes for size, side in zip(seen.shape[2:], sides, strict=True)):
        seen = [_windows(seen, sides) for seen, _ in slopes]
        given = [slope.flatten(2).mT for _, slope in slopes]
        return Products(watched, _sequence(given, images), _sequence(seen, images))
    return Convolved(watched, slopes, images)


def _windows(seen: Tensor, sides: tuple[int, ...]) -> Tensor:
    """``[R, N, C * prod(sides)]``: the windows, side by side, of ``[R, C, ...]``."""
    if math.prod(sides) == 1:
        return seen.flatten(2).mT
    axes = len(sides)
    for axis, side in enumerate(sides):
        *before, size = seen.shape[: 3 + 2 * axis]
        seen = seen.reshape(*before, size // side, side, *seen.shape[3 + 2 * axis :])
    places, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return seen.permute(0, *places, 1, *inside).flatten(1 + axes).flatten(1, axes)


def _layer_norm(watched: Watched, slopes: Slopes, images: int) -> LayerGradients:
    layer, own = watched.layer, []
    shape = tuple(layer.normalized_shape)
    for seen, slope in slopes:
        scaled = slope * functional.layer_norm(seen, shape, None, None, layer.eps)
        own.append([_by_image(each, images).reshape(images, -1, *shape).sum(dim=1) for each in (scaled, slope)])
    weight, bias = (torch.stack(each).sum(dim=0) for each in zip(*own, strict=True))
    return Small(watched, weight=weight, bias=bias)


def _group_norm(watched: Watched, slopes: Slopes, images: int) -> LayerGradients:
    layer, own = watched.layer, []
    for seen, slope in slopes:
        if isinstance(layer, _TIMM.GroupNormAct):
            slope = _before_activation(watched, seen, slope)
        scaled = slope * functional.group_norm(seen, layer.num_groups, None, None, layer.eps)
        own.append([_by_image(each.flatten(2), images).sum(dim=(1, 3)) for each in (scaled, slope)])
    weight, bias = (torch.stack(each).sum(dim=0) for each in zip(*own, strict=True))
    return Small(watched, weight=weight, bias=bias)


def _before_activation(watched: Watched, seen: Tensor, slope: Tensor) -> Tensor:
    """The gradient of what the activation in a GroupNormAct got, from that of what it gave."""
    layer = watched.layer
    if not isinstance(layer.drop, nn.Identity):
        raise ValueError(f"{watched.name}: a normalisation that drops")
    given = functional.group_norm(seen, layer.num_groups, layer.weight, layer.bias, layer.eps).detach()
    with torch.enable_grad():
        given.requires_grad_()
        (found,) = torch.autograd.grad(layer.act(given.clone()), given, slope)  # a copy, which it may overwrite
    return found


def _layer_scale(watched: Watched, slopes: Slopes, images: int) -> LayerGradients:
    if watched.layer.inplace:
        raise ValueError(f"{watched.name}: a scale that overwrites its input")
    return Small(watched, gamma=_sequence([seen * slope for seen, slope in slopes], images).sum(dim=1))


LAYERS: dict[type[nn.Module], Callable[[Watched, Slopes, int], LayerGradients]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
    _TIMM.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    _TIMM.GroupNormAct: _group_norm,
    _TIMM.LayerScale: _layer_scale,
}
"""The known layers, exactly these classes: a class derived from one may compute something else."""
