"""Tiles: cut where they are asked for, each standardised by itself, refused where an encoder cannot take them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.components.tiles import check_tiles, cut, standardised, tile_unit
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method
from ssl_methods.predictive.jigsaw import tile_side
from ssl_methods.predictive.relative_patch import layout


@given(
    batch=st.integers(1, 3),
    tiles=st.integers(1, 4),
    channels=st.integers(1, 3),
    side=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_tile_is_the_square_at_its_corner(batch: int, tiles: int, channels: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, channels, 9, 9, generator=generator)
    top, left = (torch.randint(9 - side + 1, (batch, tiles), generator=generator) for _ in range(2))
    found = cut(images, top, left, side)
    assert found.shape == (batch, tiles, channels, side, side)
    for i in range(batch):
        for j in range(tiles):
            row, column = int(top[i, j]), int(left[i, j])
            assert torch.equal(found[i, j], images[i, :, row : row + side, column : column + side])


def test_no_tile_tells_its_brightness_or_contrast() -> None:
    tiles = torch.randn(2, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    found = standardised(tiles)
    torch.testing.assert_close(found.mean(dim=(-2, -1)), torch.zeros(2, 3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.square().mean(dim=(-2, -1)), torch.ones(2, 3, 2))
    gain = torch.rand(2, 3, 2, 1, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    torch.testing.assert_close(standardised(tiles * gain + 7 * gain), found, atol=1e-4, rtol=0)


def test_an_empty_tile_stays_empty() -> None:
    faint = 1e-3 * torch.randn(1, 1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert standardised(torch.full((1, 1, 1, 5, 5), -0.7)).abs().max() < 1e-4
    assert standardised(faint).abs().max() < 0.1


@pytest.mark.parametrize(
    ("size", "unit", "tile", "patches"),
    [
        (224, 16, 64, (48, 19, 3)),  # the paper's 75 and 64 pixels
        (224, 1, 63, (56, 22, 3)),
        (128, 8, 32, (32, 12, 2)),
        (64, 8, 16, (16, 6, 1)),
        (32, 4, 8, (8, 3, 1)),
        (28, 4, 8, (4, 3, 1)),
        (32, 16, 0, (0, 0, 0)),
    ],
)
def test_sides_by_hand(size: int, unit: int, tile: int, patches: tuple[int, int, int]) -> None:
    assert tile_side(size, 0.15, unit) == tile
    assert layout(size, unit, 0.4, 0.07) == patches


@given(size=st.integers(16, 300), unit=st.integers(1, 32), gap=st.floats(0.05, 0.5), jitter=st.floats(0.01, 0.5))
def test_tiles_and_patches_fit_and_can_move(size: int, unit: int, gap: float, jitter: float) -> None:
    side = tile_side(size, gap, unit)
    assert side % unit == 0 and 0 <= side < size // 3
    side, between, shift = layout(size, unit, gap, jitter)
    if side:
        assert side % unit == 0
        assert 3 * side + 2 * between + 2 * shift <= size
        assert between > 2 * shift > 0


@pytest.mark.parametrize("method", ["jigsaw", "relative_patch"])
def test_patches_larger_than_a_tile_are_refused(method: str, build: Callable[..., Method]) -> None:
    with pytest.raises(StudyError) as caught:
        build(method, encoder=EncoderConfig(name="vit_tiny_patch16_224", patch_size=16))
    assert str(caught.value) == (
        f"method {method!r} cuts images of 32 pixels into tiles smaller than one patch of 16: set encoder.patch_size "
        "smaller or image.size larger"
    )


@pytest.mark.parametrize("method", ["jigsaw", "relative_patch"])
def test_tiles_too_small_for_a_network_are_refused_and_leave_it_as_it_was(
    method: str, build: Callable[..., Method], image: ImageConfig
) -> None:
    with pytest.raises(StudyError) as caught:
        build(method, encoder=EncoderConfig(name="densenet121"))
    assert str(caught.value).startswith(f"method {method!r} cuts images of 32 pixels into tiles of ")
    assert str(caught.value).endswith("set image.size larger, or choose an encoder with fewer stages")
    encoder = build("simclr", encoder=EncoderConfig(name="resnet10t")).encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    check_tiles(encoder, image, 8, method)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


SWIN = EncoderConfig(name="swin_tiny_patch4_window7_224", width=24, depth=1, heads=1)


@pytest.mark.parametrize("method", ["jigsaw", "relative_patch"])
@pytest.mark.parametrize(("encoder", "unit"), [(EncoderConfig(name="resnet10t"), 1), (SWIN, 4)])
def test_other_kinds_of_encoders(
    method: str, encoder: EncoderConfig, unit: int, build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    built = build(method, encoder=encoder)
    assert tile_unit(built.encoder) == unit
    loss, _ = built.loss(built.make_views(blobs(2), torch.Generator().manual_seed(0)))
    loss.backward()
    assert torch.isfinite(loss)
