"""Errors a user can act on: one line with the value, the rule and the remedy. The command line exits with code 2."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class FedpretextError(Exception):
    """Root of all errors that are meant for a person. Its text is one line."""


class StudyError(FedpretextError):
    """A study or site file says something that cannot be done."""


class DataError(FedpretextError):
    """Images, manifests or labels are not what the study needs."""


class TrainingError(FedpretextError):
    """Local training could not be carried on (a loss that is not finite, say)."""


class RunError(FedpretextError):
    """A run folder, checkpoint or reply store file is missing, damaged or of another study."""


class QuorumError(FedpretextError):
    """Too few sites answered, as often as the study allows."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry ``name`` of ``table``; otherwise a StudyError that lists what there is."""
    if name in table:
        return table[name]
    raise StudyError(f"{what} {name!r} is not known; there are: {', '.join(sorted(table))}{nearest(name, table)}")
