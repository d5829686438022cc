"""The site's Flower app: thin. Everything that can go wrong is answered with a category, never with a text."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.approval import approved_study
from client.labelled import TooFewLabelsError
from client.outgoing import checked_reply
from client.policy import LabelsNotPermittedError, Policy
from client.site import Site
from client.site_file import SiteFile, load_site_file
from client.site_identity import keys_of
from client.site_ledger import LedgerNotContinuedError
from client.site_log import LogNotContinuedError, SiteLog, log_error
from federation.flower import (
    check_record_dict,
    confirmation_to_content,
    content_to_instruction,
    content_to_note,
    content_to_question,
    reply_to_content,
    site_to_content,
    statistics_to_content,
    study_asked_for,
    with_note,
)
from federation.key_source import open_vault
from federation.privacy.ledger import BudgetSpentError
from federation.records import UNKNOWN_SITE, Category, Failure
from federation.secure_aggregation.messages import SecureAggregationError
from federation.secure_flower import answer_to_content, check_answer_record, content_to_request
from federation.study import Study, load_study
from foundation.errors import DataError, FedpretextError, RunError, StudyError, TrainingError

app = ClientApp()
_sites: dict[tuple[str, SiteFile], Site] = {}
Act = Callable[[Site, SiteLog], RecordDict]


@app.query()
def who(message: Message, context: Context) -> Message:
    """Answer with the site's name, the study it has, and how many pictures."""
    return _guarded(message, context, lambda site, log: _introduction(site))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round, idempotently."""
    return _guarded(message, context, lambda site, log: _trained(message, site, log))


@app.query("deliver")
def deliver(message: Message, context: Context) -> Message:
    """Keep the study's final weights."""
    return _guarded(message, context, lambda site, log: _kept(message, site, log))


@app.query("evaluate")
def evaluate(message: Message, context: Context) -> Message:
    """Answer a question about labelled pictures: sums over them, or figures of the site's test patients."""
    return _guarded(message, context, lambda site, log: _told(message, site, log))


@app.query("secure")
def secure(message: Message, context: Context) -> Message:
    """One stage of a secure sum."""
    return _guarded(message, context, lambda site, log: _summed(message, site, log, _site_file_path(context)))


def _introduction(site: Site) -> RecordDict:
    content = site_to_content(site.allowed(site.describe()))
    check_record_dict(content, site.name, site.study_hash, {}, (), site.private, site.uncounted)
    return content


def _trained(message: Message, site: Site, log: SiteLog) -> RecordDict:
    """The round's update, held against the list of what may leave: as values, then as what Flower will serialise."""
    log.check(content_to_note(message.content))
    instruction = content_to_instruction(message.content)
    log.instructed(instruction)
    reply, again = site.trained_or_stored(instruction)
    allowed = site.allowed(reply, instruction.round)
    content, expected, metrics = reply_to_content(allowed), site.update_like(), list(allowed.metrics)
    check_record_dict(content, site.name, site.study_hash, expected, metrics, site.private, site.uncounted)
    log.released(allowed, again)  # an update that is withheld was not released
    content = with_note(content, log.note())
    check_record_dict(content, site.name, site.study_hash, expected, metrics, site.private, site.uncounted)
    return content


def _kept(message: Message, site: Site, log: SiteLog) -> RecordDict:
    log.check(content_to_note(message.content))
    digest = site.keep_final(content_to_instruction(message.content).weights)
    log.delivered(site.study_hash, digest)
    content = with_note(confirmation_to_content(site.name, site.study_hash, digest), log.note())
    check_record_dict(content, site.name, site.study_hash, {}, ())
    return content


def _told(message: Message, site: Site, log: SiteLog) -> RecordDict:
    log.check(content_to_note(message.content))
    told = site.allowed_statistics(site.told(content_to_question(message.content)))
    content, expected = statistics_to_content(told), site.statistics_like(told)
    check_record_dict(content, site.name, site.study_hash, expected, ())
    log.told(told)
    content = with_note(content, log.note())
    check_record_dict(content, site.name, site.study_hash, expected, ())
    return content


def _summed(message: Message, site: Site, log: SiteLog, place: Path) -> RecordDict:
    log.check(content_to_note(message.content))
    request = content_to_request(message.content)
    log.asked_for(request)
    answer = site.summed(request, keys_of(place.parent))
    content, numbers = answer_to_content(answer), site.masked_numbers()
    check_answer_record(content, site.name, site.study_hash, numbers)
    log.answered(answer)
    content = with_note(content, log.note())
    check_answer_record(content, site.name, site.study_hash, numbers)
    return content


def _guarded(message: Message, context: Context, act: Act) -> Message:
    site_file: SiteFile | None = None
    log: SiteLog | None = None
    try:
        site_file = load_site_file(_site_file_path(context))
        log = SiteLog(site_file)
        return Message(act(_site(site_file, message, context), log), reply_to=message)
    except Exception as error:
        if site_file is not None:
            log_error(site_file.state, round_of(message))
        return refusal(site_file, message, category_of(error), log)


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
    check_record_dict(content, name, "", {}, ())
    return Message(content, reply_to=message)


def round_of(message: Message) -> int:
    """The round that a message is about; 0 where it does not say."""
    group = message.metadata.group_id
    return int(group) if re.fullmatch("[0-9]{1,5}", group) else 0


def _site_file_path(context: Context) -> Path:
    """The node's own site file; in Flower's simulation, where nodes have only a number, the number-th of the folder."""
    if "site-file" in context.node_config:
        return Path(str(context.node_config["site-file"]))
    files = sorted(Path(str(context.run_config["site-files"])).glob("*/site.yaml"))
    return files[int(context.node_config["partition-id"])]


def _site(site_file: SiteFile, message: Message, context: Context) -> Site:
    """The site for the study that the message is about: a simulation's own file, at a hospital what it has approved."""
    asked = study_asked_for(message.content)
    place = str(context.run_config.get("study", ""))
    key = (place or asked, site_file)
    if key not in _sites:
        # Simulated sites of one study share this process and take turns; another study's are over, and so is a site
        # whose file was changed.
        for other in [other for other in _sites if other[0] != key[0] or other[1].state == site_file.state]:
            del _sites[other]
        study = _simulated_study(Path(place)) if place else _approved(site_file, asked)
        _sites[key] = Site(site_file, study, open_vault(site_file.key, [site_file.state, site_file.cache]))
    return _sites[key]


def _simulated_study(place: Path) -> Study:
    study = load_study(place)
    if study.simulation is not None:
        raise StudyError(f"{place}: has a `simulation` section, which only `fedpretext simulate` acts on")
    return study


def _approved(site_file: SiteFile, asked: str) -> Study:
    study = approved_study(site_file, asked)
    if study is None:
        raise StudyError(f"site {site_file.site}: the study {asked[:12]} that the server asks for is not approved here")
    return study


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
