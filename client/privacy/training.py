"""One round of a study with privacy by patient: a fixed number of noised steps, whatever the site has."""

import time

import torch
from torch import Tensor

from client.privacy.step import PrivateStep
from client.training.optimiser import build_optimiser, restore, set_rates, state_of
from client.training.round import Learner, RoundOutcome, TrainingContext, check_weights, feature_diagnostics_of
from federation.privacy.config import PatientPrivacyConfig
from federation.privacy.plan import plan_of
from foundation.progress import bar


def train_private_round(context: TrainingContext, round_: int, optimiser_state: dict[str, Tensor]) -> RoundOutcome:
    """Train the method in place for one round under the study's patient-level privacy (client/privacy/step.py).

    Drawing patients, images, views and noise is the operating system's chance: the study's seed has no part in it,
    and no two attempts are alike. The caller has charged the round's steps to the ledger before. The metrics tell of
    single patients and are the site's own. A loss that is not finite stops nothing, as stopping would tell of it: what
    is not finite is left out of the sum. TrainingError when the weights are not finite.
    """
    study, method, site, device = context.study, context.method, context.site, context.device
    privacy, plan, steps = study.privacy, plan_of(study), study.training.steps
    assert isinstance(privacy, PatientPrivacyConfig) and plan is not None and steps is not None  # rules.py
    torch.set_num_threads(study.training.threads)
    method.to(device).train()
    optimiser = build_optimiser(method, study.training)
    restore(optimiser, method, optimiser_state, device)
    learner = Learner(method, context.algorithm, optimiser, device)
    step = PrivateStep(learner, context.store, privacy, plan.noise, study.training.batch)
    expected = privacy.patients_per_step * privacy.images_per_patient  # public, as the number drawn is not
    started = time.perf_counter()
    title = f"{site}, round {round_}/{study.rounds.count}"
    with bar(title, steps, "images") as line:
        for number in range(steps):
            progress = (round_ - 1 + (number + 0.5) / steps) / study.rounds.count
            rate = set_rates(optimiser, study.training, method, progress, expected)
            method.before_step(progress)
            step.take()
            method.after_step(progress, expected)
            line.advance(1, expected)
            line.describe(f"{title}{step.facts.line()}")
    check_weights(method, site, round_, "lower training.learning_rate")
    metrics = step.facts.means() | feature_diagnostics_of(context, round_)
    own = {"learning_rate": rate, "steps": float(steps), "seconds": time.perf_counter() - started}
    return RoundOutcome(metrics | own, state_of(optimiser, method))
