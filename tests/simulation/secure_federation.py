"""A simulated federation with secure aggregation, whose messages a test can read, lose and script; no test here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import build_app
from federation.study import Study, load_study, study_from
from foundation.tensor_files import load_tensors
from server.app import app as server_app
from server.rounds import write_study
from simulation.runtimes.grid import InProcessGrid
from simulation.sites.run_keys import write_run_keys
from simulation.sites.site_folders import Federation
from tests.conftest import write_site

IMAGES = {"A": 9, "B": 6, "C": 4, "D": 5}


def make(folder: Path, raw: dict[str, Any], images: dict[str, int] = IMAGES) -> Federation:
    """A federation prepared as simulation/arms.py prepares one."""
    study = study_from(raw, "test")
    write_study(folder, study)
    for seed, (site, count) in enumerate(images.items()):
        place = write_site(folder / "sites", site, count, patients=2, seed=seed)
        if study.privacy is not None:
            place.write_text(place.read_text() + "ledger: ledger.jsonl\n")
    if study.secure_aggregation is not None:
        write_run_keys(folder / "sites", {site: folder / "sites" / site for site in images})
    return Federation(folder, tuple(images))


Before = Callable[[Message], Message | None]
"""What happens in place of a site's answer; None: the site answers."""


@dataclass
class Recorder:
    """Every message and its answer. before: may stand in for a site; app: all sites, a new one starts them anew."""

    before: Before = lambda message: None
    asked: list[Message] = field(default_factory=list)
    answered: list[Message] = field(default_factory=list)
    app: ClientApp = field(default_factory=build_app)

    def __call__(self, message: Message, context: Context) -> Message:
        self.asked.append(message)
        answer = self.before(message) or self.app(message, context)
        self.answered.append(answer)
        return answer

    def stages(self) -> list[tuple[str, str]]:
        """Stage and site of every answer about a sum."""
        configs = [dict(answer.content["config"]) for answer in self.answered]
        return [(str(c["stage"]), str(c["site"])) for c in configs if "stage" in c]


def grid_of(federation: Federation, app: Any) -> InProcessGrid:
    nodes = [{"site-file": str(federation.folder / "sites" / site / "site.yaml")} for site in federation.sites]
    return InProcessGrid(app, nodes, federation.run_config())


def run(federation: Federation, recorder: Recorder | None = None) -> dict[str, torch.Tensor]:
    """Run to the end; the global weights."""
    grid = grid_of(federation, recorder or Recorder())
    server_app(grid, Context(1, 1, {}, RecordDict(), dict(federation.run_config())))
    return load_tensors(federation.folder / "global.safetensors")[0]


def study_of(federation: Federation) -> Study:
    return load_study(federation.folder / "study.yaml")


def stage_of(message: Message) -> str:
    """The stage that a message is about; "train" for an instruction, "" for others."""
    if message.metadata.message_type == "train":
        return "train"
    return str(message.content["config"].get("stage", ""))


def site_asked(message: Message, federation: Federation) -> str:
    """Whose message it is: nodes are numbered in the order of the sites."""
    return federation.sites[message.metadata.dst_node_id - 2]


def names_in(answers: Iterable[Message]) -> set[str]:
    return {str(answer.content["config"]["site"]) for answer in answers}
