"""Heads: shapes, what they keep in their state, what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

from ssl_methods.components.heads import TokenPredictor, check_width, grid_positions, projector, take


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
