"""What a model card says of privacy: what was promised and spent for whom, what it means and what it leaves out."""

from collections.abc import Mapping
from typing import Any

from evaluation.export.markdown import plain
from evaluation.export.source import Source

_HIDDEN = {"patient": "each patient with all images", "site": "each hospital with all it has"}


def privacy_line(study: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The promise in one line; "" where there is no study to ask."""
    if record:
        spent = "spent is told by the hospitals' ledgers" if record["spent"] is None else f"spent {record['spent']:.2f}"
        trainings = f", of one training; there are {record['trainings']}" if record["trainings"] > 1 else ""
        return plain(
            f"epsilon {record['epsilon']:g} at delta {record['delta']:g} for {_HIDDEN[record['unit']]}; {spent}"
            f"{trainings}"
        )
    if not study:
        return ""
    if study.get("privacy"):
        return "promised in the study; what came of it is not on record"
    sums = study.get("secure_aggregation")
    return "no differential privacy" + ("; the server saw sums of updates, no single one" if sums else "")


def privacy_use(source: Source, study: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What a user of the weights has to know of it, in sentences."""
    if not study:
        return "Whether training was differentially private is not on record."
    if not study.get("privacy"):
        return "Training was not differentially private."
    if source.kind != "federated":
        return "The study's promise of privacy is about its federated encoder, and not about this one."
    if not record:
        return "The study promises differential privacy; what came of it is not on record."
    uncovered = "".join(f" Not covered: {plain(line)}." for line in map(str, record["not_covered"][:2]))
    return f"Promised: {privacy_line(study, record)}. {' '.join(map(plain, map(str, record['meaning'])))}{uncovered}"
