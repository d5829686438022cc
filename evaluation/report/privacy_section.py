"""What the report says of a private study: what was promised and spent, in numbers and in words, and what is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.run_folder import RunFolder

_UNITS = {
    "patient": "one patient with all images, over the whole study: noise at the sites, in every training step",
    "site": "one hospital with all it has, over the whole study",
}


@dataclass(frozen=True)
class PrivacySection:
    """As printed: facts by name, what epsilon means, what it does not cover, and what is therefore not on this page."""

    facts: list[tuple[str, str]]
    meaning: list[str]
    not_covered: list[str]
    withheld: list[str]


def privacy_section(folder: RunFolder) -> PrivacySection | None:
    """The section of a run that has a ``privacy.json``; None for the others."""
    record = folder.privacy
    if not record:
        return None
    withheld = [*map(str, record["withheld"]), *_others(folder)]
    return PrivacySection(_facts(record), [*map(str, record["meaning"])], [*map(str, record["not_covered"])], withheld)


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    what = _UNITS[record["unit"]]
    if record["unit"] == "site":
        what += ": noise by the sites themselves" if record["secure_aggregation"] else ": noise at the server"
    return [
        ("Protected", what),
        (
            "Promised",
            f"epsilon {record['epsilon']:g} at delta {record['delta']:g}; planned for {record['planned']:.2f}",
        ),
        ("Spent", _spent(record)),
        ("Noise", _noise(record)),
    ]


def _spent(record: Mapping[str, Any]) -> str:
    if record["spent"] is None:
        return "stands in each site's own ledger, which stays there (fedpretext privacy)"
    whose, several = record["spent_by"], record["ledgers"] > 1
    said = f"epsilon {record['spent']:.2f} by the ledger of {whose}{', the largest' if several else ''}"
    if record["trainings"] > 1:
        said += f"; of one training: this run has {record['trainings']} (folds and seeds), and giving away more adds up"
    over = record["spent"] > record["planned"] + 0.005
    return f"{said}; more than planned, as attempts that were cut off are charged too" if over else said


def _noise(record: Mapping[str, Any]) -> str:
    """The noise multiplier, with what it is relative to."""
    per = f"{record['noise']:.2f} times the longest contribution ({record['clip']:g})"
    if record["unit"] == "site":
        return f"standard deviation {per} on the sum of updates, in each of {record['steps']} rounds"
    return (
        f"standard deviation {per} in each of {record['steps']} steps of a site, in which a patient takes part with "
        f"probability {record['rate']:.3g}"
    )


def _others(folder: RunFolder) -> list[str]:
    shown = [arm.short for arm in folder.arms if arm.kind in ("local-only", "centralised")]
    said = "The noise is in the difference to them, beside what else differs; no arm here is federated without it."
    return [f"No noise and no promise: {', '.join(shown)}. {said}"] if shown else []
