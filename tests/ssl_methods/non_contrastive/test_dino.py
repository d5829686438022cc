"""DINO: its pairs, its centre, its teacher and its schedules."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foundation.schedules import cosine
from foundation.tensor_files import load_tensors, save_tensors
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.non_contrastive import dino
from ssl_methods.non_contrastive.dino import DINO, Centre, UnitPrototypes, dino_loss, moved_centre

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
SMALL = {"outputs": 24, "head_width": 16, "bottleneck": 8, "small_crops": 2, "momentum": 0.9, "momentum_batch": 4}
SMALL |= {"teacher_temperature_start": 0.04, "teacher_temperature": 0.07}  # the paper's
ALONE = SMALL | {"head_normalisation": "none"}
"""With a head that takes each image by itself, so that a loop over them is the same."""


@pytest.fixture
def method(build: Build) -> DINO:
    made = build("dino", **SMALL)
    assert isinstance(made, DINO)
    return made.train()


def views_of(method: Method, batch: Batch, seed: int = 0) -> Views:
    return method.make_views(batch, torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, centre: Tensor, warm: float, cold: float) -> float:
    """Eq. 2-3 as loops over views and images."""
    total, pairs = 0.0, 0
    for first in range(len(teacher)):
        for second in range(len(student)):
            if first == second:
                continue
            pairs += 1
            for image in range(teacher.shape[1]):
                weights = ((teacher[first, image] - centre) / cold).exp()
                logits = student[second, image] / warm
                total -= float((weights / weights.sum() * (logits - logits.exp().sum().log())).sum()) / teacher.shape[1]
    return total / pairs


def outputs(views: int, seed: int) -> Tensor:
    return torch.randn(views, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(centre: Tensor) -> tuple[float, float]:
    student, teacher = outputs(4, 0), outputs(2, 1)
    return float(dino_loss(student, teacher, centre, 0.5, 0.3)), reference(student, teacher, centre, 0.5, 0.3)


def test_loss_is_the_papers() -> None:
    ours, theirs = both(outputs(1, 2)[0, 0])
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_view_compared_with_itself_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = lambda rows, columns, **_: torch.zeros(rows, columns, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(torch, "eye", nobody)
    ours, theirs = both(outputs(1, 2)[0, 0])
    assert ours != pytest.approx(theirs, rel=1e-3)


def direct(method: DINO, views: Views, centre: Tensor) -> float:
    """The method's loss from its networks' outputs, by the loops above."""

    def outputs_of(encoder: nn.Module, head: nn.Module, prototypes: nn.Module, names: list[str]) -> Tensor:
        crops = [views[name][:, place] for name in names for place in range(views[name].shape[1])]
        rows = [head.layers(features(encoder, crop)) for crop in crops]
        directions = [nn.functional.normalize(each, dim=1) for each in rows]
        return torch.stack([each @ nn.functional.normalize(prototypes.weight, dim=1).T for each in directions]).double()

    with torch.no_grad():
        student = outputs_of(method.encoder, method.head, method.prototypes, ["large", "small"])
        teacher = outputs_of(*(method.teacher[part] for part in ("encoder", "head", "prototypes")), ["large"])
    return reference(student, teacher, centre.double(), 0.1, float(method.temperature))


@pytest.fixture
def alone(build: Build) -> DINO:
    made = build("dino", **ALONE)
    assert isinstance(made, DINO)
    return made.train()


def two_steps(method: DINO, blobs: Blobs) -> tuple[float, float]:
    """The loss of a second step, and what it should be with the centre that the first step left."""
    for seed in (1, 2):
        method.before_step(0.0)
        views = views_of(method, blobs(4), seed)
        centre = method.centre.value.clone()
        loss, _ = method.loss(views)
        expected = direct(method, views, centre)
        method.after_step(0.0, 4)
    return loss.item(), expected


def test_a_step_uses_the_centre_from_before_it(alone: DINO, blobs: Blobs) -> None:
    found, expected = two_steps(alone, blobs)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_centre_updated_before_the_loss_is_noticed(
    alone: DINO, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = dino.teacher_targets

    def early(teacher: Tensor, centre: Tensor, temperature: Tensor) -> Tensor:
        return right(teacher, moved_centre(centre, teacher.mean(dim=(0, 1)), 0.9), temperature)

    monkeypatch.setattr(dino, "teacher_targets", early)
    found, expected = two_steps(alone, blobs)
    assert found != pytest.approx(expected, rel=1e-4)


def test_the_centre_moves_by_the_mean_of_the_steps_batches() -> None:
    centre = Centre(2)
    for mean in ([1.0, 0.0], [3.0, 2.0]):  # two batches of one step
        centre.observe(torch.tensor(mean))
    assert centre.value.tolist() == [0.0, 0.0]
    centre.update(0.9)
    torch.testing.assert_close(centre.value, torch.tensor([0.2, 0.1]))
    centre.update(0.9)  # nothing was observed since
    torch.testing.assert_close(centre.value, torch.tensor([0.2, 0.1]))
    centre.observe(torch.tensor([100.0, 100.0]))  # a step that was broken off
    centre.forget()
    centre.observe(torch.tensor([0.0, 0.0]))
    centre.update(0.5)
    torch.testing.assert_close(centre.value, torch.tensor([0.1, 0.05]))


def test_the_centre_survives_rounds_and_restarts_and_is_not_sent(build: Build, blobs: Blobs, tmp_path: Path) -> None:
    first = build("dino", **SMALL).train()
    for _ in range(3):
        first.loss(views_of(first, blobs(4)))
        first.after_step(0.1, 4)
    assert not any(key.startswith(("centre", "teacher")) for key in first.shared_state())
    save_tensors(tmp_path / "local.safetensors", first.local_state())
    received = {key: value + 0.01 for key, value in first.shared_state().items()}  # an average over sites

    def second_round(local: dict[str, Tensor]) -> tuple[float, Tensor]:
        method = build("dino", **SMALL).train()
        assert isinstance(method, DINO)
        method.load_state_dict({**method.state_dict(), **local, **received})
        return method.loss(views_of(method, blobs(4), 1))[0].item(), method.centre.value

    stored, _ = load_tensors(tmp_path / "local.safetensors")
    kept, centre = second_round(stored)
    assert torch.equal(centre, first.state_dict()["centre.value"]) and centre.abs().max() > 0
    assert kept == second_round(first.local_state())[0]
    without = {key: value for key, value in stored.items() if not key.startswith("centre")}
    assert second_round(without)[0] != pytest.approx(kept, rel=1e-5)


def test_momentum_and_centre_follow_the_recursion_by_hand(method: DINO) -> None:
    online, target = method.head.layers[0].bias, method.teacher["head"].layers[0].bias
    by_hand, centre = target.detach().clone().double(), torch.zeros(24, dtype=torch.float64)
    for step, (progress, images) in enumerate([(0.0, 4), (0.5, 2), (0.9, 8)]):
        with torch.no_grad():
            online.fill_(float(step + 1))
        method.centre.observe(torch.full((24,), float(step)))
        method.after_step(progress, images)
        momentum = cosine(progress, 0.9, 1.0) ** (images / 4)
        by_hand = momentum * by_hand + (1 - momentum) * (step + 1)
        centre = 0.9 ** (images / 4) * centre + (1 - 0.9 ** (images / 4)) * step
    torch.testing.assert_close(target.double(), by_hand, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(method.centre.value.double(), centre, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.04), (0.15, 0.055), (0.3, 0.07), (1.0, 0.07)])
def test_the_teachers_temperature_rises_over_the_first_part_of_the_study(
    method: DINO, progress: float, expected: float
) -> None:
    method.before_step(progress)
    assert method.temperature.item() == pytest.approx(expected, rel=1e-6)


def test_rounds_and_epochs_change_no_schedule(build: Build) -> None:
    """1 round of 20 steps and 20 rounds of 1 step: the same temperatures, rates, momenta and so the same teacher."""
    ends = []
    for rounds, steps in ((1, 20), (20, 1)):
        method = build("dino", **SMALL).train()
        assert isinstance(method, DINO)
        with torch.no_grad():
            method.head.layers[0].bias.fill_(1.0)
        answer = []
        for round_ in range(1, rounds + 1):
            for number in range(steps):
                progress = (round_ - 1 + (number + 0.5) / steps) / rounds
                method.before_step(progress)
                answer.append((method.temperature.item(), method.rate("prototypes", progress, 1.0, 2.0)))
                method.after_step(progress, 4)
        ends.append((torch.tensor(answer), method.teacher["head"].layers[0].bias.detach().clone()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


def test_only_the_prototypes_stand_still_at_first(method: DINO) -> None:
    assert method.rate("prototypes", 0.04, 0.3, 1.0) == 0.0
    assert method.rate("prototypes", 0.06, 0.3, 1.0) == 0.3
    assert method.rate("head", 0.0, 0.3, 1.0) == 0.3


def test_no_gradient_enters_the_teacher_and_the_small_crops_count(method: DINO, blobs: Blobs) -> None:
    views = views_of(method, blobs(4))
    assert views["small"].shape == (4, 2, 1, 12, 12)  # 96 of 224, in patches of 4
    leaves = {name: value.clone().requires_grad_() for name, value in views.items()}
    method.loss(leaves)[0].backward()
    assert all(weight.grad is None for weight in method.teacher.parameters())
    assert all(bool(leaf.grad.flatten(2).any(dim=2).all()) for leaf in leaves.values())
    assert method.prototypes.weight.grad is not None and method.encoder.get_parameter("norm.bias").grad is not None


def test_the_teacher_drops_no_path_but_normalises_by_its_batch(build: Build, blobs: Blobs) -> None:
    method = build("dino", encoder=EncoderConfig(name="resnet10t", drop_path=0.2), **SMALL).train()
    assert isinstance(method, DINO)
    modes = {type(module).__name__: module.training for module in method.teacher.modules()}
    assert modes["BatchNormAct2d" if "BatchNormAct2d" in modes else "BatchNorm2d"] and not modes["DropPath"]
    method.loss(views_of(method, blobs(4)))
    method.after_step(0.0, 4)
    method.eval()
    assert not any(module.training for module in method.teacher.modules())


def test_prototypes_are_directions(method: DINO) -> None:
    layer = UnitPrototypes(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.1]]))
    torch.testing.assert_close(layer(torch.tensor([[0.6, 0.8]])), torch.tensor([[0.6, 0.8]]))


def test_a_new_site_starts_with_the_student_it_received(method: DINO) -> None:
    with torch.no_grad():
        for weight in method.parameters():
            weight.add_(1.0) if weight.requires_grad else None
    method.start_local_parts()
    for part in ("encoder", "head", "prototypes"):
        for name, value in method.get_submodule(part).state_dict().items():
            assert torch.equal(method.teacher[part].state_dict()[name], value)


def test_the_student_learns_what_a_standing_teacher_says(build: Build, blobs: Blobs) -> None:
    method = build("dino", **SMALL | {"momentum": 1.0, "centre_momentum": 0.0}).train()
    views = views_of(method, blobs(8))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    excess = []
    for step in range(40):
        method.before_step(step / 40)
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(step / 40, 8)
        entropy = scalars["target_entropy"] * torch.tensor(24.0).log()
        excess.append((loss - entropy).item())  # what is left to learn
        assert all(not value.requires_grad for value in scalars.values())
    assert min(excess) > -1e-4 and excess[-1] < 0.5 * excess[1]
