"""MAE: masks, targets, and that hidden pixels stay hidden."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_methods.components.token_masks import random_masks
from ssl_methods.method import Batch, Method, Views
from ssl_methods.reconstruction import mae
from ssl_methods.reconstruction.mae import MAE, mae_loss, patchify, unpatchify


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_patchify_puts_every_pixel_where_it_says(batch: int, channels: int, side: int, patch: int) -> None:
    size = side * patch
    images = torch.arange(batch * channels * size**2, dtype=torch.float32).reshape(batch, channels, size, size)
    patches = patchify(images, patch)
    assert patches.shape == (batch, side**2, patch**2 * channels)
    row, column, channel = size - 1, 0, channels - 1  # bottom left pixel
    inside = ((row % patch) * patch + column % patch) * channels + channel
    assert patches[-1, (row // patch) * side + column // patch, inside] == images[-1, channel, row, column]
    assert torch.equal(unpatchify(patches, patch), images)


@given(st.integers(2, 100), st.floats(0.01, 0.99), st.integers(0, 99))
def test_keep_and_masked_share_out_the_patches(patches: int, ratio: float, seed: int) -> None:
    keep, masked = random_masks(torch.rand(3, patches, generator=torch.Generator().manual_seed(seed)), ratio)
    for row in torch.cat([keep, masked], dim=1).tolist():
        assert sorted(row) == list(range(patches))
    assert keep.shape[1] == max(1, min(patches - 1, int(patches * (1 - ratio))))


def test_masks_are_uniform_and_differ_between_images() -> None:
    keep, _ = random_masks(torch.rand(4000, 16, generator=torch.Generator().manual_seed(0)), 0.75)
    share = torch.bincount(keep.flatten(), minlength=16) / 4000
    assert share.sub(0.25).abs().max() < 0.03  # over 4 standard deviations of a binomial share
    assert len({tuple(row) for row in keep.tolist()}) > 1000


def test_loss_on_raw_pixels_is_the_mean_square_over_the_masked_patches_only() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    masked = torch.tensor([[3]])  # bottom right 2 x 2: pixels 10, 11, 14, 15
    prediction = torch.tensor([[[10.0, 11.0, 14.0, 13.0]]])
    assert float(mae_loss(prediction, images, masked, 2, norm_pixels=False)) == pytest.approx(1.0)  # (15-13)^2 / 4


def test_loss_on_normalised_pixels_by_hand() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Mean 12.5, deviations -2.5, -1.5, 1.5, 2.5; unbiased variance 17/3: a prediction of 0 costs 17 / (17/3) / 4.
    loss = mae_loss(torch.zeros(1, 1, 4), images, torch.tensor([[3]]), 2, norm_pixels=True)
    assert loss.item() == pytest.approx(0.75, rel=1e-5)


def decoder_sees(method: Method, views: Views) -> Tensor:
    """The tokens that reach the decoder."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].detach())

    handle = method.get_submodule("decoder").register_forward_pre_hook(catch)
    method.loss(views)
    handle.remove()
    return caught[0]


def change_patch(views: Views, place: int) -> Views:
    """The same views with another value in every pixel of patch ``place`` (4 x 4 pixels, 8 a row) of image 0."""
    images = views["images"].clone()
    top, left = place // 8 * 4, place % 8 * 4
    images[0, :, top : top + 4, left : left + 4] += 5.0
    return views | {"images": images}


def test_hidden_pixels_do_not_reach_the_encoder(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    method = build("mae")
    views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
    before = decoder_sees(method, views)
    for place in views["masked"][0].tolist():
        assert torch.equal(decoder_sees(method, change_patch(views, place)), before)
    for place in views["keep"][0].tolist():
        after = decoder_sees(method, change_patch(views, place))
        assert not torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1])


def test_restored_images_keep_what_was_seen_and_restore_what_was_learned(
    build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    method = build("mae", decoder_depth=1)
    assert isinstance(method, MAE)
    views = method.make_views(blobs(4), torch.Generator().manual_seed(0))

    def hidden_error() -> float:
        return float(mae_loss(
            patchify(method.restore(views), 4).gather(1, views["masked"][:, :, None].expand(-1, -1, 16)),
            views["images"], views["masked"], 4, norm_pixels=False,
        ).mean())  # fmt: skip

    start = hidden_error()
    optimiser = torch.optim.AdamW([w for w in method.parameters() if w.requires_grad], 2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        method.loss(views)[0].backward()
        optimiser.step()
    seen = views["keep"][:, :, None].expand(-1, -1, 16)
    restored, truth = patchify(method.restore(views), 4), patchify(views["images"], 4)
    assert torch.equal(restored.gather(1, seen), truth.gather(1, seen))
    assert hidden_error() < 0.5 * start


def test_the_decoder_is_told_which_place_is_asked(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    method = build("mae")
    views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
    tokens = decoder_sees(method, views)
    decoder = method.get_submodule("decoder")
    straight = decoder(tokens, views["keep"], views["masked"])
    turned = decoder(tokens, views["keep"], views["masked"].flip(1))
    torch.testing.assert_close(turned, straight.flip(1))
    assert straight.std(dim=1).min() > 0


@pytest.mark.parametrize(("option", "value"), [("mask_ratio", 0.5), ("norm_pixels", False)])
def test_options_change_the_loss(
    build: Callable[..., Method], blobs: Callable[..., Batch], option: str, value: float
) -> None:
    losses = []
    for method in (build("mae"), build("mae", **{option: value})):
        views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
        losses.append(method.loss(views)[0].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_loss_over_all_patches_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mae.take
    monkeypatch.setattr(mae, "take", lambda tokens, places: right(tokens, torch.zeros_like(places)))
    with pytest.raises(AssertionError):
        test_loss_on_raw_pixels_is_the_mean_square_over_the_masked_patches_only()


def test_a_biased_variance_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(patches: Tensor) -> tuple[Tensor, Tensor]:
        return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True, correction=0) + 1e-6).sqrt()

    monkeypatch.setattr(mae, "patch_statistics", biased)
    with pytest.raises(AssertionError):
        test_loss_on_normalised_pixels_by_hand()
