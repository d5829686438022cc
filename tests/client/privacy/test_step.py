"""One step of DP-SGD: the gradient by hand, noise whatever was drawn, one patient's part and nothing of the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import client.privacy.step
from client.privacy.step import PatientSampler, PrivateStep
from client.training.round import Learner
from federation.algorithms import build_algorithm
from federation.algorithms.fedavg import FedAvgConfig
from federation.algorithms.fedprox import FedProxConfig
from federation.privacy import noise
from federation.privacy.config import PatientPrivacyConfig
from imaging.config import ImageConfig
from imaging.store import TensorStore
from ssl_methods import build_method
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.per_sample.sample_gradients import ClippedSum, clipped_sum
from ssl_methods.table import Family, Role

from ...conftest import STUDY
from ...tiers import examples

CPU = torch.device("cpu")
PATIENTS = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]  # of ten images
MARGIN = 1 - 1e-4


class Images(TensorStore):
    """A store of small random images in memory."""

    def __init__(self, images: Tensor, patients: list[int]) -> None:
        codes = np.asarray(patients, dtype=np.int64)
        alone = np.arange(len(codes))
        super().__init__(Path(), cast(Any, None), alone, codes, alone, alone)
        object.__setattr__(self, "images", images)

    def stored(self, indices: Any) -> Tensor:
        """Those images."""
        chosen: Tensor = self.__dict__["images"][torch.as_tensor(np.asarray(indices))]
        return chosen


class Plain(Method):
    """A linear layer drawn towards each image's brightness; another layer that nothing reaches, a frozen third."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    summary = paper = "for tests"
    family: ClassVar[Family] = "predictive"
    per_sample: ClassVar[bool] = True
    encoders = ("vit",)
    parts: ClassVar[dict[str, Role]] = {"encoder": "shared", "unreached": "local", "frozen": "shared"}

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(MethodConfig(), nn.Linear(16, 1), ImageConfig(modality="mri", size=32, channels=1))
            self.unreached = nn.Linear(3, 2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.answer: list[int] = []

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Nothing."""
        return {}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """Sixteen pixels of each image and its brightness; no draw."""
        return {"x": batch.images[:, 0, ::8, ::8].flatten(1), "y": batch.images.mean(dim=(1, 2, 3))}

    def image_losses(self, views: Views) -> Tensor:
        """Squared errors."""
        return (self.encoder(views["x"])[:, 0] - views["y"]).square()

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Their mean."""
        return self.image_losses(views).mean(), {}


class Kept:
    """In an optimiser's place: keeps the gradients that a step would have used."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.steps: list[dict[str, Tensor | None]] = []

    def step(self) -> None:
        """Keep them."""
        grads = {n: None if p.grad is None else p.grad.clone() for n, p in self.method.named_parameters()}
        self.steps.append(grads)

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop them."""
        for parameter in self.method.parameters():
            parameter.grad = None


def images(seed: int = 0, count: int = len(PATIENTS)) -> Tensor:
    return torch.rand((count, 1, 32, 32), generator=torch.Generator().manual_seed(seed))


def privacy(**changes: Any) -> PatientPrivacyConfig:
    whole = {"epsilon": 8, "delta": 1e-3, "patients": 8, "patients_per_step": 4, "clip": 0.5} | changes
    return PatientPrivacyConfig.model_validate(whole)


def step_of(
    method: Method, config: PatientPrivacyConfig, values: Tensor | None = None, batch: int = 4, mu: float | None = None,
    sigma: float = 1.5, patients: list[int] = PATIENTS,
) -> tuple[PrivateStep, Kept]:  # fmt: skip
    store = Images(images() if values is None else values, patients)
    kept = Kept(method)
    algorithm = build_algorithm(FedAvgConfig() if mu is None else FedProxConfig(mu=mu))
    return PrivateStep(Learner(method, algorithm, cast(Any, kept), CPU), store, config, sigma, batch), kept


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``fixed([0, 2])``: no noise, these patients in every step, views and images from a seed."""

    def fix(drawn: list[int], seed: int = 3) -> None:
        monkeypatch.setattr(noise, "noised", lambda total, std: total)
        monkeypatch.setattr(noise, "poisson_sample", lambda count, rate: torch.tensor(drawn, dtype=torch.int64))
        monkeypatch.setattr(noise, "secure_generator", lambda: torch.Generator().manual_seed(seed))

    return fix


def by_hand(
    method: Plain, chosen: list[list[int]], clip: float, values: Tensor
) -> tuple[dict[str, Tensor], list[float]]:
    """Sum of the clipped gradients of patients with these images, by the formula of a linear layer."""
    weight, bias = method.encoder.weight[0].double(), method.encoder.bias.double()  # type: ignore[union-attr, index]
    total, norms = torch.zeros(17, dtype=torch.float64), []
    for numbers in chosen:
        gradient = torch.zeros(17, dtype=torch.float64)
        for number in numbers:
            x = values[number, 0, ::8, ::8].flatten().double()
            error = weight @ x + bias - values[number].double().mean()
            gradient += 2 * error * torch.cat([x, torch.ones(1)]) / len(numbers)
        norms.append(float(gradient.norm().detach()))
        total += (gradient * min(1.0, clip / norms[-1])).detach()
    return {"encoder.weight": total[None, :16], "encoder.bias": total[16:]}, norms


def test_a_step_by_hand(fixed: Callable[..., None]) -> None:
    """All images of three patients: clipped patient by patient, summed, divided by the patients that are expected."""
    fixed([0, 1, 3])
    method, values, config = Plain(), images(), privacy(images_per_patient=4, clip=2.65)
    step, kept = step_of(method, config, values)
    wanted, norms = by_hand(method, [[0, 1, 2], [3, 4], [6, 7, 8, 9]], 2.65 * MARGIN, values)
    assert min(norms) < 2.65 < max(norms)  # so that clipping is seen, and is not all
    step.take()
    (grads,) = kept.steps
    for name, total in wanted.items():
        torch.testing.assert_close(grads[name], (total / 4).float(), rtol=1e-4, atol=1e-6)
    assert step.facts.means()["clipped"] == sum(norm > 2.65 for norm in norms) / 3
    assert (step.facts.patients, step.facts.images) == (3, 9)


def test_noise_is_on_the_sum_and_is_as_large_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def noised(total: Tensor, std: float) -> Tensor:
        asked.append(std)
        return total + 8.0

    monkeypatch.setattr(noise, "noised", noised)
    monkeypatch.setattr(noise, "poisson_sample", lambda count, rate: torch.tensor([], dtype=torch.int64))
    step, kept = step_of(Plain(), privacy(clip=0.5), sigma=1.5)
    step.take()
    (grads,) = kept.steps
    assert asked == [0.75] * 4
    for name, grad in grads.items():
        if name.startswith("frozen"):
            assert grad is None
        else:  # also what no gradient reaches: which parameters move must tell nothing
            assert grad is not None and bool((grad == 8.0 / 4).all())


def test_an_empty_sample_is_a_step_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "poisson_sample", lambda count, rate: torch.tensor([], dtype=torch.int64))
    monkeypatch.setattr(client.privacy.step, "clipped_sum", lambda *_: pytest.fail("there is nobody to look at"))
    method = Plain()
    store, config = Images(images(), PATIENTS), privacy()
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step = PrivateStep(Learner(method, build_algorithm(FedAvgConfig()), optimiser, CPU), store, config, 1.0, 4)
    step.take()
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"encoder.weight", "encoder.bias", "unreached.weight", "unreached.bias"}
    assert step.facts.means() == {"patients_a_step": 0.0, "images_seen": 0.0}


def test_the_noise_of_a_real_step_has_its_size() -> None:
    """50,000 numbers of noise in one step: the deviation within 2 % (six standard errors), and two steps differ."""
    method = Plain()
    method.unreached = nn.Linear(500, 100)
    step, kept = step_of(method, privacy(clip=0.5), sigma=1.5)
    step.take()
    step.take()
    first, second = (cast(Tensor, grads["unreached.weight"]) * 4 for grads in kept.steps)
    for grad in (first, second):
        assert float(grad.std()) == pytest.approx(0.75, rel=0.02)
        assert abs(float(grad.mean())) < 6 * 0.75 / 50_000**0.5
    assert float((first - second).std()) == pytest.approx(0.75 * 2**0.5, rel=0.02)


def test_no_seed_has_a_part_in_it() -> None:
    taken = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        step, kept = step_of(Plain(), privacy())
        step.take()
        taken.append(kept.steps[0])
    assert not torch.equal(cast(Tensor, taken[0]["encoder.weight"]), cast(Tensor, taken[1]["encoder.weight"]))


def test_patients_are_drawn_of_this_site_s_own_at_the_study_s_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def poisson_sample(count: int, rate: float) -> Tensor:
        asked.append((count, rate))
        return torch.arange(count)

    monkeypatch.setattr(noise, "poisson_sample", poisson_sample)
    PatientSampler(Images(images(), PATIENTS), privacy(), 4).draw(torch.Generator())
    assert asked == [(4, 0.5)]  # of the four that are here, with the probability of the study's eight


def test_codes_of_patients_may_have_gaps(fixed: Callable[..., None]) -> None:
    fixed([1])
    store = Images(images(count=3), [7, 7, 40])
    (chunk,) = PatientSampler(store, privacy(), 4).draw(torch.Generator())
    assert [each.tolist() for each in chunk] == [[2]]


@given(
    owners=st.lists(st.integers(0, 5), min_size=1, max_size=30), most=st.integers(1, 6), batch=st.integers(2, 8),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_patient_is_never_in_two_chunks(owners: list[int], most: int, batch: int, seed: int) -> None:
    store = Images(images(count=len(owners)), owners)
    sampler = PatientSampler(store, privacy(patients_per_step=8, images_per_patient=most), batch)
    chunks = sampler.draw(torch.Generator().manual_seed(seed))
    groups = [each.tolist() for chunk in chunks for each in chunk]
    assert sorted(owners[group[0]] for group in groups) == sorted(set(owners))  # at rate 1 each patient once
    for group in groups:
        owner = owners[group[0]]
        assert {owners[number] for number in group} == {owner}
        assert len(set(group)) == len(group) == min(most, owners.count(owner))
    for chunk in chunks:
        assert sum(map(len, chunk)) <= batch or len(chunk) == 1


def test_which_image_a_patient_gives_changes_and_all_get_their_turn(fixed: Callable[..., None]) -> None:
    fixed([3])
    sampler = PatientSampler(Images(images(), PATIENTS), privacy(), 4)
    generator = torch.Generator().manual_seed(0)
    given_ = [int(sampler.draw(generator)[0][0]) for _ in range(400)]
    counts = np.bincount(given_, minlength=10)
    assert counts[:6].sum() == 0
    assert counts[6:].min() > 60  # 100 each, and four standard deviations below


def test_the_penalty_is_added_to_the_noised_gradient(fixed: Callable[..., None]) -> None:
    fixed([])
    method = Plain()
    step, kept = step_of(method, privacy(), mu=0.5)
    with torch.no_grad():
        method.encoder.weight += 0.25  # type: ignore[operator]
        method.unreached.weight += 0.25
    step.take()
    (grads,) = kept.steps
    assert torch.allclose(cast(Tensor, grads["encoder.weight"]), torch.full((1, 16), 0.5 * 0.25))
    assert bool((cast(Tensor, grads["encoder.bias"]) == 0).all())
    assert bool((cast(Tensor, grads["unreached.weight"]) == 0).all())  # a part that is not shared is not drawn back


def test_a_broken_image_is_left_out_and_nothing_stops(fixed: Callable[..., None]) -> None:
    """Stopping, or a sum that is not finite, would tell that the patient is there."""
    fixed([0, 2])
    values = images()
    values[5] = torch.nan
    config = privacy(images_per_patient=3, clip=0.15)
    method = Plain()
    step, kept = step_of(method, config, values)
    wanted, _ = by_hand(method, [[0, 1, 2]], 0.15 * MARGIN, values)
    step.take()
    torch.testing.assert_close(
        kept.steps[0]["encoder.bias"], (wanted["encoder.bias"] / 4).float(), rtol=1e-4, atol=1e-6
    )
    means = step.facts.means()
    assert means["left_out"] == 0.5
    assert np.isfinite(means["loss"])


IJEPA = {"name": "ijepa", "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2, "momentum": 0.9}


def real(raw: dict[str, Any]) -> Method:
    from ssl_methods.encoders.table import EncoderConfig
    from ssl_methods.predictive.ijepa import IJEPAConfig
    from ssl_methods.reconstruction.mae import MAEConfig

    kind = IJEPAConfig if raw["name"] == "ijepa" else MAEConfig
    image = ImageConfig.model_validate(STUDY["image"])
    return build_method(kind.model_validate(raw), EncoderConfig.model_validate(STUDY["encoder"]), image, 0)


@pytest.mark.parametrize("raw", [STUDY["method"], IJEPA], ids=["mae", "ijepa"])
@examples(6)
@given(
    changed=st.integers(0, 3),
    seed=st.integers(0, 2**31),
    most=st.integers(1, 3),
    clip=st.sampled_from([0.01, 0.3, 100.0]),
)
def test_one_patient_s_images_change_that_patient_s_part_alone(
    raw: dict[str, Any], changed: int, seed: int, most: int, clip: float
) -> None:
    """Through the whole step: views, chunks, clipping, sum. Sampling and masks fixed, noise off."""
    one, other = images(seed), images(seed)
    theirs = [number for number, owner in enumerate(PATIENTS) if owner == changed]
    other[theirs] = images(seed + 1)[theirs]
    config = privacy(images_per_patient=most, clip=clip)
    seen: list[list[tuple[Views, Tensor, int, ClippedSum]]] = []
    sums: list[dict[str, Tensor | None]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "noised", lambda total, std: total)
        patch.setattr(noise, "poisson_sample", lambda count, rate: torch.arange(count))
        patch.setattr(noise, "secure_generator", lambda: torch.Generator().manual_seed(seed))

        def watched(method: Method, views: Views, groups: Tensor, count: int, most: float) -> ClippedSum:
            found = clipped_sum(method, views, groups, count, most)
            seen[-1].append((views, groups, count, found))
            return found

        patch.setattr(client.privacy.step, "clipped_sum", watched)
        method = real(raw).train()
        for values in (one, other):
            seen.append([])
            step, kept = step_of(method, config, values)
            step.take()
            sums.append(kept.steps[0])
    norms = [torch.cat([found.norms for *_, found in chunks]) for chunks in seen]
    others = [number for number in range(4) if number != changed]
    torch.testing.assert_close(norms[0][others], norms[1][others], rtol=1e-5, atol=1e-7)
    # The difference of the sums is that patient's own clipped gradients' difference.
    own = [_part_of(method, chunks, changed, clip * MARGIN) for chunks in seen]
    for name, part in own[0].items():
        difference = (cast(Tensor, sums[0][name]) - cast(Tensor, sums[1][name])) * config.patients_per_step
        torch.testing.assert_close(difference, part - own[1][name], rtol=1e-3, atol=1e-5 * max(1.0, clip))
    for part in own:
        assert sum(float(value.double().square().sum()) for value in part.values()) ** 0.5 <= clip


def _part_of(
    method: Method, chunks: list[tuple[Views, Tensor, int, ClippedSum]], patient: int, clip: float
) -> dict[str, Tensor]:
    """A patient's clipped gradient, by plain autograd over that patient's views alone."""
    before = 0
    for views, groups, count, _ in chunks:
        if before <= patient < before + count:
            rows = groups == patient - before
            loss = method.image_losses({name: value[rows] for name, value in views.items()}).mean()
            named = {name: p for name, p in method.named_parameters() if p.requires_grad}
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            whole = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}
            norm = sum(float(value.double().square().sum()) for value in whole.values()) ** 0.5
            return {name: value * min(1.0, clip / norm) for name, value in whole.items()}
        before += count
    raise AssertionError("not drawn")
