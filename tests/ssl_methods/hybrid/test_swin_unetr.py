"""Swin UNETR's three tasks: each term against the paper, exact turns, cut-outs within their limit."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.errors import StudyError
from imaging.config import AugmentConfig, ImageConfig
from ssl_methods import build_method
from ssl_methods.encoders.outputs import feature_maps
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.hybrid import swin_unetr
from ssl_methods.hybrid.swin_unetr import SwinUNETRConfig, cut_boxes, inpainting_loss
from ssl_methods.method import Batch, Method, Views

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
WEIGHTS = {"rotation_weight": 2.0, "contrast_weight": 0.5, "inpainting_weight": 3.0}


def slow_rotation(logits: Tensor, turns: list[int]) -> Tensor:
    """Cross-entropy, row by row."""
    rows = [-torch.log(row[turn].exp() / row.exp().sum()) for row, turn in zip(logits, turns, strict=True)]
    return torch.stack(rows).mean()


def slow_contrast(first: Tensor, second: Tensor, temperature: float, patients: list[int]) -> Tensor:
    """NT-Xent over all 2B anchors, both copies of a volume after one another, other patients as negatives."""
    rows = [row / row.square().sum().sqrt() for row in (*first, *second)]
    owners = [*patients, *patients]
    count, losses = len(first), []
    for anchor, row in enumerate(rows):
        other = (anchor + count) % (2 * count)
        positive = torch.exp(row @ rows[other] / temperature)
        negatives = [
            torch.exp(row @ rows[place] / temperature) for place in range(2 * count) if owners[place] != owners[anchor]
        ]
        losses.append(-torch.log(positive / (positive + torch.stack(negatives).sum())))
    return torch.stack(losses).mean()


def slow_loss(method: Any, views: Views) -> Tensor:
    """The whole loss from its formula, the copies encoded one after the other, in float64."""
    logits, codes, distances = [], [], []
    for name in ("first", "second"):
        for volume, seen in zip(views[name], views[f"{name}_cut"], strict=True):
            maps = feature_maps(method.encoder, seen[None])
            pooled = maps[0].flatten(1).mean(dim=1)
            logits.append(method.rotation_head.get_submodule("0").weight @ pooled + method.rotation_head[0].bias)
            codes.append(method.contrast_head[0].weight @ pooled + method.contrast_head[0].bias)
            distances.append((method.decoder(maps)[0] - volume).abs().flatten())
    turns = [*views["turns"][:, 0].tolist(), *views["turns"][:, 1].tolist()]
    count, config = len(views["first"]), method.config
    first, second = torch.stack(codes[:count]), torch.stack(codes[count:])
    return (
        config.rotation_weight * slow_rotation(torch.stack(logits), turns)
        + config.contrast_weight * slow_contrast(first, second, config.temperature, views["patients"].tolist())
        + config.inpainting_weight * torch.cat(distances).sum() / sum(part.numel() for part in distances)
    )


@pytest.fixture
def weighted(build: Build, blobs: Blobs) -> tuple[Method, Views]:
    """The method with three different weights, in float64, and views of three patients with two volumes each."""
    method = build("swin_unetr", dimensions=3, projection=8, decoder_width=16, **WEIGHTS).double()
    views = method.make_views(blobs(6, per_patient=2, dimensions=3), torch.Generator().manual_seed(0))
    return method, {name: view.double() if view.is_floating_point() else view for name, view in views.items()}


def gradients(method: Method, loss: Tensor) -> list[Tensor]:
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(loss, weights, materialize_grads=True))


def test_loss_and_gradient_are_the_papers(weighted: tuple[Method, Views]) -> None:
    method, views = weighted
    loss, expected = method.loss(views)[0], slow_loss(method, views)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for found, slow in zip(gradients(method, loss), gradients(method, expected), strict=True):
        torch.testing.assert_close(found, slow, rtol=1e-7, atol=1e-12)


def squared(restored: Tensor, volumes: Tensor) -> Tensor:
    return (restored - volumes).square().mean()


def interleaved(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return REAL["class_loss"](logits, labels.view(2, -1).T.flatten())


def own_patient_too(first: Tensor, second: Tensor, temperature: float, *_: Tensor) -> tuple[Tensor, Tensor]:
    return REAL["nt_xent"](first, second, temperature)


REAL: dict[str, Any] = {"class_loss": swin_unetr.class_loss, "nt_xent": swin_unetr.nt_xent}


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("inpainting_loss", squared), ("class_loss", interleaved), ("nt_xent", own_patient_too)],
)
def test_a_mutant_is_caught(
    name: str, mutant: Callable[..., Any], weighted: tuple[Method, Views], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares for distances, labels in the order of volumes and not of copies, same-patient negatives."""
    monkeypatch.setattr(swin_unetr, name, mutant)
    with pytest.raises(AssertionError):
        test_loss_and_gradient_are_the_papers(weighted)


def test_the_weights_weigh_the_recorded_terms(weighted: tuple[Method, Views]) -> None:
    method, views = weighted
    loss, scalars = method.loss(views)
    terms = [scalars[name] for name in ("rotation_loss", "contrast_loss", "inpainting_loss")]
    by_hand = sum(weight * term for weight, term in zip(WEIGHTS.values(), terms, strict=True))
    torch.testing.assert_close(loss.detach(), by_hand, rtol=1e-12, atol=0)
    config = SwinUNETRConfig()
    assert (config.rotation_weight, config.contrast_weight, config.inpainting_weight) == (1, 1, 1)
    assert (config.temperature, config.dropped) == (0.5, 0.3)


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("rotation_weight", "rotation_head"),
        ("contrast_weight", "contrast_head"),
        ("inpainting_weight", "decoder"),
    ],
)
def test_a_task_of_weight_0_moves_nothing(weight: str, part: str, build: Build, blobs: Blobs) -> None:
    method = build("swin_unetr", dimensions=3, **{weight: 0.0})
    views = method.make_views(blobs(4, dimensions=3), torch.Generator().manual_seed(0))
    method.loss(views)[0].backward()
    moved = {
        method.part_of(name)
        for name, weight in method.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }
    assert moved == set(method.parts) - {part}


def test_in_painting_by_hand() -> None:
    volumes = torch.arange(16.0).view(2, 1, 2, 2, 2)
    restored = volumes.clone()
    restored[0, 0, 0, 0] += torch.tensor([2.0, -6.0])  # 2 of 16 voxels are wrong
    assert inpainting_loss(restored, volumes).item() == 0.5
    assert inpainting_loss(restored.bfloat16(), volumes.bfloat16()).dtype == torch.float32


def test_turns_are_exact_and_about_the_slice_axis(build: Build, blobs: Blobs) -> None:
    method, batch = build("swin_unetr", dimensions=3), blobs(16, dimensions=3)
    views = method.make_views(batch, torch.Generator().manual_seed(3))
    whole = method.augmentation.light(batch.images, torch.Generator().manual_seed(3))
    for column, name in enumerate(("first", "second")):
        for volume, copy, turn in zip(whole, views[name], views["turns"][:, column].tolist(), strict=True):
            for above, below in zip(volume[0], copy[0], strict=True):  # slice by slice
                turned = above
                for _ in range(turn):
                    turned = turned.T.flip(0)  # a quarter turn counter-clockwise
                assert torch.equal(turned, below)
    assert set(views["turns"].flatten().tolist()) == {0, 1, 2, 3}
    assert (views["turns"][:, 0] != views["turns"][:, 1]).any()


def slow_boxes(row: list[float], most: float, shape: tuple[int, ...]) -> Tensor:
    """Box by box, voxels set one after another."""
    hidden, spent = torch.zeros(shape, dtype=torch.bool), 0
    allowed = int(torch.tensor(row[0]) * most * math.prod(shape))
    for box in range((len(row) - 1) // 6):
        uniform = torch.tensor(row[1 + 6 * box : 7 + 6 * box]).view(3, 2)
        sides = [
            max(1, int((0.05 + 0.2 * chance) * length)) for (chance, _), length in zip(uniform, shape, strict=True)
        ]
        spent += math.prod(sides)
        if spent > allowed:
            break
        starts = [
            int(place * (length - side + 1)) for (_, place), length, side in zip(uniform, shape, sides, strict=True)
        ]
        places = [slice(start, start + side) for start, side in zip(starts, sides, strict=True)]
        hidden[tuple(places)] = True
    return hidden


def test_a_person_sees_the_turn_and_what_is_restored_last(build: Build, blobs: Blobs) -> None:
    method = build("swin_unetr", dimensions=3)
    views = method.make_views(blobs(4, dimensions=3), torch.Generator().manual_seed(0))
    second, cut_second, first, cut_first = method.show(views, 2)
    turns = views["turns"][2].tolist()
    assert (first[0], second[0]) == (f"first copy, {90 * turns[0]} degrees", f"second copy, {90 * turns[1]} degrees")
    assert cut_second[0] == "second copy, cut"
    assert torch.equal(cut_first[1], views["first_cut"][2])


SHAPES = st.tuples(*[st.integers(8, 24)] * 3)


@given(SHAPES, st.floats(0.01, 0.9), st.integers(0, 10**6))
def test_never_more_than_the_share_is_cut_out(shape: tuple[int, int, int], most: float, seed: int) -> None:
    draws = torch.rand(4, 1 + 6 * 40, generator=torch.Generator().manual_seed(seed))
    hidden = cut_boxes(draws, most, torch.Size(shape))
    assert hidden.shape == (4, *shape)
    assert bool((hidden.flatten(1).sum(dim=1) <= most * draws[:, 0] * math.prod(shape) + 1e-3).all())
    assert torch.equal(hidden[0], slow_boxes(draws[0].tolist(), most, shape))


def test_about_half_of_the_limit_is_cut_out(build: Build) -> None:
    method: Any = build("swin_unetr", dimensions=3)
    draws = torch.rand(300, 1 + 6 * method.boxes, generator=torch.Generator().manual_seed(0))
    share = cut_boxes(draws, 0.3, torch.Size((32, 32, 32))).float().mean(dim=(1, 2, 3))
    assert 0.10 < float(share.mean()) < 0.15  # shares are drawn from 0 to .3; boxes overlap
    assert float(share.max()) < 0.3
    assert float((share == 0).float().mean()) < 0.02


def test_copies_are_cut_apart_and_as_they_were_elsewhere(build: Build, blobs: Blobs) -> None:
    method = build("swin_unetr", dimensions=3)
    views = method.make_views(blobs(8, dimensions=3), torch.Generator().manual_seed(0))
    changed = {name: views[name] != views[f"{name}_cut"] for name in ("first", "second")}
    for hidden in changed.values():
        assert all(0 <= float(each.float().mean()) <= 0.3 for each in hidden)
        assert hidden.any()
    assert not torch.equal(changed["first"], changed["second"])
    painted = views["first_cut"][changed["first"]]
    assert abs(float(painted.mean())) < 0.2  # noise in the units of the standardised volume
    assert abs(float(painted.std()) - 1) < 0.2


def test_the_partner_gives_the_second_copy(build: Build, blobs: Blobs) -> None:
    method = build("swin_unetr", dimensions=3, positives="patient")
    batch = blobs(4, per_patient=2, dimensions=3)
    swapped = batch.images[[1, 0, 3, 2]]
    views = method.make_views(replace(batch, partners=swapped), torch.Generator().manual_seed(0))
    assert torch.equal(views["groups"], batch.patients)
    generator = torch.Generator().manual_seed(0)
    for name, column, images in (("first", 0, batch.images), ("second", 1, swapped)):
        whole = method.augmentation.light(images, generator)
        for volume, copy, turn in zip(whole, views[name], views["turns"][:, column].tolist(), strict=True):
            assert torch.equal(torch.rot90(volume, turn, dims=(2, 3)), copy)


def test_the_losses_of_a_swin_fall_and_it_restores(build: Build, blobs: Blobs, tiny_volume_swin: EncoderConfig) -> None:
    method: Any = build("swin_unetr", encoder=tiny_volume_swin, dimensions=3)
    views = method.make_views(blobs(6, dimensions=3), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(method.parameters(), 2e-3)
    seen = []
    for _ in range(20):
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append({name: float(value) for name, value in scalars.items()})
    for name in ("rotation_loss", "contrast_loss", "inpainting_loss"):
        assert seen[-1][name] < 0.7 * seen[0][name]
    assert seen[-1]["accuracy"] > 0.8
    restored, whole = method.restore(views), views["first"]
    assert restored.shape == whole.shape
    hidden = views["first_cut"] != whole
    assert (restored - whole)[hidden].abs().mean() < 0.8 * (views["first_cut"] - whole)[hidden].abs().mean()


def test_images_and_up_down_flips_are_refused(build: Build, volume: ImageConfig) -> None:
    with pytest.raises(StudyError) as caught:
        build("swin_unetr")
    assert "method 'swin_unetr' does not take 2-D images" in str(caught.value)
    flipped = volume.model_copy(update={"augment": AugmentConfig(vertical_flip=0.5)})
    with pytest.raises(StudyError) as caught:
        build_method(SwinUNETRConfig(), EncoderConfig(name="monai_vit", patch_size=4, depth=1, width=48), flipped, 0)
    assert "method 'swin_unetr' cannot tell an image upside down" in str(caught.value)
