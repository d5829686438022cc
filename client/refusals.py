"""The answer of a site that does not do what it was asked: a category, never a text."""

import errno
import re
from pathlib import Path

import torch
from flwr.app import Message

from client.labels.labelled_images import TooFewLabelsError
from client.outgoing.answers import checked_reply
from client.policy import LabelsNotPermittedError, Policy
from client.privacy.ledger import LedgerNotContinuedError
from client.site_file import SiteFile
from client.site_log import LogNotContinuedError, SiteLog, log_error
from federation.flower.permitted import Permitted, check_record_dict
from federation.flower.records import reply_to_content, with_note
from federation.privacy.ledger import BudgetSpentError
from federation.records import UNKNOWN_SITE, Category, Failure
from federation.secure_aggregation.messages import SecureAggregationError
from foundation.errors import DataError, FedpretextError, RunError, StudyError, TrainingError


def refusal(site_file: SiteFile | None, message: Message, category: Category, log: SiteLog | None = None) -> Message:
    """The answer of a site that does not do what it was asked: its name, the round, a category."""
    name, round_ = site_file.site if site_file else UNKNOWN_SITE, round_of(message)
    note = None
    if log is not None:
        try:
            log.refused(category, round_)
            note = log.note()
        except FedpretextError:
            log_error(site_file.state if site_file else Path(), round_)
    failure = checked_reply(None, Failure("", round_, name, category), {}, Policy(), name)
    content = with_note(reply_to_content(failure), note)
    check_record_dict(content, Permitted(name, ""))
    return Message(content, reply_to=message)


def round_of(message: Message) -> int:
    """The round that a message is about; 0 where it does not say."""
    group = message.metadata.group_id
    return int(group) if re.fullmatch("[0-9]{1,5}", group) else 0


def category_of(error: BaseException) -> Category:
    """The one word about an error that may leave the site."""
    causes = [error, error.__cause__]
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in causes):
        return "disk-full"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out-of-memory"
    kinds: dict[type[Exception], Category] = {
        StudyError: "study-not-approved",
        DataError: "data-not-usable",
        TrainingError: "loss-not-finite",
        LogNotContinuedError: "log-not-continued",
        LabelsNotPermittedError: "labels-not-permitted",
        TooFewLabelsError: "labels-too-few",
        BudgetSpentError: "budget-spent",
        LedgerNotContinuedError: "ledger-not-continued",
        SecureAggregationError: "secure-sum-refused",
        RunError: "state-damaged",
    }
    return next((category for kind, category in kinds.items() if isinstance(error, kind)), "internal-error")
