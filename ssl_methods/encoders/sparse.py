"""A convolutional encoder on the visible patches of images alone: sparse convolution by masking (Tian et al. 2023).

A sparse convolution computes at visible places only, and from visible places only, so that the pattern of the mask is
the same at every stage and does not fade from layer to layer as it does where an ordinary convolution fills holes from
their borders (SparK, sec. 3.1). Here an ordinary encoder computes everywhere, and hidden places are set back to zero
after every layer that could fill them; visible places then have the values of the sparse computation. What a
normalisation sees is cut out beforehand, the visible places side by side: its statistics are of them alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foundation import vision_import
from foundation.errors import StudyError

_ACROSS = (_BatchNorm, nn.GroupNorm)
"""Normalisations over places, of a batch or of an image."""
_ALONE = (nn.LayerNorm, nn.Linear)
"""Layers that look at one place at a time, but give another value than zero where they see zeros."""
_SEEN_AS_ZEROS = (vision_import.timm.layers.grn.GlobalResponseNorm,)
"""Normalisations by a sum over all places, to which zeros add nothing."""


class Visible:
    """Which patches of square images are seen, on maps of any side.

    A map of the grid's side, or of a multiple of it, has a whole number of places for each patch. On a coarser map,
    which the paper does not have, a place stands for several patches, and all count as visible: such a map is computed
    densely, from finer ones whose hidden places are zero. ValueError for other sides.
    """

    def __init__(self, keep: Tensor, grid: int) -> None:
        """keep ``[B, K]`` int64: the patches seen, row-major on ``grid`` x ``grid``, as many of each image."""
        self._keep, self._grid = keep, grid
        hidden = torch.ones(len(keep), grid**2, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
        self._hidden = hidden.view(-1, 1, grid, grid)
        self._at_side: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    def hidden(self, side: int) -> Tensor | None:
        """Hidden places ``[B, 1, side, side]`` bool; None where the map is coarser than the grid and hides nothing."""
        factor = self._factor(side)
        if factor and side not in self._at_side:
            wide = self._hidden.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
            self._at_side[side] = wide
        return self._at_side.get(side)

    def only(self, maps: Tensor) -> Tensor:
        """Maps ``[B, D, s, s]`` with zeros in hidden places."""
        hidden = self.hidden(maps.shape[-1])
        return maps if hidden is None else maps.masked_fill(hidden, 0.0)

    def gathered(self, maps: Tensor) -> Tensor:
        """The visible places ``[B, D, n, 1]`` of maps ``[B, D, s, s]``, patch by patch; s as ``hidden`` says."""
        width, side = maps.shape[1:3]
        places = maps.permute(0, 2, 3, 1).reshape(-1, width)  # [B * s * s, D]
        seen = places.index_select(0, self._places(side))  # [B * n, D]
        return seen.view(len(maps), -1, width).transpose(1, 2).unsqueeze(3)

    def spread(self, values: Tensor, side: int) -> Tensor:
        """The inverse of ``gathered``: ``[B, D, side, side]``, with zeros in hidden places."""
        rows = values.squeeze(3).transpose(1, 2).flatten(0, 1)  # [B * n, D]
        nothing = rows.new_zeros(len(values) * side**2, rows.shape[1])
        laid = nothing.index_copy(0, self._places(side), rows)
        return laid.view(len(values), side, side, -1).permute(0, 3, 1, 2)

    def _factor(self, side: int) -> int:
        """Places along a patch's side; 0 where the map is coarser than the grid."""
        if side >= self._grid and side % self._grid:
            raise ValueError(f"a map of {side} x {side} places has no whole number of them for {self._grid} patches")
        return side // self._grid

    def _places(self, side: int) -> Tensor:
        """Of all places of the batch ``[B * side * side]`` the numbers of the visible ones, image by image."""
        if side not in self._rows:
            factor, count, device = self._factor(side), len(self._keep), self._keep.device
            laid = torch.arange(side**2, device=device).view(self._grid, factor, self._grid, factor)
            by_patch = laid.permute(0, 2, 1, 3).reshape(self._grid**2, factor**2)
            own = by_patch[self._keep].flatten(1)  # [B, n]
            self._rows[side] = (own + side**2 * torch.arange(count, device=device)[:, None]).flatten()
        return self._rows[side]


def require_sparse(encoder: nn.Module) -> None:
    """StudyError where a normalisation of the encoder has no sparse form here."""
    for name, module in encoder.named_modules():
        computes = not any(module.children()) or any(True for _ in module.parameters(recurse=False))
        known = isinstance(module, (*_ACROSS, *_ALONE, *_SEEN_AS_ZEROS))
        if computes and not known and "norm" in type(module).__name__.lower():
            raise StudyError(
                f"the encoder's {name} is a {type(module).__name__}, which is not taught to look at visible places "
                f"alone: choose an encoder with BatchNorm, GroupNorm or LayerNorm, for example 'resnet10t'"
            )


def sparse_maps(encoder: nn.Module, images: Tensor, visible: Visible) -> list[Tensor]:
    """The map ``[B, D, s, s]`` that each stage ends with, the finest first, of the visible patches; the rest is zero.

    images ``[B, C, S, S]``. The last map is the one that is pooled, with what some networks put after their last stage.
    encoder: convolutional, a plain timm model. It has hooks while this runs and none afterwards, also on an error; its
    weights are not touched, but BatchNorm's running statistics follow visible places. What a squeeze-and-excitation
    layer averages are all places, hidden ones as zeros. A compiled loss calls this as it is, uncompiled.
    """
    if torch.compiler.is_compiling():  # what is compiled would not see that hooks have come and gone
        plainly: Callable[..., list[Tensor]] = cast(Any, torch.compiler).disable(_hooked_maps)
        return plainly(encoder, images, visible)
    return _hooked_maps(encoder, images, visible)


def _hooked_maps(encoder: nn.Module, images: Tensor, visible: Visible) -> list[Tensor]:
    with _sparse(encoder, visible):
        last, stages = cast(Any, encoder).forward_intermediates(visible.only(images), norm=True)
        return [*stages[:-1], last]


@contextmanager
def _sparse(encoder: nn.Module, visible: Visible) -> Iterator[None]:
    """The encoder's layers see and give visible places only."""
    hooks = []
    try:
        for module in encoder.modules():
            if isinstance(module, _ACROSS):
                sides: list[int] = []
                hooks.append(module.register_forward_pre_hook(partial(_cut_out, visible, sides)))
                hooks.append(module.register_forward_hook(partial(_put_back, visible, sides)))
            elif isinstance(module, (nn.Conv2d, *_ALONE)) or "pool" in type(module).__name__.lower():
                hooks.append(module.register_forward_hook(partial(_clear, visible)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _cut_out(visible: Visible, sides: list[int], _: nn.Module, inputs: tuple[Any, ...]) -> Any:
    maps = cast(Tensor, inputs[0])
    sides.append(maps.shape[-1])
    return None if visible.hidden(maps.shape[-1]) is None else (visible.gathered(maps), *inputs[1:])


def _put_back(visible: Visible, sides: list[int], _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Any:
    side = sides.pop()
    return None if visible.hidden(side) is None else visible.spread(output, side)


def _clear(visible: Visible, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Any:
    """Zeros in hidden places of ``[B, D, s, s]``; of layers that have channels last, of ``[B, s, s, D]``."""
    if output.ndim != 4:
        return None
    last = isinstance(module, _ALONE) and "2d" not in type(module).__name__.lower()
    if not last:
        return visible.only(output)
    return visible.only(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
