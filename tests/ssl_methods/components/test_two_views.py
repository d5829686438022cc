"""The methods that compare two views: over every kind of encoder, with partners, and that they learn."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
NAMES = ["simclr", "moco_v2", "moco_v3", "byol", "simsiam", "barlow_twins", "vicreg"]
RESNET = EncoderConfig(name="resnet10t")
SWIN = EncoderConfig(name="swin_tiny_patch4_window7_224", patch_size=2, depth=1, width=12, heads=1)


@pytest.mark.parametrize("encoder", [RESNET, SWIN], ids=["resnet", "swin"])
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_that_is_trained_gets_a_gradient(
    name: str, encoder: EncoderConfig, build: Build, blobs: Blobs
) -> None:
    method = build(name, encoder=encoder).train()
    for start in (0, 4):  # the second time a queue has something to compare with
        batch = replace(blobs(4), patients=torch.arange(start, start + 4))
        method.before_step(0.0)
        loss, _ = method.loss(method.make_views(batch, torch.Generator().manual_seed(start)))
        method.zero_grad()
        loss.backward()
        method.after_step(0.0, 4)
    assert torch.isfinite(loss)
    trained = {key: weight for key, weight in method.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None and bool(torch.isfinite(weight.grad).all()) for weight in trained.values())
    assert any(
        bool(weight.grad.any())
        for key, weight in trained.items()
        if key.startswith("encoder.") and weight.grad is not None
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_second_view_is_of_the_partner(
    name: str, build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = build(name, positives="patient"), blobs(4, per_patient=2)
    assert method.config.partner == "patient"
    monkeypatch.setattr(method.augmentation, "strong", lambda images, generator: images)
    batch = replace(batch, partners=batch.images[[1, 0, 3, 2]])
    views = method.make_views(batch, torch.Generator().manual_seed(0))
    assert torch.equal(views["first"], batch.images)
    assert torch.equal(views["second"], batch.images[[1, 0, 3, 2]])


@pytest.mark.parametrize(
    ("name", "options", "lowest"),
    [
        ("moco_v2", {"queue": 8, "momentum": 0.5}, 0.0),
        ("moco_v3", {"momentum": 0.9}, 0.0),
        ("byol", {}, 0.0),
        ("simsiam", {"projection": 64}, -1.0),
        ("barlow_twins", {"projection": 16}, 0.0),
        ("vicreg", {"projection": 16}, 0.0),
    ],
)
def test_a_small_batch_is_learned(
    name: str, options: dict[str, Any], lowest: float, build: Build, blobs: Blobs
) -> None:
    method = build(name, **options).train()
    views = method.make_views(blobs(8), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    losses = []
    for _ in range(30):
        method.before_step(0.0)
        loss, metrics = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(0.0, 8)
        losses.append(loss.item() - lowest)
        assert all(not value.requires_grad for value in metrics.values())
    assert losses[-1] < 0.6 * losses[1]  # the first loss of a queue is 0
