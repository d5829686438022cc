"""The ledger of a pool of patients: what was spent on them, by every study of every lead, in one book.

Rows of an audit log (hash-chained, append-only, synced to the disk; audit_chain.py) under the name of the party
``patients``, a row a charge. A charge is written before the noise that it pays for is drawn, checked against the budget
under the same lock, and never taken back: what a killed process has charged stays charged, so that the book can say
more than was spent, and never less. Rows hold numbers of studies' noise; no name and no count of patients.

The spending of several studies on one pool adds up as releases that are composed: later studies may depend on what
earlier ones found.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from federation.audit.chain import locked
from federation.audit.log import AuditHead, AuditLog, Event, Extension, Row, Value, verify
from federation.privacy.accounting import Release, epsilon_of
from foundation.errors import FedpretextError, RunError, StudyError

PARTY = "patients"
CHARGED: Event = "privacy charged"
_ALWAYS = ("mechanism", "noise", "rate", "steps")


class BudgetSpentError(FedpretextError):
    """A charge would take a pool of patients over its budget; nothing was charged."""


@dataclass(frozen=True)
class Budget:
    """The most that all studies together may cost a patient of a pool: epsilon at delta."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Charge:
    """One row: what a study charged for a round. ``unit``: whose presence is hidden, ``patient`` or ``site``."""

    study: str
    round: int
    unit: str
    release: Release


class Ledger:
    """The ledger at ``path``, opened where there is none. Threads and processes may charge at once.

    A torn last line (its writer was killed before the charge was valid) is cut off by the next charge. RunError when
    the chain is broken, the file is no ledger, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = AuditLog(path, PARTY)

    def charge(
        self, study_hash: str, round_: int, release: Release, budget: Budget | None, unit: str = "patient"
    ) -> AuditHead:
        """Charge a release, on the disk before this returns. The new head.

        BudgetSpentError when the pool would have cost more than ``budget`` with it; then nothing is written.
        """
        row: dict[str, Value] = {"study": study_hash, "round": round_, "unit": unit}
        row |= {name: value for name, value in asdict(release).items() if name in _ALWAYS or value}

        with self._locked():
            releases = self.releases()  # reads all of the chain: a broken one takes no charge
            if budget is not None:
                _check_budget(releases, release, budget)
            return self._log.append(CHARGED, **row)

    def releases(self) -> list[Release]:
        """The releases of all charges, the oldest first. RunError when the chain is broken."""
        return [charge.release for charge in read_charges(self.path)]

    def spent(self, delta: float) -> float:
        """Epsilon at ``delta`` that all charges together may have cost a patient."""
        return epsilon_of(self.releases(), delta)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """No other thread or process checks the budget or charges meanwhile.

        The lock is a file of its own beside the ledger: the log locks its own file for every reading and writing.
        """
        place = self.path.resolve()
        with locked(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT):
            yield

    def extension(self, since: AuditHead) -> Extension:
        """Proof for whoever holds the head ``since`` that this ledger goes on from it; RunError when it does not."""
        return self._log.extension(since)


def read_charges(path: Path) -> list[Charge]:
    """The charges of a ledger that is only looked at, none where there is no file. RunError when it is broken."""
    if not path.exists():
        return []
    found: list[Charge] = []

    def see(row: Row) -> None:
        if row["event"] == CHARGED:
            try:
                release = Release(**{field.name: row[field.name] for field in fields(Release) if field.name in row})
                found.append(Charge(str(row["study"]), int(row["round"]), str(row["unit"]), release))
            except (KeyError, TypeError, ValueError, StudyError) as error:
                raise RunError(
                    f"{path}: row {row['n']} is no charge that a ledger writes; put the ledger back"
                ) from error

    verdict = verify(path, see)
    if verdict.fault or verdict.party not in ("", PARTY):
        what = f"is the audit log of {verdict.party!r}, no ledger" if not verdict.fault else verdict.line
        raise RunError(
            f"{path}: {what}; nothing is charged to it: keep the file as evidence and put the whole ledger back"
        )
    return found


def _check_budget(releases: list[Release], new: Release, budget: Budget) -> None:
    would = epsilon_of([*releases, new], budget.delta)
    if would <= budget.epsilon or math.isclose(would, budget.epsilon, rel_tol=1e-12):
        return
    raise BudgetSpentError(
        f"privacy budget: epsilon {epsilon_of(releases, budget.delta):.3f} of {budget.epsilon:g} is spent on these "
        f"patients at delta {budget.delta:g}, and this round would make it {would:.3f}: raise policy.privacy_budget, "
        "if the hospital agrees to that, or leave the study"
    )
