"""SimMIM: L1 on hidden pixels only, mask units, and that hidden pixels stay hidden."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, build_method
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.reconstruction import simmim
from ssl_methods.reconstruction.simmim import SimMIM, enlarged, mask_unit, simmim_loss

LARGE = ImageConfig(modality="mri", size=64, channels=1)
SWIN = EncoderConfig(name="swin_tiny_patch4_window7_224", patch_size=2, depth=1, width=12)


def slow_loss(prediction: Tensor, images: Tensor, hidden: Tensor) -> float:
    """Image by image and pixel by pixel, in Python numbers."""
    means = []
    for one, truth, mask in zip(prediction.tolist(), images.tolist(), hidden.tolist(), strict=True):
        errors = [
            abs(one[channel][row][column] - truth[channel][row][column])
            for channel in range(len(truth))
            for row in range(len(mask))
            for column in range(len(mask))
            if mask[row][column]
        ]
        means.append(sum(errors) / len(errors))
    return sum(means) / len(means)


def agrees(seed: int) -> bool:
    """Whether value and gradient are the reference's on random images of which half are hidden."""
    draw = torch.Generator().manual_seed(seed)
    prediction, images = torch.randn(2, 3, 2, 4, 4, generator=draw, dtype=torch.float64)
    prediction = prediction.requires_grad_()
    hidden = torch.rand(3, 16, generator=draw).argsort(dim=1).view(3, 4, 4) < 8
    loss = simmim.simmim_loss(prediction, images, hidden).mean()
    (gradient,) = torch.autograd.grad(loss, prediction)
    by_hand = (prediction - images).sign() * hidden[:, None] / (8 * 2 * 3)
    return loss.item() == pytest.approx(slow_loss(prediction, images, hidden), rel=1e-10) and torch.allclose(
        gradient, by_hand.detach(), rtol=1e-10
    )


@given(st.integers(0, 999))
def test_loss_and_gradient_are_the_papers(seed: int) -> None:
    assert agrees(seed)


def test_a_loss_over_all_pixels_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simmim, "simmim_loss", lambda prediction, images, _: (prediction - images).abs().mean())
    assert not agrees(0)


def test_loss_is_float32_at_least() -> None:
    hidden = torch.ones(1, 2, 2, dtype=torch.bool)
    half = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    assert simmim_loss(half, half * 0, hidden).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "stride", "unit"), [(192, 32, 32), (224, 16, 32), (128, 16, 16), (96, 8, 16), (32, 4, 4)]
)
def test_the_default_unit_is_near_the_papers(size: int, stride: int, unit: int) -> None:
    assert mask_unit(None, size, stride) == unit


@pytest.mark.parametrize(
    ("asked", "size", "stride", "message"),
    [
        (
            12,
            64,
            8,
            "method.mask_unit 12 must be a multiple of the encoder's stride, 8 pixels, and tile image.size 64: ",
        ),
        (24, 64, 8, "choose 8 or 16 or 32"),
        (None, 32, 32, "set image.size to 64, or a smaller patch_size"),
        (None, 100, 32, "set image.size to 96"),
    ],
)
def test_units_that_cannot_be_are_refused(asked: int | None, size: int, stride: int, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        mask_unit(asked, size, stride)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def over(encoder: EncoderConfig, image: ImageConfig, **options: object) -> SimMIM:
    config = TypeAdapter(AnyMethodConfig).validate_python({"name": "simmim", **options})
    method = build_method(config, encoder, image, 0)
    assert isinstance(method, SimMIM)
    return method


@pytest.fixture(params=["vit", "swin"])
def method(request: pytest.FixtureRequest, tiny_vit: EncoderConfig) -> SimMIM:
    return over(tiny_vit if request.param == "vit" else SWIN, LARGE)


@pytest.fixture
def views(method: SimMIM) -> Views:
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    codes = torch.arange(3)
    return method.make_views(Batch(images, codes, codes, codes), torch.Generator().manual_seed(0))


def head_sees(method: Method, views: Views) -> Tensor:
    """The encoder's output as it reaches the head."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].detach())

    handle = method.get_submodule("head").register_forward_pre_hook(catch)
    method.loss(views)
    handle.remove()
    return caught[0]


def test_hidden_pixels_do_not_reach_the_encoder_and_visible_ones_do(method: SimMIM, views: Views) -> None:
    before = head_sees(method, views)
    for row, column in torch.cartesian_prod(torch.arange(64 // method.unit), torch.arange(64 // method.unit)).tolist():
        images = views["images"].clone()
        top, left = row * method.unit, column * method.unit
        images[0, :, top : top + method.unit, left : left + method.unit] += 5.0
        after = head_sees(method, views | {"images": images})
        assert torch.equal(after[0], before[0]) == bool(views["hidden"][0, row, column])
        assert torch.equal(after[1:], before[1:])


def test_masks_are_the_papers_share_and_of_each_image_its_own(method: SimMIM, views: Views) -> None:
    units = (64 // method.unit) ** 2
    assert views["hidden"].flatten(1).sum(dim=1).tolist() == [-(-units * 6 // 10)] * 3  # rounded up
    assert not torch.equal(views["hidden"][0], views["hidden"][1])
    assert torch.equal(views["counted"], views["hidden"])


def test_restored_images_keep_what_was_seen(method: SimMIM, views: Views) -> None:
    hidden = enlarged(views["hidden"], 64)[:, None]
    restored = method.restore(views)
    assert torch.equal(restored.masked_fill(hidden, 0), views["images"].masked_fill(hidden, 0))
    assert not torch.isclose(restored, views["images"])[hidden].any()
    assert torch.isnan(method.show(views, 0)[1][1]).equal(hidden[0])


def test_a_small_batch_is_learned(method: SimMIM, views: Views) -> None:
    optimiser = torch.optim.AdamW([weight for weight in method.train().parameters() if weight.requires_grad], 1e-2)
    # Stripes that repeat from unit to unit, and each image's own brightness, which only visible pixels tell.
    stripes = (torch.arange(64) * 2 * torch.pi / method.stride).sin().expand(3, 1, 64, 64)
    images = stripes + torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    losses = []
    for _ in range(40):
        loss, _ = method.loss(views | {"images": images})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_the_mask_token_is_shared_and_trained(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    method = build("simmim")
    assert "mask_token.weight" in method.shared_state()
    method.loss(method.make_views(blobs(2), torch.Generator().manual_seed(0)))[0].backward()
    gradient = method.get_submodule("mask_token").weight.grad
    assert isinstance(gradient, Tensor) and gradient.any()
