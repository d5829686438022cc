"""The site's Flower app: thin. Everything that can go wrong is answered with a category, never with a text."""

import errno
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site import Site
from client.site_file import SiteFile, load_site_file
from federation.flower import (
    content_to_instruction,
    reply_to_content,
    site_to_content,
)
from federation.records import Category, Failure
from federation.study import load_study
from foundation.errors import DataError, RunError, StudyError, TrainingError

app = ClientApp()
_sites: dict[tuple[Path, Path], Site] = {}


@app.query()
def who(message: Message, context: Context) -> Message:
    """Answer with the site's name, the study it has, and how many pictures."""
    return _guarded(message, context, lambda site: site_to_content(site.describe()))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round, idempotently."""
    return _guarded(
        message, context, lambda site: reply_to_content(site.train(content_to_instruction(message.content)))
    )


def _guarded(message: Message, context: Context, act: Callable[[Site], RecordDict]) -> Message:
    name, state = "unknown", None
    round_ = int(message.metadata.group_id) if message.metadata.group_id.isdecimal() else 0
    try:
        site_file = load_site_file(_site_file_path(context))
        name, state = site_file.site, site_file.state
        content = act(_site(site_file, context))
    except Exception as error:
        if state is not None:
            _log(state, round_)
        failure = Failure("", round_, name, category_of(error))
        content = reply_to_content(failure)
    return Message(content, reply_to=message)


def _site_file_path(context: Context) -> Path:
    """The node's own site file; in Flower's simulation, where nodes have only a number, the number-th of the folder."""
    if "site-file" in context.node_config:
        return Path(str(context.node_config["site-file"]))
    files = sorted(Path(str(context.run_config["site-files"])).glob("*/site.yaml"))
    return files[int(context.node_config["partition-id"])]


def _site(site_file: SiteFile, context: Context) -> Site:
    study_path = Path(str(context.run_config["study"]))
    key = (study_path, site_file.state)
    if key not in _sites:
        # Simulated sites of one study share this process and take turns; another study's are over.
        for other in [other for other in _sites if other[0] != study_path]:
            del _sites[other]
        study = load_study(study_path)
        if study.simulation is not None:
            raise StudyError(f"{study_path}: has a `simulation` section, which only `fedpretext simulate` acts on")
        _sites[key] = Site(site_file, study)
    return _sites[key]


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
        RunError: "state-damaged",
    }
    return next((category for kind, category in kinds.items() if isinstance(error, kind)), "internal-error")


def _log(state: Path, round_: int) -> None:
    """Append the traceback to the site's own log, which stays at the site."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        with (state / "site.log").open("a") as handle:
            handle.write(
                f"{datetime.now(UTC).isoformat(timespec='seconds')} round {round_}\n{traceback.format_exc()}\n"
            )
    except OSError:
        return  # a full disk must not turn a category into a crash
