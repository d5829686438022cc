"""The site's Flower app: what it answers to each kind of message, and the one way by which an answer leaves.

Everything that can go wrong is answered with a category, never with a text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.refusals import category_of, refusal, round_of
from client.site import Site
from client.site_file import SiteFile, load_site_file
from client.site_identity import keys_of
from client.site_log import SiteLog, log_error
from client.sites import Sites, site_file_path
from federation.flower.permitted import Permitted, check_record_dict
from federation.flower.records import (
    confirmation_to_content,
    content_to_instruction,
    content_to_note,
    content_to_question,
    reply_to_content,
    site_to_content,
    statistics_to_content,
    with_note,
)
from federation.flower.secure_records import answer_to_content, check_answer_record, content_to_request


@dataclass(frozen=True)
class Answer:
    """An answer that has not left. check: raises unless the record, with or without a note, may leave.

    record: writes into the site's audit log that it leaves.
    """

    content: RecordDict
    check: Callable[[RecordDict], None]
    record: Callable[[], None]


Act = Callable[[Site, SiteLog], Answer]


def release(answer: Answer, log: SiteLog) -> RecordDict:
    """The only way by which anything but a refusal leaves a site: checked, then logged, noted, and checked again.

    The second check is of the very record that Flower serialises. An answer that the first one withholds is not logged
    as released.
    """
    answer.check(answer.content)
    answer.record()
    content = with_note(answer.content, log.note())
    answer.check(content)
    return content


def build_app() -> ClientApp:
    """The app, with the sites of its own that it answers for."""
    app, sites = ClientApp(), Sites()

    @app.query()
    def who(message: Message, context: Context) -> Message:
        """Answer with the site's name, the study it has, and how many images."""
        return _guarded(message, context, sites, lambda site, log: _introduction(site))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train one round, idempotently."""
        return _guarded(message, context, sites, lambda site, log: _trained(message, site, log))

    @app.query("deliver")
    def deliver(message: Message, context: Context) -> Message:
        """Keep the study's final weights."""
        return _guarded(message, context, sites, lambda site, log: _kept(message, site, log))

    @app.query("evaluate")
    def evaluate(message: Message, context: Context) -> Message:
        """Answer a question about labelled images: sums over them, or figures of the site's test patients."""
        return _guarded(message, context, sites, lambda site, log: _answer(message, site, log))

    @app.query("secure")
    def secure(message: Message, context: Context) -> Message:
        """One stage of a secure sum."""
        return _guarded(message, context, sites, lambda site, log: _summed(message, site, log, site_file_path(context)))

    return app


def _guarded(message: Message, context: Context, sites: Sites, act: Act) -> Message:
    site_file: SiteFile | None = None
    log: SiteLog | None = None
    try:
        site_file = load_site_file(site_file_path(context))
        log = SiteLog(site_file)
        answer = act(sites.of(message, context, site_file), log)
        return Message(release(answer, log), reply_to=message)
    except Exception as error:
        if site_file is not None:
            log_error(site_file.state, round_of(message))
        return refusal(site_file, message, category_of(error), log)


def _introduction(site: Site) -> Answer:
    content = site_to_content(site.allowed(site.describe()))
    permitted = Permitted(site.name, site.study_hash, private=site.private, hides_counts=site.hides_counts)
    return Answer(content, partial(check_record_dict, permitted=permitted), lambda: None)


def _trained(message: Message, site: Site, log: SiteLog) -> Answer:
    """The round's update, held against the list of what may leave: as values, then as what Flower will serialise."""
    log.check(content_to_note(message.content))
    instruction = content_to_instruction(message.content)
    log.instructed(instruction)
    reply, again = site.training.trained_or_stored(instruction)
    allowed = site.allowed(reply, instruction.round)
    permitted = Permitted(
        site.name, site.study_hash, site.update_like(), list(allowed.metrics), site.private, site.hides_counts
    )
    check = partial(check_record_dict, permitted=permitted)
    return Answer(reply_to_content(allowed), check, lambda: log.released(allowed, again))


def _kept(message: Message, site: Site, log: SiteLog) -> Answer:
    log.check(content_to_note(message.content))
    digest = site.keep_final(content_to_instruction(message.content).weights)
    content = confirmation_to_content(site.name, site.study_hash, digest)
    check = partial(check_record_dict, permitted=Permitted(site.name, site.study_hash))
    return Answer(content, check, lambda: log.delivered(site.study_hash, digest))


def _answer(message: Message, site: Site, log: SiteLog) -> Answer:
    log.check(content_to_note(message.content))
    reported = site.labels.allowed(site.labels.reported(content_to_question(message.content)))
    permitted = Permitted(site.name, site.study_hash, site.labels.statistics_like(reported))
    check = partial(check_record_dict, permitted=permitted)
    return Answer(statistics_to_content(reported), check, lambda: log.reported(reported))


def _summed(message: Message, site: Site, log: SiteLog, place: Path) -> Answer:
    log.check(content_to_note(message.content))
    request = content_to_request(message.content)
    log.asked_for(request)
    answer = site.summed(request, keys_of(place.parent))
    numbers = site.masked_numbers()

    def check(content: RecordDict) -> None:
        check_answer_record(content, site.name, site.study_hash, numbers)

    return Answer(answer_to_content(answer), check, lambda: log.answered(answer))


app = build_app()
