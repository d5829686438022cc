"""One step of DP-SGD with patients as units: drawn patients, clipped gradients, noise, AdamW.

Abadi et al. 2016, algorithm 1, over patients as in McMahan et al. 2018: each patient takes part by a throw of its own;
the gradients are clipped one patient at a time, summed, noised and divided by the number of patients *expected*. That
number, the probability, the clip and the noise are the study's, the same at every site, so that nothing of a step but
the noised sum depends on the site's patients: a step in which nobody takes part is noise alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.training.batches import BatchReader
from client.training.optimiser import laid_out_like
from client.training.round import Learner, shared_parameters
from federation.privacy import noise
from federation.privacy.config import PatientPrivacyConfig
from imaging.store import TensorStore
from ssl_methods.method import Batch
from ssl_methods.per_sample.sample_gradients import clipped_sum

_MARGIN = 1e-4
"""Gradients are clipped to so much less than the noise is made for: a norm in float32 is true to about 1e-5."""


@dataclass
class StepFacts:
    """What a round saw; it tells of single patients and never leaves the site."""

    steps: int = 0
    patients: int = 0
    images: int = 0
    clipped: int = 0
    broken: int = 0
    loss: float = 0.0

    def line(self) -> str:
        """The loss and the share of clipped patients so far, for this site's own screen."""
        means = self.means()
        return f", loss {means['loss']:.4g}, {means['clipped']:.0%} clipped" if "loss" in means else ""

    def means(self) -> dict[str, float]:
        """Means a step or a patient who took part; without a loss where nobody did."""
        means = {"patients_a_step": self.patients / max(1, self.steps), "images_seen": float(self.images)}
        if not self.patients:
            return means
        counted = max(1, self.patients - self.broken)
        shares = {"clipped": self.clipped / self.patients, "left_out": self.broken / self.patients}
        return {"loss": self.loss / counted, **means, **shares}


class PatientSampler:
    """Draws a step's patients and their images, by the operating system's randomness and never by a seed."""

    def __init__(self, store: TensorStore, privacy: PatientPrivacyConfig, batch: int) -> None:
        codes, patients = torch.unique(torch.from_numpy(store.patients), return_inverse=True)
        self.patients = len(codes)
        self._images = [(patients == number).nonzero()[:, 0] for number in range(self.patients)]
        self._privacy, self._batch = privacy, batch

    def draw(self, generator: torch.Generator) -> list[list[Tensor]]:
        """The images of each patient who takes part, in chunks of at most ``training.batch`` images.

        A patient's images are never in two chunks, or there would be two norms to clip.
        """
        chunks: list[list[Tensor]] = []
        room = 0
        for number in noise.poisson_sample(self.patients, self._privacy.rate).tolist():
            images = self._images[number]
            order = torch.randperm(len(images), generator=generator)
            chosen = images[order[: self._privacy.images_per_patient]]
            if len(chosen) > room:
                chunks.append([])
                room = self._batch
            chunks[-1].append(chosen)
            room -= len(chosen)
        return chunks


class PrivateStep:
    """Steps of one round. ``deviation``: of the noise, relative to the clip (the noise multiplier sigma)."""

    def __init__(
        self, learner: Learner, store: TensorStore, privacy: PatientPrivacyConfig, deviation: float, batch: int
    ) -> None:
        self.facts, method = StepFacts(), learner.method
        self._method, self._algorithm, self._optimiser = method, learner.algorithm, learner.optimiser
        self._privacy, self._deviation, self._device = privacy, deviation, learner.device
        self._reader = BatchReader(store, method.config.partner, learner.device)
        self._sampler = PatientSampler(store, privacy, batch)
        self._shared = shared_parameters(method)
        self._received = {name: p.detach().clone() for name, p in self._shared.items()}

    def take(self) -> None:
        """Draw patients and move the weights once, whoever was drawn."""
        sums = self._clipped_sums()
        self._set_gradients(sums)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.facts.steps += 1

    def _clipped_sums(self) -> dict[str, Tensor]:
        """The sum of the drawn patients' clipped gradients, by parameter; empty where nobody was drawn."""
        sums: dict[str, Tensor] = {}
        # Adding one patient shifts a stream that a seed fixes, and with it the views of all others in a batch: so there
        # is no seed that anybody could know, and a new one in every step.
        generator = noise.secure_generator()
        for batch, groups, count in self._batches(generator):
            views = self._method.make_views(batch, generator)
            found = clipped_sum(self._method, views, groups, count, self._privacy.clip * (1 - _MARGIN))
            for name, gradient in found.gradients.items():
                sums[name] = sums[name].add_(gradient) if name in sums else gradient
            finite = found.norms.isfinite()
            self.facts.patients += count
            self.facts.images += len(groups)
            self.facts.clipped += int((found.norms > self._privacy.clip * (1 - _MARGIN)).sum())
            self.facts.broken += int((~finite).sum())
            self.facts.loss += float(found.losses[finite & found.losses.isfinite()].sum())
        return sums

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Batch, Tensor, int]]:
        for chunk in self._sampler.draw(generator):
            sizes = torch.tensor([len(images) for images in chunk])
            groups = torch.repeat_interleave(torch.arange(len(chunk)), sizes).to(self._device)
            yield self._reader.read(torch.cat(chunk), generator), groups, len(chunk)

    def _set_gradients(self, sums: dict[str, Tensor]) -> None:
        """Noise for every trained parameter, reached by a gradient or not: which ones move must tell nothing."""
        expected, std = self._privacy.patients_per_step, self._deviation * self._privacy.clip
        for name, parameter in self._method.named_parameters():
            if parameter.requires_grad:
                total = sums.get(name, torch.zeros_like(parameter))
                parameter.grad = laid_out_like(parameter, noise.noised(total, std) / expected)
        self._add_penalty()

    def _add_penalty(self) -> None:
        """The algorithm's own term: a function of weights that are out already, so that it needs no noise."""
        penalty = self._algorithm.penalty(self._shared, self._received)
        if penalty is None:
            return
        parameters: list[nn.Parameter] = list(self._shared.values())
        for parameter, gradient in zip(parameters, torch.autograd.grad(penalty, parameters), strict=True):
            assert parameter.grad is not None
            parameter.grad += gradient
