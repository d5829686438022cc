"""Heads: shapes, what they keep in their state, what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ssl_methods.components.heads import (
    TokenPredictor,
    check_width,
    grid_positions,
    projector,
    take,
    width_and_heads,
)
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Method


def test_projector_has_the_papers_layers_and_standardises_its_output() -> None:
    head = projector([6, 5, 5, 4])
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    out = head(torch.randn(200, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=0), torch.ones(4), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"last": "linear"}, ["Linear", "BatchNorm1d", "ReLU", "Linear"]),
        ({"last": "biased"}, ["Linear", "BatchNorm1d", "ReLU", "Linear b"]),
        ({"normalisation": "none", "last": "biased"}, ["Linear b", "ReLU", "Linear b"]),
    ],
)
def test_a_projector_ends_as_asked_and_has_a_bias_where_nothing_takes_it_away(
    options: dict[str, Any], expected: list[str]
) -> None:
    def said(layer: nn.Module) -> str:
        return type(layer).__name__ + " b" * (isinstance(layer, nn.Linear) and layer.bias is not None)

    assert [said(layer) for layer in projector([6, 5, 4], **options)] == expected


def test_grid_positions_tell_rows_from_columns_and_all_places_apart() -> None:
    table = grid_positions((5, 5), 16)
    assert table.shape == (25, 16)
    assert torch.equal(table[0 * 5 + 3, :8], table[4 * 5 + 3, :8])  # same column
    assert torch.equal(table[2 * 5 + 0, 8:], table[2 * 5 + 4, 8:])  # same row
    assert torch.cdist(table, table).add(torch.eye(25)).min() > 0.1


def test_take_picks_each_images_own_places() -> None:
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    assert take(tokens, torch.tensor([[2], [0]])).tolist() == [[[4.0, 5.0]], [[6.0, 7.0]]]


def test_the_predictors_fixed_positions_are_not_sent() -> None:
    state = TokenPredictor(8, 6, (4, 4), width=12, depth=1, heads=3).state_dict()
    assert "mask_token.weight" in state and not any("positions" in key for key in state)


def test_a_width_that_does_not_fit_is_refused() -> None:
    check_width(12, 3, "decoder")
    with pytest.raises(ValueError, match="decoder_width 18 with 3 heads: the width must be a multiple"):
        check_width(18, 3, "decoder")
    check_width(None, 5, "decoder")
    with pytest.raises(ValueError, match="decoder_width 18: the width must be a multiple"):
        check_width(18, None, "decoder")


@pytest.mark.parametrize(
    ("encoder", "axes", "width", "heads", "expected"),
    [
        (192, 2, None, None, (96, 3)), (384, 2, None, None, (192, 6)), (768, 2, None, None, (384, 12)),
        (24, 2, None, None, (64, 2)), (192, 3, None, None, (96, 3)), (384, 3, None, None, (192, 6)),
        (192, 2, None, 3, (96, 3)), (192, 2, None, 5, (100, 5)), (192, 3, None, 5, (120, 5)),
        (192, 2, 24, None, (24, 1)), (192, 2, 72, None, (72, 2)), (192, 2, 64, 4, (64, 4)),
    ],
)  # fmt: skip
def test_width_and_heads_grow_with_the_encoder(
    encoder: int, axes: int, width: int | None, heads: int | None, expected: tuple[int, int]
) -> None:
    assert width_and_heads(encoder, axes, width, heads) == expected


@pytest.mark.parametrize(
    ("name", "part", "wide", "depth", "expected"),
    [
        ("mae", "decoder", 192, 6, (96, 2)), ("mae", "decoder", 96, 1, (64, 1)), ("mae", "decoder", 384, 12, (192, 4)),
        ("ijepa", "predictor", 192, 6, (96, 3)), ("ijepa", "predictor", 384, 1, (192, 1)),
    ],
)  # fmt: skip
def test_a_decoder_is_part_of_its_encoders_size(
    name: str, part: str, wide: int, depth: int, expected: tuple[int, int], build: Callable[..., Method]
) -> None:
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=depth, width=wide, heads=3)
    predictor = build(name, encoder=encoder).get_submodule(part)
    assert isinstance(predictor, TokenPredictor)
    assert (predictor.norm.normalized_shape[0], len(predictor.blocks)) == expected
