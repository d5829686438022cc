"""What keeps BYOL and SimSiam from giving all images one answer: each is taken away and its loss is seen."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ssl_methods.components.similarity import unit
from ssl_methods.diagnostics import collapsing, feature_diagnostics, feature_std
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method
from ssl_methods.non_contrastive import simsiam

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
SMALL_VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2, width=48, heads=3)


@dataclass(frozen=True)
class Outcome:
    """After 100 steps: what the collapse watch saw every 20 steps, and what the loss compares of a last batch."""

    watched: list[dict[str, float]]
    output: Tensor

    @property
    def std(self) -> float:
        """1 when all directions are used alike."""
        return feature_std(self.output) * self.output.shape[1] ** 0.5

    @property
    def alarms(self) -> list[int]:
        """The looks at which the alarm rang."""
        return [look for look in range(len(self.watched)) if collapsing(self.watched[: look + 1])]


def train(method: Method, batch: Batch, optimiser: torch.optim.Optimizer) -> Outcome:
    generator, watched = torch.Generator().manual_seed(0), []
    method.train()
    for step in range(100):
        method.before_step(0.0)
        loss, _ = method.loss(method.make_views(batch, generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(0.0, len(batch.images))
        if step % 20 == 19:
            watched.append(feature_diagnostics(method, batch.images, torch.Generator().manual_seed(1)))
    views = method.make_views(batch, torch.Generator().manual_seed(5))
    with torch.no_grad():
        output = method.output(features(method.encoder, views["first"]))
    assert output is not None
    return Outcome(watched, output)


def byol(build: Build, blobs: Blobs, predictor: bool = True) -> Outcome:
    method = build("byol", encoder=SMALL_VIT, projection=64, momentum=0.9, momentum_batch=16)
    if not predictor:
        method.predictor = nn.Identity()
    return train(method, blobs(16), torch.optim.AdamW(method.parameters(), 2e-3))


def simsiam_(build: Build, blobs: Blobs, predictor: bool = True) -> Outcome:
    method = build("simsiam", encoder=SMALL_VIT, projection=64)
    if not predictor:
        method.predictor = nn.Identity()
    # The paper's optimiser: AdamW gets there too, but takes several times the steps.
    optimiser = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    return train(method, blobs(16), optimiser)


def with_gradient(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative cosine without the stop-gradient."""
    return -(unit(prediction) * unit(target)).sum(dim=-1).mean()


def test_byol_without_its_predictor_collapses_and_the_alarm_fires(build: Build, blobs: Blobs) -> None:
    whole, without = byol(build, blobs), byol(build, blobs, predictor=False)
    assert not whole.alarms
    assert without.alarms
    assert without.std < 0.25 < 0.5 < whole.std


@pytest.mark.slow
def test_simsiam_without_predictor_or_stop_gradient_collapses(
    build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm at the projector's end holds every channel's deviation up: the spread falls little, the rank a lot."""
    whole = simsiam_(build, blobs)
    without_predictor = simsiam_(build, blobs, predictor=False)
    monkeypatch.setattr(simsiam, "negative_cosine", with_gradient)
    without_stop = simsiam_(build, blobs)
    assert not whole.alarms
    for broken in (without_predictor, without_stop):
        assert broken.std < whole.std - 0.03
        assert broken.alarms
