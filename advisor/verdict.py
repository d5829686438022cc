"""What a pilot found, and whether it agrees with the literature: one rule, fixed beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.statistics.results_schema import ALL, COMPARISONS, RESULTS, Role, Statistic
from foundation.errors import RunError

Agreement = Literal["agrees", "cannot tell", "disagrees"]
RULE = (
    "agrees: the paired 95 % interval of the literature's first candidate minus every other lies above 0; disagrees: "
    "that of another minus it does, and that of the other minus no pretraining; else the pilot cannot tell, and the "
    "literature's first stays"
)


@dataclass(frozen=True)
class PilotEstimate:
    """A figure or a difference with its 95 % interval (NaN where there is none)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Findings:
    """By candidate, in the literature's order: its figure, and that minus the encoder without pretraining.

    against: the literature's first minus each other candidate, on the same patients.
    """

    metric: str
    patients: int
    own: Mapping[str, PilotEstimate]
    gain: Mapping[str, PilotEstimate]
    against: Mapping[str, PilotEstimate]

    @property
    def first(self) -> str:
        """The literature's first candidate."""
        return next(iter(self.own))

    @property
    def agreement(self) -> Agreement:
        """By ``RULE``."""
        if self._better():
            return "disagrees"
        return "agrees" if all(figure.low > 0 for figure in self.against.values()) else "cannot tell"

    @property
    def winner(self) -> str:
        """The literature's first, or, of those shown to be better, the one with the highest figure."""
        return max(self._better(), key=lambda name: self.own[name].value, default=self.first)

    def _better(self) -> list[str]:
        """Candidates shown to be better than the literature's first, and than no pretraining at all."""
        return [name for name, figure in self.against.items() if figure.high < 0 and self.gain[name].low > 0]

    def ranked(self) -> list[str]:
        """The candidates by their figures, best first."""
        return sorted(self.own, key=lambda name: -self.own[name].value)


def read_findings(folder: Path, arms: Mapping[str, str], protocol: str) -> Findings:
    """A pilot's findings from its tables; arms: by candidate its arm's name, the literature's first one first."""
    results, compared = RESULTS.read(folder / "results.csv"), COMPARISONS.read(folder / "comparisons.csv")
    compared = compared[(compared["protocol"] == protocol) & (compared["site"] == ALL)]
    if compared.empty:
        raise RunError(f"{folder}: no encoder could be compared; see results.csv there for the reason")
    metric = str(compared["metric"].iloc[0])
    here = (results["protocol"] == protocol) & (results["site"] == ALL) & (results["metric"] == metric)
    here &= results["statistic"] == Statistic.ESTIMATE
    own = {str(row["encoder"]): row for row in results[here].to_dict("records")}
    pairs: dict[tuple[str, str], PilotEstimate] = {}
    for row in compared.to_dict("records"):
        one, other, figure = row["encoder_a"], row["encoder_b"], _figure(row)
        pairs |= {(one, other): figure, (other, one): PilotEstimate(-figure.value, -figure.high, -figure.low)}
    supervised = next(name for name, row in own.items() if row["role"] == Role.SUPERVISED)
    first, *others = arms
    return Findings(
        metric,
        int(own[arms[first]]["n"]),
        {name: _figure(own[arm]) for name, arm in arms.items()},
        {name: pairs[arm, supervised] for name, arm in arms.items()},
        {name: pairs[arms[first], arms[name]] for name in others},
    )


def _figure(row: Mapping[Any, Any]) -> PilotEstimate:
    return PilotEstimate(*(float(row[name]) for name in ("value", "ci_low", "ci_high")))
