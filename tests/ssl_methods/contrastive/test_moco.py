"""MoCo v2: the queue, who is a negative, and how the key encoder follows."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.errors import StudyError
from foundation.tensor_files import load_tensors, save_tensors
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods.contrastive import moco
from ssl_methods.contrastive.moco import NOBODY, KeyQueue, MoCoV2, moco_loss
from ssl_methods.encoders.statistics import batch_norms, follow_batches
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method

Build = Callable[..., Method]
Blobs = Callable[..., Batch]


@pytest.fixture
def method(build: Build) -> MoCoV2:
    made = build("moco_v2", queue=6, projection=8, momentum=0.9, momentum_batch=4)
    assert isinstance(made, MoCoV2)
    return made.train()


def step(method: Method, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
    """A step as a site does it, without moving the weights; its loss, and what the queue was given."""
    method.before_step(0.0)
    views = method.make_views(batch, torch.Generator().manual_seed(seed))
    loss, _ = method.loss(views)
    method.after_step(0.0, len(batch.images))
    return loss.item(), views


def of(batch: Batch, *patients: int) -> Batch:
    codes = torch.tensor(patients)
    return Batch(batch.images[: len(codes)], codes, codes, codes)


def slow_loss(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, patients: list[int], whose: list[int]
) -> float:
    """Eq. 1, query by query, in Python numbers."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    losses = []
    for query, key, patient in zip(queries.tolist(), keys.tolist(), patients, strict=True):
        own = math.exp(cosine(query, key) / temperature)
        others = [
            math.exp(cosine(query, other) / temperature)
            for other, owner in zip(queue.tolist(), whose, strict=True)
            if owner not in (patient, NOBODY)
        ]
        if others:
            losses.append(-math.log(own / (own + sum(others))))
    return sum(losses) / len(losses) if losses else 0.0


@given(
    patients=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    whose=st.lists(st.integers(-1, 2), min_size=1, max_size=6),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_formula(patients: list[int], whose: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, len(patients), 4, generator=generator, dtype=torch.float64)
    queue = torch.nn.functional.normalize(torch.randn(len(whose), 4, generator=generator, dtype=torch.float64), dim=1)
    loss, counted = moco_loss(queries, keys, queue, 0.3, torch.tensor(patients), torch.tensor(whose))
    assert loss.item() == pytest.approx(slow_loss(queries, keys, queue, 0.3, patients, whose), rel=1e-10)
    assert counted.tolist() == [any(owner not in (patient, NOBODY) for owner in whose) for patient in patients]


def test_keys_of_the_same_patient_and_empty_places_are_no_negatives_by_hand() -> None:
    queries = keys = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    whose = torch.tensor([7, 9, NOBODY])
    loss, _ = moco_loss(queries, keys, queue, 1.0, torch.tensor([7]), whose)
    assert loss.item() == pytest.approx(math.log(math.e + 1) - 1, rel=1e-6)
    unmasked, _ = moco_loss(queries, keys, queue, 1.0)
    assert unmasked.item() == pytest.approx(math.log(2 * math.e + 2) - 1, rel=1e-6)


def test_the_queue_is_first_in_first_out_by_hand() -> None:
    queue = KeyQueue(5, 1)
    contents = []
    for start, count in ((0, 2), (10, 2), (20, 3), (30, 7)):
        queue.enter(torch.arange(start, start + count)[:, None].float(), torch.arange(start, start + count))
        assert [float(owner) for owner in queue.patients] == [
            key if owner != NOBODY else NOBODY
            for key, owner in zip(queue.keys[:, 0].tolist(), queue.patients.tolist(), strict=True)
        ]
        contents.append((queue.patients.tolist(), int(queue.place)))
    assert contents == [
        ([0, 1, NOBODY, NOBODY, NOBODY], 2),
        ([0, 1, 10, 11, NOBODY], 4),
        ([21, 22, 10, 11, 20], 2),
        ([33, 34, 35, 36, 32], 4),
    ]


def test_the_loss_sees_the_queue_as_it_was_before_its_batch(method: MoCoV2, blobs: Blobs) -> None:
    step(method, of(blobs(3), 0, 1, 2), 0)
    before = copy.deepcopy(method.queue)
    views = method.make_views(of(blobs(3), 3, 4, 5), torch.Generator().manual_seed(1))
    queries = method.projector(method.encoder(views["first"])).detach().double()
    keys = method.key_projector(method.key_encoder(views["second"])).double()
    loss, metrics = method.loss(views)
    expected = slow_loss(queries, keys, before.keys.double(), 0.2, [3, 4, 5], before.patients.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(metrics["anchors_left_out"]) == 0.0
    assert torch.equal(method.queue.patients, before.patients)


def test_a_queue_that_takes_the_batch_in_too_early_is_caught(
    method: MoCoV2, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(
        queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, patients: Tensor, whose: Tensor
    ) -> tuple[Tensor, Tensor]:
        queue, whose = torch.cat([queue, keys]), torch.cat([whose, patients])
        return moco_loss(queries, keys, queue, temperature, patients, whose)

    monkeypatch.setattr(moco, "moco_loss", too_early)
    with pytest.raises(AssertionError):
        test_the_loss_sees_the_queue_as_it_was_before_its_batch(method, blobs)


def test_a_loss_that_forgets_patients_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(
        queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, *_: Tensor
    ) -> tuple[Tensor, Tensor]:
        return moco.moco_loss(queries, keys, queue, temperature)

    monkeypatch.setitem(globals(), "moco_loss", forgetful)
    with pytest.raises(AssertionError):
        test_keys_of_the_same_patient_and_empty_places_are_no_negatives_by_hand()


def test_the_queue_goes_on_where_it_was_after_a_round_and_a_restart(
    method: MoCoV2, blobs: Blobs, build: Build, tmp_path: Path
) -> None:
    for number in range(3):
        step(method, of(blobs(4), *range(4 * number, 4 * number + 4)), number)
    # Twelve keys went through six places.
    assert method.queue.patients.tolist() == [6, 7, 8, 9, 10, 11]
    save_tensors(tmp_path / "local.safetensors", method.local_state())
    restarted = build("moco_v2", queue=6, projection=8, momentum=0.9, momentum_batch=4, seed=5).train()
    restarted.load_state_dict(
        {**restarted.state_dict(), **load_tensors(tmp_path / "local.safetensors")[0], **method.shared_state()}
    )
    for each in (method, restarted):
        step(each, of(blobs(2), 90, 91), 7)
    assert method.queue.patients.tolist() == [90, 91, 8, 9, 10, 11]
    for name, value in method.local_state().items():
        assert torch.equal(restarted.state_dict()[name], value)


def test_the_first_batch_has_nothing_to_be_told_from(method: MoCoV2, blobs: Blobs) -> None:
    loss, metrics = method.loss(method.make_views(of(blobs(3), 0, 1, 2), torch.Generator().manual_seed(0)))
    loss.backward()
    assert loss.item() == 0.0 and float(metrics["anchors_left_out"]) == 1.0
    assert all(weight.grad is None or not weight.grad.any() for weight in method.parameters())


def test_batches_that_are_accumulated_enter_together(method: MoCoV2, blobs: Blobs) -> None:
    method.before_step(0.0)
    for start in (0, 2):
        method.loss(method.make_views(of(blobs(2), start, start + 1), torch.Generator().manual_seed(0)))
    assert method.queue.patients.tolist() == [NOBODY] * 6
    method.after_step(0.0, 4)
    assert method.queue.patients.tolist() == [0, 1, 2, 3, NOBODY, NOBODY]


def test_keys_of_a_step_that_failed_never_enter(method: MoCoV2, blobs: Blobs) -> None:
    method.loss(method.make_views(of(blobs(2), 50, 51), torch.Generator().manual_seed(0)))
    step(method, of(blobs(2), 0, 1), 0)
    assert method.queue.patients.tolist() == [0, 1, *[NOBODY] * 4]


def test_the_queue_stays_at_the_site_whatever_the_study_says(method: MoCoV2, build: Build) -> None:
    assert {key.split(".")[0] for key in method.local_state()} == {"key_encoder", "key_projector", "queue"}
    with pytest.raises(StudyError, match=r"method\.share 'queue' is no part of 'moco_v2'"):
        build("moco_v2", share=["encoder", "queue"])


def test_a_patients_code_is_the_same_when_the_site_starts_again(hospital: Callable[..., Path], tmp_path: Path) -> None:
    data = hospital("A", images=9, patients=3).parent / "manifest.csv"
    image = ImageConfig(modality="mri", size=32, channels=1)
    first = TensorStore.build(Manifest.open(data), image, tmp_path / "one")
    again = TensorStore.build(Manifest.open(data), image, tmp_path / "two")
    assert first.patients.tolist() == again.patients.tolist() == [0, 1, 2] * 3


def test_the_key_encoder_follows_by_hand(method: MoCoV2) -> None:
    online, keys = method.encoder.get_parameter("norm.bias"), method.key_encoder.get_parameter("norm.bias")
    heads = method.projector.get_parameter("0.bias"), method.key_projector.get_parameter("0.bias")
    by_hand, head = keys.detach().clone().double(), heads[1].detach().clone().double()
    for number, (progress, images) in enumerate([(0.0, 4), (0.5, 2), (1.0, 8)]):
        with torch.no_grad():
            online.fill_(number + 1.0)
            heads[0].fill_(-number)
        method.after_step(progress, images)
        momentum = 0.9 ** (images / 4)
        by_hand = momentum * by_hand + (1 - momentum) * (number + 1)
        head = momentum * head - (1 - momentum) * number
    torch.testing.assert_close(keys.double(), by_hand, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(heads[1].double(), head, rtol=1e-6, atol=1e-6)


def test_a_new_site_starts_with_the_encoder_it_received_and_an_empty_queue(method: MoCoV2) -> None:
    with torch.no_grad():
        for weight in method.encoder.parameters():
            weight.add_(1.0)
    method.start_local_parts()
    for name, value in method.encoder.state_dict().items():
        assert torch.equal(method.key_encoder.state_dict()[name], value)
    assert method.queue.patients.tolist() == [NOBODY] * 6


def test_no_gradient_enters_the_key_encoder_and_its_batch_norm_has_running_statistics(
    build: Build, blobs: Blobs
) -> None:
    method = build("moco_v2", encoder=EncoderConfig(name="resnet10t")).train()
    step(method, of(blobs(4), 0, 1, 2, 3), 0)
    views = method.make_views(of(blobs(4), 4, 5, 6, 7), torch.Generator().manual_seed(0))
    method.loss(views)[0].backward()
    key_encoder = method.get_submodule("key_encoder")
    assert all(weight.grad is None for weight in key_encoder.parameters())
    assert method.encoder.training and not key_encoder.training
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in method.encoder.parameters())


def test_keys_of_different_images_differ_from_the_first_step_of_every_round(build: Build, blobs: Blobs) -> None:
    # By statistics that start anew (0 and 1) their mean cosine is .99; by those of the batch about .5.
    method = build("moco_v2", encoder=EncoderConfig(name="resnet10t"), queue=8)
    assert isinstance(method, MoCoV2)
    method.train().start_local_parts()
    for round_ in range(2):
        for number in range(3):
            follow_batches(method, anew=number == 0)
            step(method, of(blobs(8), *range(8)), 10 * round_ + number)
            alike = method.queue.keys @ method.queue.keys.T
            assert float(alike.sum() - 8) / 56 < 0.8


def test_statistics_that_came_with_starting_weights_are_forgotten_at_the_first_step(build: Build, blobs: Blobs) -> None:
    method = build("moco_v2", encoder=EncoderConfig(name="resnet10t")).train()
    for layer in batch_norms(method.encoder):
        assert layer.running_mean is not None and layer.num_batches_tracked is not None
        layer.running_mean.fill_(9.0)
        layer.num_batches_tracked.fill_(100_000)
    method.start_local_parts()
    follow_batches(method, anew=True)
    step(method, of(blobs(8), *range(8)), 0)
    for own, key in zip(batch_norms(method.encoder), batch_norms(method.get_submodule("key_encoder")), strict=True):
        assert own.running_mean is not None and key.running_mean is not None
        torch.testing.assert_close(key.running_mean, own.running_mean)
