"""What stands on an encoder while it is pretrained and is thrown away afterwards."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from foundation.vision_import import Block


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed sine-cosine position embedding ``[side * side, width]`` of a square grid, in row-major order.

    The first half of the channels encodes the column, the second half the row; within a half, sines then
    cosines at frequencies 10000^(-4i/width) (Vaswani et al. 2017, sec. 3.5, in two dimensions as MAE and
    I-JEPA use it). ``width`` must be a multiple of 4.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # [side, width/4]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width/2]
    columns = line[None, :, :].expand(side, side, -1)
    rows = line[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(side * side, width).float()


def projector(widths: Sequence[int]) -> nn.Sequential:
    """An MLP from ``[B, widths[0]]`` to ``[B, widths[-1]]``: Linear, BatchNorm, ReLU, ... Linear, BatchNorm.

    Chen et al. 2020, sec. 2.1, as their code builds it. The last normalisation has no learned scale or shift: the
    loss normalises each vector anyway.
    """
    layers: list[nn.Module] = []
    for step, (before, after) in enumerate(pairwise(widths)):
        last = step == len(widths) - 2
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def check_width(width: int, heads: int, part: str) -> None:
    """ValueError when a transformer's ``width`` cannot carry its heads and the position embedding."""
    if width % heads or width % 4:
        raise ValueError(
            f"{part}_width {width} with {heads} heads: the width must be a multiple of {part}_heads and of 4"
        )


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens ``[B, K, D]`` of ``[B, N, D]`` at ``places`` ``[B, K]``, each picture by its own row."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


class TokenPredictor(nn.Module):
    """A narrow transformer that says from some patch tokens of a picture what stands at other places of it.

    It is MAE's decoder (He et al. 2022, sec. 3) and I-JEPA's predictor (Assran et al. 2023, sec. 3). The mask
    token is an ``nn.Embedding`` and not a bare parameter, so that per-sample gradients (Opacus) come out
    right.
    """

    positions: Tensor

    def __init__(self, width_in: int, width_out: int, side: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Embedding(1, width)
        self.register_buffer("positions", grid_positions(side, width), persistent=False)  # [N, width]
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
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
