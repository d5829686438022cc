"""What an encoder makes of each patch: attention by head, principal components, likeness to one patch.

All of it on the grid of the encoder's last map: the patches of a ViT, the cells of a Swin or convolutional network.
"""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.statistics.intervals import FloatArray
from foundation.vision_import import VisionTransformer
from ssl_methods.encoders.outputs import grid_shape, patch_tokens
from ssl_methods.encoders.volume_encoders import is_volume_vit

LEAST = 4
"""Foreground tokens below which components are fitted on all: three components need as many."""
TAILS = (2, 98)
"""Percentiles of a component that become 0 and 1 of a colour."""
FLAT = 1e-5
"""Share of the largest coordinate below which a component's spread is rounding."""

BoolArray = NDArray[np.bool_]


def last_attention(encoder: nn.Module) -> Any | None:
    """The self-attention of a ViT's last block; None for other encoders, and where it does not join q, k and v."""
    if not (isinstance(encoder, VisionTransformer) or is_volume_vit(encoder)):
        return None
    layer = getattr(cast(Any, encoder).blocks[-1], "attn", None)
    return layer if isinstance(getattr(layer, "qkv", None), nn.Linear) else None


@torch.no_grad()
def attention_received(vit: nn.Module, images: Tensor) -> Tensor:
    """``[B, heads, *grid]``: the mean attention that each patch receives from all patches in the last block.

    Our ViTs have no class token whose attention could be shown, but pool all patches alike: so much does each one weigh
    on average. Sums to 1 over the grid. ValueError where ``last_attention`` finds none.
    """
    layer = last_attention(vit)
    if layer is None:
        raise ValueError(f"{type(vit).__name__} has no attention maps")
    found: list[Tensor] = []
    handle = layer.qkv.register_forward_hook(lambda _module, _given, joined: found.append(joined))
    try:
        patch_tokens(vit, images)
    finally:
        handle.remove()
    # timm and MONAI order the channels alike: q, k, v, each head after head.
    batch, patches, _ = found[0].shape
    query, key, _ = found[0].view(batch, patches, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    for name in ("q_norm", "k_norm"):  # of timm's ViTs that normalise them; mostly an identity
        if isinstance(norm := getattr(layer, name, None), nn.Module):
            query, key = (norm(query), key) if name == "q_norm" else (query, norm(key))
    weights = (query.float() @ key.float().transpose(2, 3) * float(layer.scale)).softmax(dim=3)
    return cast(Tensor, weights.mean(dim=2)).view(batch, -1, *grid_shape(vit))


def token_colours(maps: FloatArray, inside: BoolArray) -> tuple[FloatArray, float]:
    """The first three principal components of tokens as red, green, blue: ``[N, *grid, 3]`` in [0, 1], 0 outside.

    maps ``[N, D, *grid]``; inside ``[N, *grid]``: the tokens that components are fitted on and shown of, all images
    together (Oquab et al. 2024, fig. 1); all of them where they are under 4. A component's sign makes its largest
    coordinate positive; its 2nd to 98th percentile become 0 to 1, and .5 all over where it has no spread. Also the
    share of the tokens' variance that the three hold.
    """
    tokens = np.moveaxis(np.asarray(maps, dtype=np.float64), 1, -1)  # [N, *grid, D]
    kept = inside if inside.sum() >= LEAST else np.ones_like(inside)
    fitted = tokens[kept]
    centred = fitted - fitted.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    top = axes[:3] * np.sign(axes[np.arange(len(axes[:3])), np.abs(axes[:3]).argmax(axis=1)])[:, None]
    points = centred @ top.T
    low, high = np.percentile(points, TAILS, axis=0)
    spread = high - low
    flat = spread <= FLAT * np.abs(fitted).max(initial=0.0)
    colours = np.full((*kept.shape, 3), 0.0)
    shown = np.full((len(points), 3), 0.5)
    shown[:, : len(top)] = np.where(flat, 0.5, (points - low) / np.where(flat, 1.0, spread))
    colours[kept] = shown.clip(0, 1)
    whole = float((singular**2).sum())
    return colours, float((singular[:3] ** 2).sum()) / whole if whole > 0 else 1.0


def likeness(tokens: FloatArray, cell: tuple[int, ...]) -> FloatArray:
    """Cosine similarity ``[*grid]`` of every token to the one at ``cell``; tokens ``[D, *grid]``; 0 for zeros."""
    tokens = np.asarray(tokens, dtype=np.float64)
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=0), 1e-12)
    return np.asarray(np.tensordot(unit[(slice(None), *cell)], unit, axes=1).clip(-1, 1))
