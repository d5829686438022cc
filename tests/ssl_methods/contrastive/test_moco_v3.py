"""MoCo v3: contrast within a batch, a frozen patch projection, and how the key encoder follows."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_methods.contrastive import moco_v3
from ssl_methods.contrastive.moco_v3 import MoCoV3, key_contrast
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method

Build = Callable[..., Method]
Blobs = Callable[..., Batch]


def slow_contrast(queries: Tensor, keys: Tensor, temperature: float, patients: list[int]) -> float:
    """Algorithm 1's ``ctr``, query by query, in Python numbers; keys of one's own patient left out."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    losses = []
    for i, query in enumerate(queries.tolist()):
        score = [math.exp(cosine(query, key) / temperature) for key in keys.tolist()]
        others = [score[j] for j in range(len(score)) if patients[j] != patients[i]]
        if others:
            losses.append(-math.log(score[i] / (score[i] + sum(others))))
    return 2 * temperature * sum(losses) / len(losses) if losses else 0.0


@given(patients=st.lists(st.integers(0, 3), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_agrees_with_the_algorithm(patients: list[int], seed: int) -> None:
    queries, keys = torch.randn(2, len(patients), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss, counted = key_contrast(queries, keys, 0.3, torch.tensor(patients))
    assert loss.item() == pytest.approx(slow_contrast(queries, keys, 0.3, patients), rel=1e-10)
    assert counted.tolist() == [len(set(patients)) > 1] * len(patients)


def test_the_gradient_is_the_slow_references_by_differences() -> None:
    queries, keys = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    queries.requires_grad_()
    key_contrast(queries, keys, 0.2, torch.tensor([0, 0, 1, 2]))[0].backward()
    assert queries.grad is not None
    for place in ((0, 1), (3, 2)):
        moved = []
        for step in (1e-6, -1e-6):
            near = queries.detach().clone()
            near[place] += step
            moved.append(slow_contrast(near, keys, 0.2, [0, 0, 1, 2]))
        assert queries.grad[place].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5)


def test_images_of_one_patient_by_hand() -> None:
    views = torch.eye(2)[[0, 0, 1]]  # images 0 and 1 look alike and are of one patient
    loss, _ = key_contrast(views, views, 1.0, torch.tensor([7, 7, 9]))
    by_hand = 2 * (2 * (math.log(math.e + 1) - 1) + (math.log(math.e + 2) - 1)) / 3
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_a_loss_without_its_factor_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(queries: Tensor, keys: Tensor, temperature: float, patients: Tensor) -> tuple[Tensor, Tensor]:
        loss, counted = moco_v3.key_contrast(queries, keys, temperature, patients)
        return loss / (2 * temperature), counted

    monkeypatch.setitem(globals(), "key_contrast", plain)
    with pytest.raises(AssertionError):
        test_images_of_one_patient_by_hand()


@pytest.fixture
def method(build: Build) -> MoCoV3:
    made = build("moco_v3", momentum=0.9, momentum_batch=8)
    assert isinstance(made, MoCoV3)
    return made.train()


def test_each_views_queries_meet_the_other_views_keys(method: MoCoV3, blobs: Blobs) -> None:
    views = method.make_views(blobs(4, per_patient=2), torch.Generator().manual_seed(0))
    queries = [method.predictor(method.projector(method.encoder(views[view]))) for view in ("first", "second")]
    keys = [method.key_projector(method.key_encoder(views[view])) for view in ("first", "second")]
    pairs = [(queries[0], keys[1]), (queries[1], keys[0])]
    expected = sum(slow_contrast(q.detach().double(), k.double(), 0.2, [0, 0, 1, 1]) for q, k in pairs)
    assert method.loss(views)[0].item() == pytest.approx(expected, rel=1e-4)


def test_no_gradient_enters_the_key_encoder_or_the_patch_projection(method: MoCoV3, blobs: Blobs) -> None:
    method.loss(method.make_views(blobs(4), torch.Generator().manual_seed(0)))[0].backward()
    still = {name for name, weight in method.named_parameters() if weight.grad is None}
    moving = {name for name, weight in method.named_parameters() if weight.grad is not None}
    assert {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"} <= still
    assert all(name.startswith(("key_", "encoder.patch_embed", "encoder.pos_embed")) for name in still)
    assert {name.split(".")[0] for name in moving} == {"encoder", "projector", "predictor"}


def test_the_frozen_projection_is_still_sent_and_the_key_encoder_is_not(method: MoCoV3) -> None:
    assert "encoder.patch_embed.proj.weight" in method.shared_state()
    assert {key.split(".")[0] for key in method.local_state()} == {"key_encoder", "key_projector"}


@pytest.mark.parametrize(("options", "trained"), [({"freeze_patches": False}, True), ({}, False)])
def test_the_study_says_whether_the_projection_is_frozen(options: dict[str, bool], trained: bool, build: Build) -> None:
    assert build("moco_v3", **options).encoder.get_parameter("patch_embed.proj.weight").requires_grad == trained


def test_other_encoders_are_trained_whole(build: Build) -> None:
    method = build("moco_v3", encoder=EncoderConfig(name="resnet10t"))
    assert all(weight.requires_grad for weight in method.encoder.parameters())


def test_the_key_encoder_follows_by_hand(method: MoCoV3) -> None:
    online, keys = method.encoder.get_parameter("norm.bias"), method.key_encoder.get_parameter("norm.bias")
    by_hand = keys.detach().clone().double()
    for number, (progress, images) in enumerate([(0.0, 8), (0.25, 4), (0.5, 16)]):
        with torch.no_grad():
            online.fill_(number + 1.0)
        method.after_step(progress, images)
        momentum = (1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2) ** (images / 8)
        by_hand = momentum * by_hand + (1 - momentum) * (number + 1)
    torch.testing.assert_close(keys.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_a_new_site_starts_with_the_network_it_received(method: MoCoV3) -> None:
    with torch.no_grad():
        for weight in (*method.encoder.parameters(), *method.projector.parameters()):
            weight.add_(1.0)
    method.start_local_parts()
    for online, keys in ((method.encoder, method.key_encoder), (method.projector, method.key_projector)):
        for name, value in online.state_dict().items():
            assert torch.equal(keys.state_dict()[name], value)
