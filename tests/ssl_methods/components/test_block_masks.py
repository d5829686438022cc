"""I-JEPA's blocks: disjoint, of one size, drawn from the whole grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_methods.components.block_masks import BlockRanges, block_masks, context_length, draw_blocks, target_size

PAPER = BlockRanges(4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 0.25)


def masks(count: int, side: int, ranges: BlockRanges, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return block_masks(draw_blocks(count, side, ranges, generator), ranges.context_kept)


@given(
    side=st.integers(2, 16),
    count=st.integers(1, 6),
    targets=st.integers(1, 6),
    kept=st.floats(0.05, 0.95),
    seed=st.integers(0, 999),
)
def test_context_and_targets_never_meet(side: int, count: int, targets: int, kept: float, seed: int) -> None:
    ranges = BlockRanges(targets, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), kept)
    context, blocks = masks(count, side, ranges, torch.Generator().manual_seed(seed))
    assert blocks.shape[:2] == (count, targets)
    assert 1 <= context.shape[1] <= context_length(side**2, kept)
    for own, others in zip(context.tolist(), blocks.tolist(), strict=True):
        assert len(set(own)) == len(own) and set(own) <= set(range(side**2))
        for block in others:
            assert not set(own) & set(block)


@given(side=st.integers(2, 16), seed=st.integers(0, 999))
def test_every_target_is_a_rectangle_inside_the_grid(side: int, seed: int) -> None:
    _, blocks = masks(3, side, PAPER, torch.Generator().manual_seed(seed))
    sizes = set()
    for block in blocks.flatten(0, 1).tolist():
        rows, columns = sorted({place // side for place in block}), sorted({place % side for place in block})
        assert rows == list(range(rows[0], rows[-1] + 1)) and columns == list(range(columns[0], columns[-1] + 1))
        assert block == [row * side + column for row in rows for column in columns]
        sizes.add((len(rows), len(columns)))
    assert len(sizes) == 1


def test_the_last_row_and_column_are_reached_by_targets_and_context() -> None:
    generator = torch.Generator().manual_seed(0)
    for places in masks(200, 14, PAPER, generator):
        assert (places // 14).max() == 13 and (places % 14).max() == 13
        assert places.min() == 0


def test_targets_are_equally_likely_at_every_place() -> None:
    _, blocks = masks(4000, 8, PAPER, torch.Generator().manual_seed(1))
    corners = torch.bincount(blocks[:, 0, 0], minlength=64)  # top left corners of first targets
    drawn = corners[corners > 0].float() / 4000
    assert (drawn - 1 / len(drawn)).abs().max() < 0.02


def test_area_and_aspect_are_as_published_and_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([target_size(56, PAPER, generator) for _ in range(500)], dtype=torch.float64)
    area, aspect = sizes.prod(dim=1) / 56**2, sizes[:, 0] / sizes[:, 1]
    assert 0.14 < area.min() < 0.16 and 0.19 < area.max() < 0.21
    assert 0.7 < aspect.min() < 0.8 and 1.4 < aspect.max() < 1.56
    assert torch.corrcoef(torch.stack([area, aspect]))[0, 1].abs() < 0.15


@pytest.mark.parametrize(("side", "length"), [(14, 49), (8, 16), (6, 10), (4, 5), (2, 1)])
def test_how_many_context_patches_are_kept(side: int, length: int) -> None:
    context, _ = masks(5, side, PAPER, torch.Generator().manual_seed(0))
    assert context.shape == (5, length)


def test_images_get_masks_of_their_own() -> None:
    context, blocks = masks(8, 8, PAPER, torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in context.tolist()}) > 1
    assert len({tuple(row) for row in blocks.flatten(1).tolist()}) > 1
