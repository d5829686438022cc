"""Sum over patients of gradients clipped patient by patient (DP-SGD), exact and in one backward pass.

Abadi et al. 2016, algorithm 1, needs each patient's gradient only by its norm and within a weighted sum. Both follow
from what every layer saw and from the gradient of what it gave (ssl_methods/per_sample/layer_gradients.py): norms as
in Goodfellow 2015 and Li et al. 2022, the sum from the same tensors as in Bu et al. 2023 ("book-keeping"), without a
second backward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_methods.method import Method, Views
from ssl_methods.per_sample.layer_gradients import LAYERS, Call, Grouping, LayerGradients, Watched, grouping


@dataclass(frozen=True)
class ClippedSum:
    """What ``clipped_sum`` found.

    gradients: of every trained weight, by its name in ``named_parameters``, the sum over the groups of the gradient of
    the group's loss times min(1, clip / its norm). norms ``[G]``: before clipping; 0 of an empty group, inf of one
    whose gradient is not finite. losses ``[G]``: the means of the groups' images' losses; 0 of an empty group.
    """

    gradients: dict[str, Tensor]
    norms: Tensor
    losses: Tensor


def clipped_sum(method: Method, views: Views, groups: Tensor, count: int, clip: float) -> ClippedSum:
    """The sum of the clipped gradients of ``count`` groups of images (patients); weights and their ``grad`` stay.

    views: of B images, as ``method.make_views`` gives them. groups ``[B]`` int64: the group of each image, in 0 to
    ``count`` - 1; a group's loss is the mean of its images' losses. clip: the largest L2 norm of a group's gradient,
    above 0. An empty group adds nothing. A group whose gradient is not finite, or too long for float32, adds nothing
    either: that depends on this patient alone, as the guarantee needs, and one broken image cannot spoil the sum.

    In every layer the rows must be the images' own, as many for each: row b * k + j belongs to image b. Norms come
    from float32 products and are added over the layers in float64. Raises ValueError for a network with a trained
    weight outside the known layers or with BatchNorm; ssl_methods/per_sample/rules.py refuses such studies at load.
    """
    if not clip > 0:
        raise ValueError(f"clip {clip}: a norm above 0")
    layers = trained_layers(method)
    with _full_precision(next(iter(views.values())).device), _watching(layers):
        losses = method.image_losses(views)  # [B]
        group = grouping(groups.to(losses.device), count)
        total = (losses * group.share).sum()
        parts = _parts(layers, total, len(losses))
        del total
        with torch.no_grad():
            return _clipped(layers, parts, group, losses.detach(), clip)


def trained_layers(network: nn.Module) -> list[Watched]:
    """The layers of ``network`` with trained weights; ValueError where one is of no known kind, or for BatchNorm."""
    found: list[Watched] = []
    owners: dict[int, str] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ValueError(f"{name} is a {type(layer).__name__}, which couples the images of a batch")
        own = {key: weight for key, weight in layer.named_parameters(recurse=False) if weight.requires_grad}
        if not own:
            continue
        if type(layer) not in LAYERS:
            raise ValueError(f"{name}.{next(iter(own))} is trained in a {type(layer).__name__}, no known layer")
        for key, weight in own.items():
            if owners.setdefault(id(weight), name) != name:
                raise ValueError(f"{name}.{key} is also a weight of {owners[id(weight)]}")
        found.append(Watched(name, layer, frozenset(own)))
    return found


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """float32 without shortcuts, so that norms and sums belong to the same gradients; no autocast, no TF32."""
    cudnn = torch.backends.cudnn
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        with cudnn.flags(
            enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        ):
            yield


@contextmanager
def _watching(layers: Sequence[Watched]) -> Iterator[None]:
    """Their calls are noted, and no gradient enters their weights; undone afterwards, also on an error."""
    weights = [getattr(watched.layer, key) for watched in layers for key in watched.trained]
    hooks = []
    try:
        for watched in layers:
            hooks.append(watched.layer.register_forward_hook(_noting(watched)))
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights:
            weight.requires_grad_(True)


def _noting(watched: Watched) -> Any:
    """The hook that notes a call of a layer; an output that no gradient would reach becomes a leaf that one does."""

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        given = output if output.requires_grad else output.detach().requires_grad_()
        watched.calls.append(Call(inputs[0].detach(), get_gradient_edge(given)))
        return given

    return note


def _parts(layers: Sequence[Watched], total: Tensor, images: int) -> list[LayerGradients]:
    """One backward pass: what is known of the images' gradients in every layer that had a say."""
    calls = [call for watched in layers for call in watched.calls]
    if not calls or not total.requires_grad:
        raise ValueError("no trained weight has a say in the loss")
    slopes = dict(
        zip(map(id, calls), torch.autograd.grad(total, [call.output for call in calls], allow_unused=True), strict=True)
    )
    parts: list[LayerGradients] = []
    for watched in layers:
        known = [(call.input, slope) for call in watched.calls if (slope := slopes[id(call)]) is not None]
        if known:
            parts.append(LAYERS[type(watched.layer)](watched, known, images))
    return parts


def _clipped(
    layers: Sequence[Watched], parts: Sequence[LayerGradients], group: Grouping, losses: Tensor, clip: float
) -> ClippedSum:
    """Norms, weights and weighted sums."""
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    squared = torch.stack([part.squared_norms(group).to(wide) for part in parts]).sum(dim=0)
    norms = squared.sqrt().to(losses.dtype)  # [P]
    finite = norms.isfinite()
    weights = torch.where(finite, (clip / norms).clamp(max=1.0), 0.0)[group.row]  # [B]
    rows = None if bool(finite.all()) else finite[group.row].nonzero().squeeze(1)
    found: dict[str, Tensor] = {}
    for watched in layers:  # also of weights that had no say
        found |= watched.named(**{key: torch.zeros_like(getattr(watched.layer, key)) for key in watched.trained})
    for part in parts:
        found |= part.weighted_sum(weights, rows)
    return ClippedSum(
        found,
        group.spread(norms.masked_fill(~finite, torch.inf)),
        group.spread(group.added(losses * group.share)),
    )
