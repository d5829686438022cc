"""Tell from which site an image comes, by the updates of one step at each site (source inference, Hu et al. 2021).

The attacker is a server that sees single updates and holds an image that it knows one of the sites to have trained on.
What it finds is of two sorts that this figure does not tell apart: the image's own share of the update, and what all
images of a site have in common.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from attacks.crowd import Patient
from attacks.figures import AttackResult, guesses
from attacks.updates import Defence, Target, gradient
from foundation.progress import track
from foundation.randomness import torch_generator


def by_site(patients: Sequence[Patient], most: int) -> list[list[Patient]]:
    """Patients of each site, as many of one site as of another and at most ``most``; sites with fewer than 2 left out.

    With equally many of each, no way of guessing is right more often than 1 / sites by chance.
    """
    found: dict[str, list[Patient]] = {}
    for patient in patients:
        found.setdefault(patient.site, []).append(patient)
    large = [found[site] for site in sorted(found) if len(found[site]) >= 2]
    count = min([most, *(len(own) for own in large)])
    return [own[:count] for own in large]


def tell_sites(target: Target, groups: Sequence[Sequence[Patient]], step: int, defence: Defence) -> AttackResult | None:
    """How often the site is guessed right; None with fewer than two sites.

    A site's update is of a step on the first images of its patients in ``groups``, and on more of their images
    until they are ``step``. The attacker knows the step's random choices, as in ``inversion``, and so the gradient that
    an image would have given; guessed is the site whose update has the largest cosine with it, both less the mean
    update of the sites.
    """
    if len(groups) < 2:
        return None
    target.method.to(target.device).train()
    target.method.before_step(0.0)

    def of(places: Sequence[int]) -> Tensor:
        """The mean gradient of a patient's images, a view each."""
        return torch.stack([_gradient(target, place) for place in places]).mean(dim=0)

    noise = torch_generator(target.settings.seed, "site noise")
    sent = []
    for own in track(groups, "updates of sites"):
        gradients = [of(places) for places in _step(own, step)]
        sent.append(defence.sent(gradients, noise) / len(gradients))
    updates = torch.stack(sent)  # [S, P]
    middle = updates.mean(dim=0)
    right = 0
    for site, own in enumerate(groups):
        for patient in own:
            seen = of(patient.images[:1]) - middle
            right += int(functional.cosine_similarity(updates - middle, seen[None]).argmax() == site)
    return guesses(right, sum(map(len, groups)), 1 / len(groups))


def _gradient(target: Target, place: int) -> Tensor:
    views = target.views(place, torch_generator(target.settings.seed, "site step", place))
    return gradient(target.method, views, target.settings)


def _step(patients: Sequence[Patient], images: int) -> list[list[int]]:
    """The images of each patient in a step of at least an image each: one each in turn until there are enough."""
    taken = [[patient.images[0]] for patient in patients]
    for turn in range(1, max(len(patient.images) for patient in patients)):
        for own, patient in zip(taken, patients, strict=True):
            if turn < len(patient.images) and sum(map(len, taken)) < images:
                own.append(patient.images[turn])
    return taken
