"""SwAV: balanced codes, swapped predictions, prototypes and the queue."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.tensor_files import load_tensors, save_tensors
from ssl_methods.method import Batch, Method, Views
from ssl_methods.non_contrastive import swav
from ssl_methods.non_contrastive.swav import Queue, SwAV, sinkhorn, swav_loss

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
SMALL = {"prototypes": 5, "projection": 8, "queue": 10, "queue_from": 0.0, "small_crops": 2, "epsilon": 0.05}


@pytest.fixture
def method(build: Build) -> SwAV:
    made = build("swav", **SMALL)
    assert isinstance(made, SwAV)
    return made.train()


def views_of(method: Method, batch: Batch, seed: int = 0) -> Views:
    return method.make_views(batch, torch.Generator().manual_seed(seed))


def cosines(rows: int, columns: int, seed: int) -> Tensor:
    return 2 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def scaled(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Sinkhorn's rounds as the paper's appendix states them: a matrix of prototypes by images, entry by entry."""
    table = [[float((scores[n, k] / epsilon).exp()) for n in range(len(scores))] for k in range(scores.shape[1])]
    prototypes, images = len(table), len(table[0])
    for _ in range(rounds):
        for row in table:
            whole = sum(row)
            row[:] = [value / whole / prototypes for value in row]
        for n in range(images):
            whole = sum(row[n] for row in table)
            for row in table:
                row[n] /= whole * images
    return torch.tensor(table, dtype=torch.float64).T * images


@given(st.integers(2, 12), st.integers(2, 8), st.floats(0.05, 1.0), st.integers(1, 5), st.integers(0, 999))
def test_codes_are_the_papers(images: int, prototypes: int, epsilon: float, rounds: int, seed: int) -> None:
    scores = cosines(images, prototypes, seed)
    torch.testing.assert_close(
        sinkhorn(scores, epsilon, rounds), scaled(scores, epsilon, rounds), rtol=1e-9, atol=1e-12
    )


@given(st.integers(2, 40), st.integers(2, 20), st.floats(0.3, 1.0), st.integers(0, 999))
def test_codes_have_the_right_marginals(images: int, prototypes: int, epsilon: float, seed: int) -> None:
    codes = sinkhorn(cosines(images, prototypes, seed), epsilon, 200)
    assert bool((codes >= 0).all())
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(images, dtype=torch.float64))
    used = torch.full((prototypes,), images / prototypes, dtype=torch.float64)
    torch.testing.assert_close(codes.sum(dim=0), used, rtol=1e-6, atol=0)


def test_three_rounds_balance_what_none_leaves_lopsided() -> None:
    scores = cosines(64, 8, 0).float()
    scores[:, 0] += 1.0  # most images' first choice
    codes = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64))
    assert codes.sum(dim=0).sub(8).abs().max() < 4
    assert (scores / 0.05).softmax(dim=1).sum(dim=0)[0] > 30


def test_large_scores_do_not_overflow() -> None:
    codes = sinkhorn(100 * cosines(16, 4, 0).float(), 0.05, 3)  # exp(2000) is no number
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(16))


def reference(scores: Tensor, codes: Tensor, temperature: float) -> float:
    """Eq. 1-2 as loops."""
    total, pairs = 0.0, 0
    for coded in range(len(codes)):
        for view in range(len(scores)):
            if view != coded:
                pairs += 1
                for image in range(scores.shape[1]):
                    logits = scores[view, image] / temperature
                    chosen = (codes[coded, image] * (logits - logits.exp().sum().log())).sum()
                    total -= float(chosen) / scores.shape[1]
    return total / pairs


def test_loss_is_the_papers() -> None:
    scores = cosines(12, 5, 1).reshape(4, 3, 5)
    codes = sinkhorn(cosines(6, 5, 2), 0.3, 3).reshape(2, 3, 5)
    assert float(swav_loss(scores, codes, 0.2)) == pytest.approx(reference(scores, codes, 0.2), rel=1e-12)


def two_steps(method: SwAV, blobs: Blobs) -> tuple[float, float]:
    """The loss of a step with a full queue, and what it should be from the projections, by loops."""
    for seed in range(4):
        method.before_step(0.5)
        queue = method.queue.rows.clone()
        views = views_of(method, blobs(5), seed)
        caught: list[Tensor] = []
        handle = method.projector.register_forward_hook(lambda _, __, out, caught=caught: caught.append(out))
        loss, _ = method.loss(views)
        handle.remove()
        method.after_step(0.5, 5)
    projected = torch.nn.functional.normalize(caught[0].detach(), dim=1).reshape(4, 5, 8)
    assert method.queue_used
    prototypes = method.prototypes.weight.detach().double()
    scores = projected.double() @ prototypes.T
    codes = [scaled(torch.cat([scores[view], queue[view].double() @ prototypes.T]), 0.05, 3)[:5] for view in range(2)]
    return loss.item(), reference(scores, torch.stack(codes), 0.1)


def test_codes_are_balanced_over_the_batch_and_the_queue_from_before_it(method: SwAV, blobs: Blobs) -> None:
    found, expected = two_steps(method, blobs)
    assert found == pytest.approx(expected, rel=1e-5)


def test_codes_that_are_not_balanced_are_noticed(method: SwAV, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swav, "sinkhorn", lambda scores, epsilon, rounds: (scores / epsilon).softmax(dim=1))
    found, expected = two_steps(method, blobs)
    assert found != pytest.approx(expected, rel=1e-3)


def test_sinkhorn_without_a_round_is_noticed(method: SwAV, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    right = swav.sinkhorn
    monkeypatch.setattr(swav, "sinkhorn", lambda scores, epsilon, rounds: right(scores, epsilon, 0))
    found, expected = two_steps(method, blobs)
    assert found != pytest.approx(expected, rel=1e-3)


def test_the_queue_holds_the_newest_first_and_drops_the_oldest() -> None:
    queue = Queue(5, 1)
    for start in (0, 2, 4):
        assert not queue.full()
        queue.push(torch.tensor([[[start + 0.0], [start + 1.0]], [[start + 10.0], [start + 11.0]]]))
    assert queue.full()
    assert queue.rows[:, :, 0].tolist() == [[4.0, 5.0, 2.0, 3.0, 0.0], [14.0, 15.0, 12.0, 13.0, 10.0]]
    queue.push(torch.arange(12.0).reshape(2, 6, 1))  # a batch larger than the queue
    assert queue.rows[:, :, 0].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0], [6.0, 7.0, 8.0, 9.0, 10.0]]


def test_the_queue_stays_at_the_site_and_survives_rounds(build: Build, blobs: Blobs) -> None:
    first = build("swav", **SMALL).train()
    for _ in range(3):
        first.loss(views_of(first, blobs(4)))
        first.after_step(0.5, 4)
    assert not any(key.startswith("queue") for key in first.shared_state())
    second = build("swav", **SMALL).train()
    assert isinstance(second, SwAV)
    second.load_state_dict({**second.state_dict(), **first.local_state()})
    assert torch.equal(second.queue.rows, first.state_dict()["queue.rows"]) and second.queue.full()
    second.before_step(0.5)
    assert second.queue_used
    fresh = build("swav", **SMALL)
    fresh.before_step(0.5)
    assert isinstance(fresh, SwAV) and not fresh.queue_used


def test_the_queue_waits_for_its_time_and_may_be_left_out(build: Build, blobs: Blobs) -> None:
    for options, used in (({"queue_from": 0.4}, [False, True]), ({"queue": 0}, [False, False])):
        method = build("swav", **SMALL | options).train()
        assert isinstance(method, SwAV)
        for _ in range(3):
            method.loss(views_of(method, blobs(4)))
        seen = []
        for progress in (0.3, 0.5):
            method.before_step(progress)
            seen.append(method.queue_used)
            assert method.loss(views_of(method, blobs(4)))[0].isfinite()
        assert seen == used


def test_a_site_without_a_queue_is_stored_and_read_back(build: Build, tmp_path: Path) -> None:
    method = build("swav")
    save_tensors(tmp_path / "local.safetensors", method.local_state())
    stored, _ = load_tensors(tmp_path / "local.safetensors")
    assert stored["queue.rows"].shape == (2, 0, 128)
    method.load_state_dict({**method.state_dict(), **stored})
    method.before_step(1.0)
    assert isinstance(method, SwAV) and not method.queue_used


def test_prototypes_are_unit_vectors_before_and_after_every_step(method: SwAV) -> None:
    for hook in (lambda: method.before_step(0.0), lambda: method.after_step(0.0, 4)):
        with torch.no_grad():
            method.prototypes.weight.mul_(0.3)  # as an average over sites is shorter
        hook()
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(5))


def test_only_the_prototypes_stand_still_at_first(method: SwAV) -> None:
    assert method.rate("prototypes", 0.04, 0.3, 1.0) == 0.0
    assert method.rate("prototypes", 0.06, 0.3, 1.0) == 0.3
    assert method.rate("projector", 0.0, 0.3, 1.0) == 0.3


def test_no_gradient_enters_the_codes(method: SwAV, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    views = views_of(method, blobs(4))
    gradient = torch.autograd.grad(method.loss(views)[0], method.prototypes.weight)[0]
    codes = torch.stack([method._codes(*each) for each in zip(scores_of(method, views), range(2), strict=True)])
    monkeypatch.setattr(method, "_codes", lambda _, view: codes[view])
    torch.testing.assert_close(torch.autograd.grad(method.loss(views)[0], method.prototypes.weight)[0], gradient)


def scores_of(method: SwAV, views: Views) -> Tensor:
    """Similarities ``[2, B, K]`` of the large views to the prototypes."""
    pooled = swav.view_features(method.encoder, views)
    projected = method.output(pooled.flatten(0, 1)).reshape(4, len(views["large"]), -1)
    return (projected[:2] @ method.prototypes.weight.T).detach()


def test_a_small_batch_is_learned(build: Build, blobs: Blobs) -> None:
    method = build("swav", **SMALL | {"queue": 0}).train()
    views = views_of(method, blobs(8))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    losses = []
    for step in range(40):
        method.before_step(step / 40)
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(step / 40, 8)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0] and scalars["prototypes_used"] > 0.5
