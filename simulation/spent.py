"""What the simulated hospitals' own ledgers say was spent, for the run's record of its privacy."""

from collections.abc import Iterable
from pathlib import Path

from federation.privacy.ledger import Ledger
from federation.study import Study
from server.privacy_record import write_privacy
from server.site_noise import LEDGER_NAME as SERVER_LEDGER
from simulation.arms import LEDGER_NAME, Arm


def record_privacy(run: Path, study: Study, arms: Iterable[Arm]) -> None:
    """Write ``privacy.json`` from the ledgers of the federated arms; nothing where the study is not private.

    Each fold and seed is a study of its own, over patients of whom the others know nothing: the largest counts.
    """
    if study.privacy is None:
        return
    places = [run / arm.place for arm in arms if arm.kind == "federated"]
    spent: dict[str, float] = {}
    for place in places:
        ledgers = {path.parent.name: path for path in sorted(place.glob(f"sites/*/{LEDGER_NAME}"))}
        if (place / SERVER_LEDGER).exists():
            ledgers["the server"] = place / SERVER_LEDGER
        for whose, path in ledgers.items():
            spent[whose] = max(spent.get(whose, 0.0), Ledger(path).spent(study.privacy.delta))
    write_privacy(run, study, spent, len(places))
