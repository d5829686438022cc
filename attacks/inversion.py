"""Recover an image from the update of one step on it, by matching gradients (Zhu et al. 2019; Geiping et al. 2020).

The attacker is a server that is curious, or whoever reads what a site sends: it knows the weights before the step and
the step's random choices (crop, mask), which in a study without privacy follow from the study's public seed. It looks
for the view whose gradient has the update's direction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from attacks.figures import AttackResult, guesses
from attacks.settings import AttackSettings
from attacks.updates import Defence, Target, gradient
from foundation.progress import track
from foundation.randomness import torch_generator
from ssl_methods.method import Method, Views


def invert(target: Target, places: Sequence[int], defence: Defence) -> AttackResult:
    """How often the image recovered from a step is most like the true one among ``settings.crowd`` images.

    places: an image each of as many patients; the first ``settings.targets`` are attacked in turn, all others of the
    first ``crowd`` stand beside each. Chance is 1 / crowd; interval: exact. ``more``: the median correlation of the
    recovered view with the true one, and with the others, which is the floor: images of one kind are alike.
    """
    method, settings = target.method, target.settings
    method.to(target.device).train()
    method.before_step(0.0)
    shown = list(places[: settings.crowd])
    right, own, rest = 0, [], []
    for number, place in enumerate(track(shown[: settings.targets], "inverting updates")):
        views = target.views(place, _chosen(settings, number))
        noise = torch_generator(settings.seed, "noise", number)
        seen = defence.sent([gradient(method, views, settings)], noise)
        name = images_in(views, method)[0]
        found = _search(method, views, seen, settings, number)[name]
        crowd = [target.views(each, _chosen(settings, number))[name] for each in shown]
        alike = torch.stack([correlation(found, each) for each in crowd])
        right += int(alike.argmax() == number)
        own.append(float(alike[number]))
        rest += [float(value) for each, value in enumerate(alike) if each != number]
    figure = guesses(right, min(settings.targets, len(shown)), 1 / len(shown))
    figure.more.update({"correlation": _median(own), "floor": _median(rest)})
    return figure


def _chosen(settings: AttackSettings, number: int) -> torch.Generator:
    """The step's random choices, the same for every image that is compared."""
    return torch_generator(settings.seed, "step", number)


def images_in(views: Views, method: Method) -> list[str]:
    """The views that are images: what the attacker does not know."""
    axes, channels = 1 + method.image.dimensions, method.image.channels
    continuous = {name: value for name, value in views.items() if value.is_floating_point() and value.ndim > axes}
    return [name for name, value in continuous.items() if value.shape[-axes] == channels]


def _search(method: Method, views: Views, seen: Tensor, settings: AttackSettings, number: int) -> Views:
    """The views found; of several starts the one whose gradient comes nearest, which the attacker can tell."""
    best, nearest = dict(views), float("inf")
    for restart in range(settings.restarts):
        found, distance = _descend(
            method, views, seen, settings, torch_generator(settings.seed, "start", number, restart)
        )
        if distance < nearest:
            best, nearest = found, distance
    return best


def _descend(
    method: Method, views: Views, seen: Tensor, settings: AttackSettings, generator: torch.Generator
) -> tuple[Views, float]:
    """Adam on the sign of 1 - cosine of the gradients, plus total variation (Geiping et al. 2020, eq. 4)."""
    unknown = {
        name: torch.randn(views[name].shape, generator=generator).to(seen.device).requires_grad_()
        for name in images_in(views, method)
    }
    optimiser = torch.optim.Adam(unknown.values(), lr=settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    distance = torch.tensor(float("inf"))
    for _ in range(settings.steps):
        guess = gradient(method, views | unknown, settings, differentiable=True)
        distance = 1 - functional.cosine_similarity(guess, seen, dim=0)
        rough = sum((variation(each) for each in unknown.values()), torch.zeros((), device=seen.device))
        total = distance + settings.smooth * rough
        for each, slope in zip(unknown.values(), torch.autograd.grad(total, list(unknown.values())), strict=True):
            each.grad = slope.sign()
        optimiser.step()
        schedule.step()
    return views | {name: each.detach() for name, each in unknown.items()}, float(distance.detach())


def variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours along the last two axes."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's, over all values."""
    one, other = (each.flatten() - each.mean() for each in (first, second))
    return functional.cosine_similarity(one, other, dim=0)


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values).median())
