"""Rotation: exact turns, right labels, no flip that makes two turns alike."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ssl_methods.predictive.rotation
from foundation.errors import StudyError
from imaging.config import AugmentConfig, ImageConfig
from ssl_methods import build_method
from ssl_methods.components.classification import class_loss
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.predictive.rotation import RotationConfig, all_turns

Build = Callable[..., Method]
Blobs = Callable[..., Batch]


def slow_turn(image: Tensor, turns: int) -> Tensor:
    """Counter-clockwise: the pixel at (row, column) goes to (S - 1 - column, row), once for each turn."""
    for _ in range(turns):
        side = image.shape[-1]
        moved = torch.empty_like(image)
        for row in range(side):
            for column in range(side):
                moved[..., side - 1 - column, row] = image[..., row, column]
        image = moved
    return image


def check_labels(method: Method, batch: Batch) -> None:
    """Every view is its image turned as its label says, where nothing else is done to it."""
    method.augmentation.light = lambda images, generator: images.clone()  # type: ignore[method-assign]
    views = method.make_views(batch, torch.Generator().manual_seed(0))
    assert len(set(views["turns"].flatten().tolist())) > 1
    for turned, turns, image in zip(views["turned"], views["turns"].tolist(), batch.images, strict=True):
        assert len(turned) == len(turns)
        for view, turn in zip(turned, turns, strict=True):
            assert torch.equal(view, slow_turn(image, turn))


def test_a_quarter_turn_by_hand() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert [turned.flatten().tolist() for turned in all_turns(image)[0]] == [
        [1.0, 2.0, 3.0, 4.0],
        [2.0, 4.0, 1.0, 3.0],
        [4.0, 3.0, 2.0, 1.0],
        [3.0, 1.0, 4.0, 2.0],
    ]


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 1, 3, 5, 5)])
def test_turns_move_pixels_of_images_and_of_slices_and_change_none(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    turned = all_turns(images)
    for turns in range(4):
        assert torch.equal(turned[:, turns], slow_turn(images, turns))


@pytest.mark.parametrize("copies", ["all", "one"])
def test_views_are_turned_as_their_labels_say(copies: str, build: Build, blobs: Blobs) -> None:
    check_labels(build("rotation", copies=copies), blobs(8))


def test_all_four_turns_of_one_view_are_shown(build: Build, blobs: Blobs) -> None:
    views = build("rotation").make_views(blobs(3), torch.Generator().manual_seed(0))
    assert views["turns"].tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(views["turned"], all_turns(views["turned"][:, 0]))


MUTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a label off by one": lambda images: all_turns(images).roll(1, dims=1),
    "clockwise": lambda images: all_turns(images)[:, [0, 3, 2, 1]],
    "a flip for a turn": lambda images: torch.stack([images, *all_turns(images)[:, 1:].flip(-1).unbind(1)], dim=1),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_turns_are_caught(mutant: str, build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl_methods.predictive.rotation, "all_turns", MUTANTS[mutant])
    with pytest.raises(AssertionError):
        check_labels(build("rotation"), blobs(3))


def test_one_copy_is_one_turn_drawn_equally_often(build: Build, blobs: Blobs) -> None:
    method = build("rotation", copies="one")
    everything = blobs(8)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(200):
        views = method.make_views(everything, generator)
        assert views["turned"].shape == (8, 1, 1, 32, 32) and views["turns"].shape == (8, 1)
        counts += torch.bincount(views["turns"].flatten(), minlength=4)
    assert (counts / 1600 - 0.25).abs().max() < 0.05


@pytest.mark.parametrize("modality", ["histopathology", "fundus"])
def test_no_view_is_upside_down(modality: str, blobs: Blobs, tiny_vit: EncoderConfig) -> None:
    # Flips only: the whole pixels, unstretched. Both presets flip up-down in half of the views.
    only_flips = AugmentConfig(light_crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    image = ImageConfig.model_validate(
        {"modality": modality, "size": 32, "channels": 1, "augment": only_flips.model_dump()}
    )
    method = build_method(RotationConfig(), tiny_vit, image, 0)
    images = blobs(32).images
    views = method.make_views(Batch(images, *[torch.arange(32)] * 3), torch.Generator().manual_seed(0))
    upright = (images - 0.5) / 0.25
    flipped = 0
    for view, pixels in zip(views["turned"][:, 0], upright, strict=True):
        same = [torch.allclose(view, other, atol=1e-4) for other in (pixels, pixels.flip(-1))]
        assert any(same)
        flipped += same[1]
    assert 4 < flipped < 28


def test_a_flip_that_the_study_asks_for_is_refused(tiny_vit: EncoderConfig) -> None:
    image = ImageConfig(modality="mri", size=32, channels=1, augment=AugmentConfig(vertical_flip=0.5))
    with pytest.raises(StudyError) as caught:
        build_method(RotationConfig(), tiny_vit, image, 0)
    assert str(caught.value) == (
        "image.augment.vertical_flip 0.5: method 'rotation' cannot tell an image upside down from a flipped one; "
        "leave it out"
    )


def test_class_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    losses, right = class_loss(logits, torch.tensor([0, 3]))
    assert losses.tolist() == pytest.approx([math.log(math.e + 3) - 1, math.log(4)], rel=1e-6)
    assert right.item() == 0.5


def test_class_loss_and_gradient_against_a_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 2, 4, generator=generator)).requires_grad_()
    labels = torch.randint(4, (5, 2), generator=generator)
    losses, right = class_loss(logits, labels)
    loss = losses.mean()
    loss.backward()
    total, guessed, gradient = 0.0, 0, torch.zeros(5, 2, 4, dtype=torch.float64)
    for i in range(5):
        for j in range(2):
            weights = [math.exp(value) for value in logits[i, j].tolist()]
            total -= math.log(weights[int(labels[i, j])] / sum(weights)) / 10
            guessed += weights.index(max(weights)) == int(labels[i, j])
            for k, weight in enumerate(weights):
                gradient[i, j, k] = (weight / sum(weights) - float(k == labels[i, j])) / 10
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert right.item() == pytest.approx(guessed / 10)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_mean_over_images_and_turns(build: Build, blobs: Blobs) -> None:
    method = build("rotation").eval()
    views = method.make_views(blobs(3), torch.Generator().manual_seed(0))
    loss, scalars = method.loss(views)
    each = []
    for turned, turns in zip(views["turned"], views["turns"], strict=True):
        for image, turn in zip(turned, turns, strict=True):
            logits = method.get_submodule("head")(method.encoder(image[None]))
            each.append(functional.cross_entropy(logits, turn[None]).item())
    assert loss.item() == pytest.approx(sum(each) / 12, rel=1e-5)
    assert 0 <= float(scalars["accuracy"]) <= 1


def test_up_and_down_are_learned_and_hold_for_images_not_seen(build: Build) -> None:
    """Noise under light from above: only the direction of the light tells the turn."""
    method = build("rotation", copies="one")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)

    def views() -> Views:
        light = torch.linspace(1, 0, 32)[:, None]
        images = (0.6 * light + 0.4 * torch.rand(16, 1, 32, 32, generator=generator)).clamp(0, 1)
        return method.make_views(Batch(images, *[torch.arange(16)] * 3), generator)

    for _ in range(60):
        loss, _ = method.loss(views())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert float(method.loss(views())[1]["accuracy"]) > 0.9


@pytest.mark.parametrize("encoder", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_other_kinds_of_encoders(encoder: str, build: Build, blobs: Blobs) -> None:
    options = {"width": 24, "depth": 1, "heads": 1} if encoder.startswith("swin") else {}
    method = build("rotation", encoder=EncoderConfig.model_validate({"name": encoder, **options}))
    loss, _ = method.loss(method.make_views(blobs(2), torch.Generator().manual_seed(0)))
    loss.backward()
    assert torch.isfinite(loss)


def test_volumes_are_turned_about_their_slice_axis(build: Build, blobs: Blobs) -> None:
    method = build("rotation", dimensions=3)
    views = method.make_views(blobs(2, dimensions=3), torch.Generator().manual_seed(0))
    assert torch.equal(views["turned"][:, 1], slow_turn(views["turned"][:, 0], 1))
    loss, _ = method.loss(views)
    loss.backward()
    assert torch.isfinite(loss)
