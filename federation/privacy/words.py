"""What an epsilon means, and what it does not cover, in words for people who have to decide."""

import math
from typing import TYPE_CHECKING

from federation.privacy.config import PatientPrivacyConfig
from foundation.errors import StudyError

if TYPE_CHECKING:
    from federation.study import Study

_WEAK = 10.0


def best_guess(epsilon: float, delta: float) -> float:
    """How often somebody who tosses a fair coin at first can be right, at most, about one unit's taking part.

    delta + (1 - delta) e^eps / (1 + e^eps): the test with the largest advantage that (epsilon, delta) permits (Kairouz,
    Oh and Viswanath 2015), as a share of right answers.
    """
    return delta + (1 - delta) / (1 + math.exp(-epsilon))


def meaning(epsilon: float, delta: float, unit: str = "patient") -> list[str]:
    """What the promise says, a sentence a line. ``unit``: whose presence is hidden."""
    if epsilon < 0 or not 0 <= delta < 1:
        raise StudyError(f"epsilon {epsilon} and delta {delta}: epsilon is 0 or more, delta a probability")
    whole = "with all images" if unit == "patient" else "with all its patients"
    lines = [
        f"Whatever anybody believed about whether one {unit} took part, {whole}, what leaves changes the odds by a "
        f"factor of at most {_factor(epsilon)}; with a probability of at most {delta:g} that does not hold.",
        f"Who guesses at 50 : 50 whether a certain {unit} took part is right {_how_often(epsilon, delta)} "
        "after seeing everything that leaves, and knowing everybody else's images.",
    ]
    if epsilon > _WEAK:
        lines.append(
            "That is a weak bound against somebody who knows everything else; attacks that were tried "
            "say more about this study than the figure does."
        )
    return lines


def not_covered(study: "Study") -> list[str]:
    """What a private study's epsilon does not cover, a thing a line; nothing for a study without privacy."""
    privacy = study.privacy
    if privacy is None:
        return []
    by_patient = isinstance(privacy, PatientPrivacyConfig)
    lines = [
        "settings that were chosen by trying them on the same patients without privacy: every such trial tells of them",
        "labels, and whatever is trained on them afterwards (probes, fine-tuning, tests), at a site or elsewhere",
        "a person who was treated at two sites: each site's promise is about its own patients, and the two add up",
        "other federations on the same patients whose site files name another ledger: only one ledger adds up",
        "when messages come, how long they take, and that they come: chance, not noise, protects those",
    ]
    if by_patient:
        lines.append("that the site takes part, and what all its patients have in common")
        lines.append("images of one person under two patient numbers: they count as two patients")
        return lines
    sees = "nobody does, as long as fewer than the threshold's sites work together; sites that do know their own noise"
    sees = "the server does" if study.secure_aggregation is None else sees
    lines.append("a single site's own update before the noise, to whoever sees it: " + sees)
    lines.append("single patients beyond their site: they are hidden as their whole site is, and no better")
    return lines


def _factor(epsilon: float) -> str:
    factor = math.exp(min(epsilon, 20.0))
    if factor < 100:
        return f"{factor:.3g}"
    return f"{factor:,.0f}" if factor < 1e6 else f"e^{epsilon:.3g}, more than a million"


def _how_often(epsilon: float, delta: float) -> str:
    hundredths = math.ceil(best_guess(epsilon, delta) * 10_000)  # upwards: it is a bound
    return f"in at most {hundredths / 100:.2f} % of cases" if hundredths < 10_000 else "perhaps in every case"
