"""I-JEPA: what the encoder sees, what the target encoder learns from, and how it follows."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ssl_methods.method import Batch, Method, Views
from ssl_methods.predictive import ijepa
from ssl_methods.predictive.ijepa import IJEPA, IJEPAConfig, ijepa_loss


@pytest.fixture
def method(build: Callable[..., Method]) -> IJEPA:
    made = build("ijepa", momentum=0.9, momentum_batch=8)
    assert isinstance(made, IJEPA)
    return made.train()


@pytest.fixture
def views(method: IJEPA, blobs: Callable[..., Batch]) -> Views:
    return method.make_views(blobs(4), torch.Generator().manual_seed(0))


def test_loss_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 3.0]]])  # normalised over its channels: -1, 1
    prediction = torch.tensor([[[-0.5, 4.0]]])  # off by 1/2 and 3: 1/8 and 3 - 1/2
    assert ijepa_loss(prediction, tokens).item() == pytest.approx((0.125 + 2.5) / 2, rel=1e-4)


def predictor_sees(method: Method, views: Views) -> Tensor:
    """The context tokens that reach the predictor."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].detach())

    handle = method.get_submodule("predictor").register_forward_pre_hook(catch)
    method.loss(views)
    handle.remove()
    return caught[0]


def test_only_context_pixels_reach_the_encoder(method: IJEPA, views: Views) -> None:
    before = predictor_sees(method, views)
    context = set(views["context"][0].tolist())
    for place in range(64):
        images = views["images"].clone()
        top, left = place // 8 * 4, place % 8 * 4
        images[0, :, top : top + 4, left : left + 4] += 5.0
        after = predictor_sees(method, views | {"images": images})
        assert torch.equal(after, before) == (place not in context)


def test_every_block_is_predicted_by_itself_and_in_its_own_place(method: IJEPA, views: Views) -> None:
    whole = method.loss(views)[0].item()
    single = [method.loss(views | {"targets": views["targets"][:, [block]]})[0].item() for block in range(4)]
    assert whole == pytest.approx(sum(single) / 4, rel=1e-5)
    turned = views | {"targets": views["targets"].flip(1)}
    assert method.loss(turned)[0].item() == pytest.approx(whole, rel=1e-5)


def test_no_gradient_enters_the_target_encoder(method: IJEPA, views: Views) -> None:
    method.loss(views)[0].backward()
    assert all(weight.grad is None for weight in method.target_encoder.parameters())
    moved = [
        name for name, weight in method.encoder.named_parameters() if weight.grad is not None and weight.grad.any()
    ]
    assert "patch_embed.proj.weight" in moved and "norm.weight" in moved


def test_target_encoder_sees_the_whole_image_in_evaluation_mode(method: IJEPA) -> None:
    assert method.encoder.training and not method.target_encoder.training


def test_momentum_follows_the_recursion_by_hand(method: IJEPA) -> None:
    online, target = method.encoder.get_parameter("norm.bias"), method.target_encoder.get_parameter("norm.bias")
    by_hand = target.detach().clone().double()
    for step, (progress, images) in enumerate([(0.0, 8), (0.5, 4), (0.9, 16)]):
        with torch.no_grad():
            online.fill_(float(step + 1))
        method.after_step(progress, images)
        momentum = (0.9 + 0.1 * progress) ** (images / 8)
        by_hand = momentum * by_hand + (1 - momentum) * (step + 1)
    torch.testing.assert_close(target.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_at_the_end_of_the_study_the_target_stands_still(method: IJEPA) -> None:
    before = method.target_encoder.get_parameter("norm.bias").clone()
    with torch.no_grad():
        method.encoder.get_parameter("norm.bias").fill_(9.0)
    method.after_step(1.0, 8)
    assert torch.equal(method.target_encoder.get_parameter("norm.bias"), before)


def test_a_new_site_starts_with_the_encoder_it_received(method: IJEPA) -> None:
    with torch.no_grad():
        for weight in method.encoder.parameters():
            weight.add_(1.0)
    method.start_local_parts()
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(method.target_encoder.state_dict()[name], value)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"target_scale": (0.3, 0.2)}, "target_scale 0.3, 0.2"),
        ({"context_scale": (0.5, 1.2)}, "context_scale 0.5, 1.2"),
        ({"predictor_width": 50}, "predictor_width 50: the width must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(option: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        IJEPAConfig.model_validate(option)


def test_a_target_that_is_not_normalised_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ijepa.functional, "layer_norm", lambda tokens, _: tokens)
    with pytest.raises(AssertionError):
        test_loss_by_hand()


def test_a_plain_l1_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ijepa.functional, "smooth_l1_loss", torch.nn.functional.l1_loss)
    with pytest.raises(AssertionError):
        test_loss_by_hand()
