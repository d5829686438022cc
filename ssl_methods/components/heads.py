"""What stands on an encoder while it is pretrained and is thrown away afterwards."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from foundation import vision_import
from foundation.errors import StudyError

HEAD_WIDTH = 32
"""Channels of an attention head, as MAE's decoder and I-JEPA's predictor of a ViT-B have."""
LEAST_WIDTH = 64


def grid_positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sine-cosine position embedding ``[N, width]`` of a grid of 2 or 3 sides, in row-major order.

    Every axis has an equal share of the channels, the last axis (columns) the first share; within a share, sines
    then cosines at frequencies 10000^(-i / F), F the frequencies of an axis (Vaswani et al. 2017, sec. 3.5, in
    two dimensions as MAE and I-JEPA use it). ``width`` must be a multiple of twice the axes.
    """
    count = width // (2 * len(grid))  # frequencies of an axis
    frequencies = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    shares = []
    for axis, side in reversed(list(enumerate(grid))):
        angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # [side, F]
        line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, 2F]
        spread = [side if other == axis else 1 for other in range(len(grid))]
        shares.append(line.reshape(*spread, 2 * count).expand(*grid, -1))
    return torch.cat(shares, dim=-1).reshape(math.prod(grid), width).float()


def projector(
    widths: Sequence[int],
    *,
    normalisation: Literal["batch", "none"] = "batch",
    last: Literal["normalised", "linear", "biased"] = "normalised",
) -> nn.Sequential:
    """An MLP from ``[B, widths[0]]`` to ``[B, widths[-1]]``: Linear, normalisation, ReLU, ... and a last Linear.

    normalisation: of the hidden layers. last: what ends it: "normalised" a Linear and a BatchNorm without learned scale
    or shift (Chen et al. 2020, sec. 2.1, as their code builds it: the loss normalises each vector anyway), "linear" a
    Linear without bias, "biased" one with bias. A hidden Linear has a bias unless BatchNorm, which would take it
    away again, follows.
    """
    layers: list[nn.Module] = []
    for before, after in list(pairwise(widths))[:-1]:
        if normalisation == "batch":
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        else:
            layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last == "biased"))
    if last == "normalised":
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


def check_width(width: int | None, heads: int | None, part: str) -> None:
    """ValueError when a transformer's ``width`` cannot carry its heads and the position embedding; None fits."""
    if width is not None and (width % (heads or 1) or width % 4):
        given = f" with {heads} heads" if heads else ""
        raise ValueError(f"{part}_width {width}{given}: the width must be a multiple of {part}_heads and of 4")


def width_and_heads(encoder: int, axes: int, width: int | None, heads: int | None) -> tuple[int, int]:
    """Channels and heads of a transformer over tokens of an encoder of ``encoder`` channels; None: by the encoder.

    The width is then about half the encoder's, at least 64, and a multiple of what heads and position embedding need;
    heads have 32 channels, or the next more that divide the width. axes: of the grid, 2 or 3.
    """
    if width is None:
        step = math.lcm(4, 2 * axes, heads or HEAD_WIDTH)
        width = step * max(-(-LEAST_WIDTH // step), round(encoder / 2 / step))
    return width, heads or next(count for count in range(max(1, width // HEAD_WIDTH), 0, -1) if width % count == 0)


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens ``[B, K, D]`` of ``[B, N, D]`` at ``places`` ``[B, K]``, each image by its own row."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


class TokenPredictor(nn.Module):
    """A narrow transformer that says from some patch tokens of an image what stands at other places of it.

    It is MAE's decoder (He et al. 2022, sec. 3) and I-JEPA's predictor (Assran et al. 2023, sec. 3). The mask
    token is an ``nn.Embedding`` and not a bare parameter, so that per-sample gradients (Opacus) come out
    right.
    """

    positions: Tensor

    def __init__(
        self, width_in: int, width_out: int, grid: Sequence[int], *, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if width % (2 * len(grid)):
            raise StudyError(
                f"a decoder of width {width} cannot place patches on {len(grid)} axes: "
                f"set its width to a multiple of {2 * len(grid)} and of its heads"
            )
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Embedding(1, width)
        self.register_buffer("positions", grid_positions(grid, width), persistent=False)  # [N, width]
        self.blocks = nn.Sequential(*(vision_import.Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, width_out)
        self.apply(_xavier)
        nn.init.normal_(self.mask_token.weight, std=0.02)

    def forward(self, tokens: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        """``[B, M, width_out]`` at ``asked`` ``[B, M]`` from ``[B, K, width_in]`` at ``seen`` ``[B, K]``."""
        known = self.embed(tokens) + self.positions[seen]  # [B, K, width]
        unknown = self.mask_token(torch.zeros_like(asked)) + self.positions[asked]  # [B, M, width]
        # Attention knows places only by their embedding: the order of the sequence is free.
        mixed = self.norm(self.blocks(torch.cat([known, unknown], dim=1)))
        return cast(Tensor, self.out(mixed[:, tokens.shape[1] :]))


def _xavier(module: nn.Module) -> None:
    """Initialise a linear layer as MAE's code does (Glorot uniform, zero bias)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
