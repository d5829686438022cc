"""A site's own executor, in place of Flower's: one process for all rounds, which runs nothing that was shipped.

Flower's executor installs the app that came with a run, puts its folder first on the import path and imports whatever
it names, once for every message. This one compares the shipped bytes with those the site makes itself from a study it
has approved, and calls the installed ``client.app``. Whatever happens, a category is all that is answered.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from time import sleep

from flwr.app import Message

from client.app import app
from client.approval import approvals
from client.refusals import refusal, round_of
from client.site_file import SiteFile, load_site_file
from client.site_log import SiteLog, log_error
from federation.app_bundle import app_bundle
from federation.flower.private import Bundle, ClientTask, Endpoint, TaskQueue, client_task, context_for
from federation.flower.records import said, signature_of
from federation.keys.signing import Authority
from foundation.errors import FedpretextError
from foundation.messages import logger

_POLL_S = 0.2


def serve(endpoint: Endpoint, secret: bytes, site_file: Path, authority: Authority, ended: Callable[[], bool]) -> None:
    """Answer the SuperNode's tasks, one at a time, until ``ended()``; a task that fails is answered or given up."""
    queue = TaskQueue(endpoint, secret)
    try:
        while not ended():
            token = queue.next("client")
            if token is None:
                sleep(_POLL_S)
                continue
            try:
                with client_task(endpoint, token, lambda: queue.waits("client")) as task:
                    task.answer(answer_to(task, site_file, authority))
            except FedpretextError as error:
                # The update is on this site's disk: when the server asks again it is sent, not trained again.
                logger.warning(f"the answer could not be handed over ({error}); waiting for the server to ask again")
    finally:
        queue.close()


def answer_to(task: ClientTask, site_file: Path, authority: Authority) -> Message:
    """What this site answers to a task: its app's reply, or the category of what is wrong."""
    message = task.message
    try:
        own = load_site_file(site_file)
        difference = difference_of(task.bundle, own)
        if difference is not None:
            log_error(own.state, round_of(message), difference)
            return refusal(own, message, "app-not-approved", SiteLog(own))
        fault = fault_of(message, own.site, authority)
        if fault:
            log_error(own.state, round_of(message), f"a message {fault}; it is not this federation's server's")
            return refusal(own, message, "not-the-server", SiteLog(own))
        return app(message, context_for(task, site_file))
    except Exception:
        _keep(site_file)
        return refusal(None, message, "internal-error")


def fault_of(message: Message, site: str, authority: Authority) -> str:
    """Why a message is not of the server, for this site; empty where it is."""
    meta = message.metadata
    digest = said(message.content, meta.message_type, meta.group_id, site)
    return authority.fault(digest, signature_of(message.content))


def difference_of(bundle: Bundle, site_file: SiteFile) -> str | None:
    """Why this site does not act on the app that came with a run; None when it is that of an approved study."""
    if bundle.overrides:
        return f"the run overrides {len(bundle.overrides)} settings of its app; an approved study has none"
    approved = [app_bundle(approval.study) for approval in approvals(site_file)]
    if not approved:
        return "no study is approved at this site; look at it with: fedpretext site approve STUDY"
    if bundle.content not in approved:
        return (
            f"the app shipped with the run ({len(bundle.content)} bytes) is not that of a study approved here, made by "
            "this version of the program; compare the study file and the versions with the study lead's"
        )
    return None


def _keep(site_file: Path) -> None:
    """Log what cannot even be traced to a site's state folder; never beside the program."""
    text = traceback.format_exc()
    try:
        log_error(load_site_file(site_file).state, 0)
    except FedpretextError:
        logger.warning(text)
