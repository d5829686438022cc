"""What an attack's figure means, beside the same attack on an overfitted model and beside the promise."""

import math
from typing import Any

from attacks.figures import AttackResult
from federation.privacy.config import PatientPrivacyConfig
from federation.study import Study


def promise_of(study: Study) -> dict[str, Any] | None:
    """Unit, epsilon, delta and the largest advantage that they permit; None where the study promises nothing."""
    privacy = study.privacy
    if privacy is None:
        return None
    epsilon, delta = privacy.epsilon, privacy.delta
    if not isinstance(privacy, PatientPrivacyConfig):
        # A site with and without one patient: take out the one, put in the other (group privacy of two).
        epsilon, delta = 2 * epsilon, delta * (1 + math.exp(min(epsilon, 700)))
    promised = {"unit": privacy.unit, "epsilon": privacy.epsilon, "delta": privacy.delta}
    return promised | {"largest_advantage": round(largest_advantage(epsilon, delta), 4)}


def largest_advantage(epsilon: float, delta: float) -> float:
    """(e^epsilon - 1 + 2 delta) / (e^epsilon + 1), at most 1: the most TPR - FPR of any test.

    Kairouz et al. 2015, theorem 2.1: both errors are then (1 - delta) / (1 + e^epsilon).
    """
    return min(1.0, math.tanh(epsilon / 2) + 2 * delta / (1 + math.exp(min(epsilon, 700))))


def verdict(
    figure: AttackResult | None, control: AttackResult | None, permitted: float | None, why: str = ""
) -> tuple[str, str]:
    """A word or two, and a sentence. An attack that fails on the overfitted model says nothing of the run's."""
    if why:
        return "not made", f"{why}."
    if figure is None:
        return "not made", "not made: too few patients, or too few sites."
    if permitted is not None and figure.low > permitted:
        return "beyond the promise", "more than epsilon permits: the promise does not hold."
    if figure.low > 0:
        return "succeeds", "succeeds: better than guessing."
    if control is None or control.low <= 0:
        return "too weak here", "this attack is too weak here: it fails on an overfitted model too, so it says nothing."
    return "nothing found", f"found nothing; an advantage of up to {max(figure.high, 0):.2f} is not ruled out."
