"""The update of one step as a site sends it: a gradient, clipped and noised where the study promises privacy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacks.scores import coupled
from attacks.settings import AttackSettings
from client.training.batches import BatchReader
from federation.privacy.config import PatientPrivacyConfig
from federation.privacy.plan import plan_of
from federation.study import Study
from foundation.randomness import seeded_torch
from imaging.store import TensorStore
from ssl_methods.method import Method, Views


@dataclass(frozen=True)
class Defence:
    """What is done to a step's gradient before it leaves: clipping by patient to L2 norm ``clip``, and noise.

    noise: standard deviation of the noise on the sum, over ``clip``; None, None: nothing is done.
    """

    clip: float | None = None
    noise: float | None = None

    def sent(self, gradients: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """The sum of the patients' gradients ``[P]``, as the site sends it but for a public factor.

        The noise comes from a seed: it hides nobody, as these images have not left the machine, and an attack
        measured again has to give the same figure.
        """
        if self.clip is None or self.noise is None:
            return torch.stack(list(gradients)).sum(dim=0)
        total = torch.zeros_like(gradients[0])
        for gradient in gradients:
            total += gradient * min(1.0, self.clip / max(float(gradient.norm()), 1e-12))
        return total + self.noise * self.clip * torch.randn(total.shape, generator=generator).to(total.device)


def defence_of(study: Study) -> Defence:
    """What the study does to a single site's step.

    Privacy by site is not among it: the server that adds that noise sees the update without it.
    """
    if not isinstance(study.privacy, PatientPrivacyConfig):
        return Defence()
    plan = plan_of(study)
    assert plan is not None
    return Defence(study.privacy.clip, plan.noise)


def why_not(study: Study, method: Method) -> str:
    """Why there is no gradient of one image to attack; "" where there is one."""
    if study.secure_aggregation is not None:
        return "not made: secure aggregation shows nobody a single site's update"
    if coupled(method) or method.batch_normalised():
        return "not made: this loss couples images, so a step of one image has no update of its own"
    return ""


@dataclass(frozen=True)
class Target:
    """What is attacked: the model before the step, the images, and where and how it is attacked."""

    method: Method
    store: TensorStore
    settings: AttackSettings
    device: torch.device

    def views(self, place: int, generator: torch.Generator) -> Views:
        """Views of one image as a training step makes them."""
        batch = BatchReader(self.store, self.method.config.partner, self.device).read(torch.tensor([place]), generator)
        return self.method.make_views(batch, generator)


def gradient(method: Method, views: Views, settings: AttackSettings, differentiable: bool = False) -> Tensor:
    """``[P]``: the gradient of the loss by all trained weights; differentiable by the views where asked."""
    weights = [p for p in method.parameters() if p.requires_grad]
    with seeded_torch(settings.seed, "step"), _twice_differentiable():
        loss = method.image_losses(views).mean()
        found = torch.autograd.grad(loss, weights, create_graph=differentiable, allow_unused=True)
    parts = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    return torch.cat([part.flatten() for part in parts])


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention by plain products: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
