"""Local pretraining: repeatable, in step with the other sites, and every setting does something."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import client.training.round
from client.training.round import RoundOutcome, TrainingContext, train_round
from federation.algorithms import build_algorithm
from federation.study import Study
from federation.training_config import TrainingConfig
from foundation.errors import TrainingError
from foundation.randomness import torch_generator
from foundation.schedules import warmup_cosine
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods import build_method
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.table import Family, Role

CPU = torch.device("cpu")
MakeStudy = Callable[..., Study]
MakeStore = Callable[..., TensorStore]
Weights = dict[str, Tensor]


@pytest.fixture
def store(hospital: Callable[..., Path], tmp_path: Path, study: MakeStudy) -> MakeStore:
    """``store(9)``: the decoded images of a site of 9, 3 patients, as long as the test lasts."""

    def make(images: int = 9) -> TensorStore:
        name = f"site-{images}"
        if not (tmp_path / "sites" / name).exists():
            hospital(name, images)
        manifest = Manifest.open(tmp_path / "sites" / name / "manifest.csv")
        return TensorStore.build(manifest, study().image, tmp_path / "store", progress=False)

    return make


class Coarse(nn.Sequential):
    """Layers over sixteen pixels of an image."""

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 1, 32, 32]`` -> ``[B, 1]``."""
        rows: Tensor = super().forward(images[:, 0, ::8, ::8].flatten(1))
        return rows


class Plain(Method):
    """A per-sample loss without chance: a small network is drawn towards each image's brightness."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    summary = paper = "for tests"
    family: ClassVar[Family] = "predictive"
    per_sample: ClassVar[bool] = True
    encoders = ("vit",)
    parts: ClassVar[dict[str, Role]] = {"encoder": "shared", "head": "local"}

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = Coarse(nn.Linear(16, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
            super().__init__(MethodConfig(), encoder, ImageConfig(modality="mri", size=32, channels=1))
            self.head = nn.Embedding(2, 4)
        self.batches: list[Batch] = []
        self.progress: list[float] = []
        self.stepped: list[int] = []

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Nothing."""
        return {}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """The images and their brightness; no draw."""
        self.batches.append(batch)
        return {"x": batch.images, "y": batch.images.mean(dim=(1, 2, 3))}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error."""
        error = (self.encoder(views["x"])[:, 0] - views["y"]).square().mean()
        return error + 0 * self.head.weight.sum(), {"error": error.detach()}

    def after_step(self, progress: float, images: int) -> None:
        """Keep what the loop says."""
        self.progress.append(progress)
        self.stepped.append(images)


def run(
    s: Study, images: TensorStore, method: Method | None = None, site: str = "A", round_: int = 1,
    state: Weights | None = None,
) -> tuple[Weights, RoundOutcome]:  # fmt: skip
    """One round of ``method`` (Plain where none is given): all its weights afterwards, and the outcome."""
    method = method or Plain()
    context = TrainingContext(s, method, build_algorithm(s.algorithm), images, site, CPU)
    outcome = train_round(context, round_, state or {})
    return {name: value.detach().clone() for name, value in method.state_dict().items()}, outcome


def real(s: Study) -> Method:
    return build_method(s.method, s.encoder, s.image, s.seed)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["mae", "simclr", "ijepa"])
def test_a_round_is_the_same_bits_twice_and_anothers_are_not(
    study: MakeStudy, store: MakeStore, ijepa: dict[str, Any], method: str
) -> None:
    s = study() if method == "mae" else study(method=ijepa if method == "ijepa" else {"name": "simclr"})
    torch.rand(3)  # the global state must not matter
    one, outcome = run(s, store(), real(s))
    torch.rand(5)
    two, again = run(s, store(), real(s))
    assert same(one, two)
    assert same(outcome.optimiser, again.optimiser)
    assert not same(one, run(s, store(), real(s), site="B")[0])
    assert not same(one, run(s, store(), real(s), round_=2)[0])


def test_stochastic_depth_is_the_same_bits_twice(study: MakeStudy, store: MakeStore) -> None:
    """timm drops branches by torch's global generator, whose state depends on whatever ran before."""
    s = study(encoder={"depth": 2, "drop_path": 0.5})
    one, _ = run(s, store(), real(s))
    torch.rand(5)
    assert same(one, run(s, store(), real(s))[0])
    plain = study(encoder={"depth": 2, "drop_path": 0.0})
    assert not same(one, run(plain, store(), real(plain))[0])


def test_the_global_generator_is_left_alone(study: MakeStudy, store: MakeStore) -> None:
    s = study()
    method = real(s)
    before = torch.random.get_rng_state()
    run(s, store(), method)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_small_and_a_large_site_stay_in_step(study: MakeStudy, store: MakeStore) -> None:
    """Steps of 10 and of 50 images cover the same stretch of the study, so their rates meet at every round's end."""
    s = study(training={"batch": 2, "warmup": 0.1}, rounds={"count": 10})
    small, large = Plain(), Plain()
    rates = {}
    for round_ in (1, 5):
        _, one = run(s, store(10), small, round_=round_)
        _, other = run(s, store(50), large, "B", round_)
        rates[round_] = one.metrics["learning_rate"], other.metrics["learning_rate"]
    # By hand: round 5 of 10, the middle of step 3 of 5 is p = (4 + 2.5 / 5) / 10.
    assert small.progress[5 + 2] == pytest.approx(0.45)
    assert small.progress[0:5:4] == pytest.approx([0.01, 0.09])
    assert large.progress[0:25:24] == pytest.approx([0.002, 0.098])
    assert large.progress[25] == pytest.approx((4 + 0.5 / 25) / 10)
    peak = 0.01 * 2 / 256
    assert rates[1] == pytest.approx((peak * 0.9, peak * 0.98))
    assert rates[5] == pytest.approx((warmup_cosine(0.49, peak), warmup_cosine(0.498, peak)))
    assert abs(rates[5][0] - rates[5][1]) < 0.02 * peak


def test_progress_rises_through_a_study_and_never_leaves_it(study: MakeStudy, store: MakeStore) -> None:
    s, method = study(rounds={"count": 4}), Plain()
    for round_ in (1, 2, 3, 4):
        run(s, store(), method, round_=round_)
    assert method.progress == sorted(set(method.progress))
    assert method.progress[0] > 0
    assert method.progress[-1] < 1


def test_two_half_batches_are_one_batch(study: MakeStudy, store: MakeStore, gradients: list[float]) -> None:
    """For a per-sample loss the sum of gradients is the same; only the order of additions differs."""
    whole = study(training={"batch": 8, "accumulate": 1, "epochs": 3, "warmup": 0.0, "learning_rate": 0.1})
    halves = study(training={"batch": 4, "accumulate": 2, "epochs": 3, "warmup": 0.0, "learning_rate": 0.1})
    one, outcome = run(whole, store(8))
    two, again = run(halves, store(8))
    # Adam hides a factor on the gradient, so the gradients themselves are compared.
    assert gradients[:3] == pytest.approx(gradients[3:], rel=1e-3)
    assert outcome.metrics["steps"] == again.metrics["steps"] == 3
    assert outcome.metrics["images_seen"] == again.metrics["images_seen"] == 24
    assert outcome.metrics["loss"] == pytest.approx(again.metrics["loss"], rel=1e-5)
    start = Plain().state_dict()
    for name in one:
        moved = (one[name] - start[name]).abs().max()
        assert moved > 1e-4 or name == "head.weight"
        assert (one[name] - two[name]).abs().max() <= 0.01 * moved


def test_the_first_step_by_hand(study: MakeStudy, store: MakeStore) -> None:
    """AdamW's first step is lr sign(g) (for g well above epsilon), after p <- p (1 - lr wd) on matrices."""
    s = study(training={"batch": 9, "learning_rate": 0.1, "weight_decay": 0.5, "warmup": 0.0}, rounds={"count": 1})
    method, reference = Plain(), Plain()
    after, outcome = run(s, store(), method)
    loss, _ = reference.loss(reference.make_views(method.batches[0], torch.Generator()))
    loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
    rate = warmup_cosine(0.5, 0.1 * 9 / 256, warmup=0.0)
    assert outcome.metrics["learning_rate"] == pytest.approx(rate)
    for name, p in reference.named_parameters():
        assert p.grad is not None
        decayed = p * (1 - rate * 0.5) if name in ("encoder.0.weight", "encoder.3.weight") else p
        step = rate * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(after[name], (decayed - step).detach(), rtol=0, atol=rate * 1e-3, msg=name)


class Frozen(Plain):
    """Its head never moves, its encoder goes at the peak rate."""

    def rate(self, part: str, progress: float, scheduled: float, peak: float) -> float:
        """0 for the head."""
        return 0.0 if part == "head" else peak


def test_a_part_has_the_rate_that_the_method_says(study: MakeStudy, store: MakeStore) -> None:
    s = study(training={"batch": 9, "learning_rate": 0.1, "weight_decay": 0.5})
    method = Frozen()
    before = method.head.weight.detach().clone()
    _, outcome = run(s, store(), method)
    assert torch.equal(method.head.weight, before)
    assert outcome.metrics["learning_rate"] == pytest.approx(0.1 * 9 / 256)


def test_weight_decay_follows_half_a_cosine_to_its_end(
    study: MakeStudy, store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decays: list[set[float]] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        decays.append({group["weight_decay"] for group in self.param_groups})
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    amounts = {"epochs": None, "steps": 2, "weight_decay": 0.04, "final_weight_decay": 0.4}
    run(study(training=amounts, rounds={"count": 2}), store(), Plain(), round_=2)
    # Steps 3 and 4 of 4: p = 5/8 and 7/8.
    expected = [0.4 - 0.36 * (math.cos(math.pi * p) + 1) / 2 for p in (5 / 8, 7 / 8)]
    assert [max(found) for found in decays] == pytest.approx(expected)
    assert all(0.0 in found for found in decays)


def test_the_site_looks_at_its_features_after_every_round(study: MakeStudy, store: MakeStore) -> None:
    s = study(method={"name": "simclr"})
    _, outcome = run(s, store(), real(s))
    assert {"feature_spread", "rankme", "alignment", "uniformity", "output_spread"} <= outcome.metrics.keys()
    assert outcome.metrics["rankme"] >= 1
    assert 0 < outcome.metrics["output_spread"] <= 1.01


def test_weight_decay_spares_biases_norms_and_embeddings(study: MakeStudy, store: MakeStore) -> None:
    """With a loss of no slope, decay is all that moves a weight."""
    s = study(training={"weight_decay": 0.5, "learning_rate": 0.5, "warmup": 0.0})
    method = real(s)
    before = {name: value.detach().clone() for name, value in method.state_dict().items()}

    def flat(_: Views) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.stack([(p * 0).sum() for p in method.parameters() if p.requires_grad]).sum(), {}

    method.loss = flat  # type: ignore[method-assign]  # what the test is about
    after, _ = run(s, store(), method)
    shrunk = {name for name in before if not torch.equal(before[name], after[name])}
    embeddings = {n for n, m in method.named_modules() if isinstance(m, nn.Embedding)}
    matrices = {n for n, v in before.items() if v.ndim > 1 and n.removesuffix(".weight") not in embeddings}
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert "encoder.blocks.0.attn.qkv.weight" in shrunk
    assert "encoder.patch_embed.proj.weight" in shrunk
    assert not any(name.endswith("bias") or "norm" in name for name in shrunk)
    assert shrunk == (matrices & trained)
    assert {name for name in shrunk if "pos_embed" in name or "token" in name} == set()


def test_a_batch_holds_no_image_twice_and_a_pass_no_image_twice(study: MakeStudy, store: MakeStore) -> None:
    method = Plain()
    run(study(training={"batch": 4, "epochs": 5}), store(9), method)
    drawn = [batch.series.tolist() for batch in method.batches]
    assert len(drawn) == 11
    assert all(len(batch) == len(set(batch)) == 4 for batch in drawn)
    for first, second in zip(drawn[0::2], drawn[1::2], strict=False):
        assert not set(first) & set(second)
    assert set().union(*drawn) == set(range(9))
    assert len({tuple(batch) for batch in drawn}) == 11  # every pass has an order of its own


def test_what_is_read_and_the_views_have_streams_of_their_own(study: MakeStudy, store: MakeStore) -> None:
    plain, drawing, drawn = Plain(), Plain(), []

    def draw(count: int, generator: torch.Generator) -> Draws:
        drawn.append(torch.rand(count, generator=generator))
        return {}

    drawing.draw = draw  # type: ignore[method-assign]
    s = study(training={"batch": 4, "epochs": 2})
    for method in (plain, drawing):
        run(s, store(9), method, site="A", round_=2)
    assert [batch.series.tolist() for batch in plain.batches] == [batch.series.tolist() for batch in drawing.batches]
    assert torch.equal(torch.cat(drawn), torch.rand(4 * len(drawn), generator=torch_generator(s.seed, "views", "A", 2)))


def test_a_site_smaller_than_the_batch_gives_all_it_has(study: MakeStudy, store: MakeStore) -> None:
    method = Plain()
    _, outcome = run(study(training={"batch": 64, "steps": 3, "epochs": None}), store(9), method)
    assert [sorted(batch.series.tolist()) for batch in method.batches] == [list(range(9))] * 3
    assert method.stepped == [9, 9, 9]
    # The rate is the study's, for the study's batch: all sites walk at one pace.
    assert outcome.metrics["learning_rate"] == pytest.approx(warmup_cosine(2.5 / 9, 0.01 * 64 / 256))


# Every setting does something.


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The norm of the gradient at each optimiser step."""
    norms: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        squares = [p.grad.square().sum() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    yield norms


CHANGES_WEIGHTS: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 2},
    "steps": {"epochs": None, "steps": 5},
    "batch": {"batch": 3},
    "accumulate": {"accumulate": 2},
    "learning_rate": {"learning_rate": 0.02},
    "weight_decay": {"weight_decay": 0.5},
    "final_weight_decay": {"final_weight_decay": 0.5},
    "betas": {"betas": (0.5, 0.6)},
    "warmup": {"warmup": 0.0},
    "precision": {"precision": "bf16"},
}
ELSEWHERE = {"clip", "compile", "threads", "optimiser_state"}  # below, and optimiser_state in test_site.py


def test_no_setting_is_without_a_test() -> None:
    assert CHANGES_WEIGHTS.keys() | ELSEWHERE == set(TrainingConfig.model_fields)


@pytest.mark.parametrize("setting", CHANGES_WEIGHTS)
def test_a_setting_changes_the_weights(study: MakeStudy, store: MakeStore, setting: str) -> None:
    plain, _ = run(study(training={"learning_rate": 0.1}), store())
    changed, _ = run(study(training={"learning_rate": 0.1} | CHANGES_WEIGHTS[setting]), store())
    assert not same(plain, changed)


def test_auto_precision_is_float32_on_a_cpu(study: MakeStudy, store: MakeStore) -> None:
    auto, _ = run(study(), store())
    assert same(auto, run(study(training={"precision": "float32"}), store())[0])


def test_clip(study: MakeStudy, store: MakeStore, gradients: list[float]) -> None:
    run(study(), store())
    free = gradients.copy()
    gradients.clear()
    run(study(training={"clip": min(free) / 2}), store())
    assert gradients == pytest.approx([min(free) / 2] * len(free), rel=1e-4)
    gradients.clear()
    run(study(training={"clip": max(free) * 2}), store())
    assert gradients == free


def test_threads(study: MakeStudy, store: MakeStore) -> None:
    for threads in (2, 1):
        run(study(training={"threads": threads}), store())
        assert torch.get_num_threads() == threads


def test_compile(study: MakeStudy, store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, called = [], []

    def fake(function: Any) -> Any:
        compiled.append(function)
        return lambda views: (called.append(1), function(views))[1]

    monkeypatch.setattr(torch, "compile", fake)
    method = Plain()
    run(study(training={"compile": True}), store(), method)
    assert compiled == [method.loss]
    assert len(called) == 2
    compiled.clear()
    run(study(), store())
    assert compiled == []


def test_moments_are_taken_up_where_they_were_left(study: MakeStudy, store: MakeStore) -> None:
    s = study()
    _, first = run(s, store())
    assert set(first.optimiser) == {
        f"{name}/{moment}" for name, _ in Plain().named_parameters() for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    kept = {name: value.clone() for name, value in first.optimiser.items()}
    with_moments, second = run(s, store(), round_=2, state=first.optimiser)
    without, _ = run(s, store(), round_=2)
    assert not same(with_moments, without)
    assert second.optimiser["encoder.0.weight/step"].item() == 4
    assert same(first.optimiser, kept)  # what was handed in stays as it was


def test_moments_from_a_file_go_on_as_those_in_memory_do(study: MakeStudy, store: MakeStore) -> None:
    """A convolution's weight has its channels last, a file's tensors do not; the fused step reads both as they lie."""
    s = study(method={"name": "simclr"}).model_copy(update={"encoder": EncoderConfig(name="resnet10t")})
    _, first = run(s, store(), real(s))
    plain = {name: value.contiguous() for name, value in first.optimiser.items()}
    assert any(value.stride() != first.optimiser[name].stride() for name, value in plain.items())
    kept, _ = run(s, store(), real(s), round_=2, state=first.optimiser)
    again, _ = run(s, store(), real(s), round_=2, state=plain)
    assert same(kept, again)


# FedProx at a site.


def distance(weights: Weights) -> float:
    start = Plain().state_dict()
    return float(sum((weights[name] - start[name]).square().sum() for name in weights if name.startswith("encoder")))


def test_fedprox_without_mu_is_fedavg_bit_for_bit(study: MakeStudy, store: MakeStore) -> None:
    fedavg, prox = study(), study(algorithm={"name": "fedprox", "mu": 0.0})
    assert same(run(fedavg, store(), real(fedavg))[0], run(prox, store(), real(prox))[0])


def test_fedprox_keeps_a_site_near_the_global_weights(study: MakeStudy, store: MakeStore) -> None:
    amount = {"epochs": 30, "learning_rate": 0.5, "weight_decay": 0.0, "warmup": 0.0}
    distances = [
        distance(run(study(training=amount, algorithm={"name": "fedprox", "mu": mu}), store())[0])
        for mu in (0.0, 1.0, 100.0)
    ]
    assert distances[0] > 2 * distances[1] > 2 * distances[2]


def test_the_recorded_loss_is_the_methods_without_the_pull(study: MakeStudy, store: MakeStore) -> None:
    _, outcome = run(study(algorithm={"name": "fedprox", "mu": 1e6}), store())
    assert outcome.metrics["loss"] == pytest.approx(outcome.metrics["error"])


# Losses that are not finite.


class Breaking(Plain):
    """Plain until step ``at``, then ``breaks``."""

    def __init__(self, at: int, breaks: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.at, self.breaks = at, breaks

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, broken at one step."""
        loss, scalars = super().loss(views)
        return (self.breaks(loss) if len(self.batches) == self.at else loss), scalars


@pytest.mark.parametrize("at", [1, 2, 17, 20])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_round(study: MakeStudy, store: MakeStore, at: int, value: float) -> None:
    with pytest.raises(TrainingError) as caught:
        run(study(training={"steps": 20, "epochs": None}), store(), Breaking(at, lambda loss: loss * value), "A", 2)
    assert str(caught.value) == (
        "site A, round 2: the loss is not finite; lower training.learning_rate, set training.clip or look for "
        "broken images"
    )


def test_a_last_step_that_breaks_the_weights_behind_a_finite_loss(study: MakeStudy, store: MakeStore) -> None:
    """The square root's slope at nought is infinite, its value is not: kept moments would spoil every later round."""
    broken = Breaking(2, lambda loss: loss + (loss - loss).sqrt())
    with pytest.raises(TrainingError, match=r"^site A, round 1: the weights are not finite after the last step"):
        run(study(), store(), broken)


def test_the_check_looks_every_few_steps(study: MakeStudy, store: MakeStore) -> None:
    """A site of thousands of steps does not go on to the end of its round after a NaN in its first."""
    broken = Breaking(1, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError):
        run(study(training={"steps": 500, "epochs": None}), store(), broken)
    assert len(broken.batches) <= client.training.round._CHECK_EVERY + 1
