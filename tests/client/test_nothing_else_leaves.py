"""DICOM series with identifiers, trained end to end: every byte that left and every file of the server is searched."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_to_proto

import client.app
import client.training.site_training
from client.approval import approve
from client.site import Site
from client.site_file import load_site_file
from client.training.round import RoundOutcome
from client.training.site_training import SiteTraining
from federation.records import TrainInstruction, TrainReply
from federation.study import Study
from foundation.errors import FedpretextError
from server.app import app as server_app
from server.rounds import write_study
from simulation.runtimes.grid import InProcessGrid

from ..identifier_hunt import Hospital, patches_in, patterns, words_in, write_hospital

MakeStudy = Callable[..., Study]


class RecordingGrid(InProcessGrid):
    """Keeps every reply as it would be on the wire."""

    sent: list[bytes]
    contents: list[RecordDict]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies, after noting their bytes."""
        replies = super().pull_messages(message_ids)
        self.sent += [message_to_proto(reply).SerializeToString() for reply in replies]
        self.contents += [reply.content for reply in replies]
        return replies


def federate(
    tmp_path: Path, study: Study, hospitals: list[Hospital], contents: list[RecordDict] | None = None
) -> list[bytes]:
    """Run the study; the bytes of every message that left a hospital, and of every file at the server.

    contents: the messages are added to it, as Flower's records.
    """
    folder = tmp_path / "server"
    write_study(folder, study)
    config = {"study": str(folder / "study.yaml"), "folder": str(folder), "sites": len(hospitals)}
    nodes = [{"site-file": str(hospital.site_file)} for hospital in hospitals]
    grid = RecordingGrid(client.app.app, nodes, config)
    grid.sent, grid.contents = [], [] if contents is None else contents
    try:
        server_app(grid, Context(1, 1, {}, RecordDict(), dict(config)))
    except FedpretextError as error:
        grid.sent.append(str(error).encode())
    return [*grid.sent, *(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())]


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Two hospitals of 10 slices of 5 patients, with the default policy."""
    yield [write_hospital(tmp_path / f"klinik-{name}" / "pacs-export", name) for name in ("north", "south")]


@pytest.fixture
def small(study: MakeStudy) -> Study:
    return study(rounds={"count": 2})


def approved(study: Study, hospitals: list[Hospital], tmp_path: Path) -> None:
    (tmp_path / "to-read.yaml").write_text(study.to_yaml())
    for hospital in hospitals:
        approve(tmp_path / "to-read.yaml", load_site_file(hospital.site_file), "Dr. Ada Klein", lambda _: True)


def all_words(hospitals: list[Hospital]) -> list[str]:
    return ["Ada Klein", "klinik-north", ".dcm", *(word for each in hospitals for word in each.words)]


def all_patterns(study: Study, hospitals: list[Hospital]) -> set[bytes]:
    found: set[bytes] = set()
    for hospital in hospitals:
        store = Site(load_site_file(hospital.site_file), study).images.store()
        decoded = (store.batch(np.arange(len(store))).numpy()[:, 0] * 65535).round().astype(np.uint16)
        for pixels, image in zip(hospital.pixels, decoded, strict=True):
            found |= patterns(pixels, image)
    return found


def test_two_rounds_leave_no_identifier_path_or_patch(
    tmp_path: Path, small: Study, hospitals: list[Hospital], capfd: pytest.CaptureFixture[str]
) -> None:
    approved(small, hospitals, tmp_path)
    left = federate(tmp_path, small, hospitals)
    assert (tmp_path / "server" / "global.safetensors").exists()  # it ran to its end
    assert {"metrics.jsonl", "checkpoints", "tensorboard"} <= {path.name for path in (tmp_path / "server").iterdir()}
    assert sum(map(len, left)) > 400_000
    said = "".join(capfd.readouterr())
    assert words_in([*left, said.encode()], all_words(hospitals)) == set()
    assert patches_in(left, all_patterns(small, hospitals)) == 0
    # The searches find what is there.
    assert words_in(left, ["north", small.training_hash()]) == {"north", small.training_hash()}


def test_the_search_for_pixels_finds_a_planted_patch(
    tmp_path: Path, small: Study, hospitals: list[Hospital], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no list can stop: values of allowed tensors that are pixels. It shows that the hunt reaches the wire."""
    approved(small, hospitals, tmp_path)
    real = SiteTraining.trained_or_stored

    def train(self: SiteTraining, instruction: TrainInstruction) -> tuple[TrainReply, bool]:
        reply, again = real(self, instruction)
        image = self._images.store().batch(np.array([0]))[0, 0]
        next(v for v in reply.weights.values() if v.numel() >= 64).view(-1)[8:24] = image[3:7, 5:9].flatten()
        return reply, again

    monkeypatch.setattr(SiteTraining, "trained_or_stored", train)
    left = federate(tmp_path, small, hospitals)
    assert patches_in(left, all_patterns(small, hospitals)) >= 4


PRIVATE: dict[str, dict[str, Any]] = {
    "patient": {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 5, "patients_per_step": 3},
    "site": {"unit": "site", "epsilon": 50, "delta": 1e-3, "sites": 2, "clip": 0.05},
}
IN_AN_UPDATE = {
    "config": {"study", "round", "site"}, "metrics": {"num-examples"}, "arrays": {"weights"},
    "ledger": {"count", "head", "digests"}, "audit": {"count", "head", "digests", "known", "known-head"},
}  # fmt: skip


@pytest.mark.parametrize("unit", ["patient", "site"])
def test_a_private_study_sends_tensors_constants_and_heads_of_logs(
    tmp_path: Path, study: MakeStudy, hospitals: list[Hospital], unit: str
) -> None:
    """What is in the tensors is another test's business (test_private_site.py): here, that there is nothing else."""
    private = study(rounds={"count": 2}, training={"epochs": None, "steps": 1}, privacy=PRIVATE[unit])
    for hospital in hospitals:
        hospital.site_file.write_text(hospital.site_file.read_text() + "\nledger: state/ledger.jsonl\n")
    approved(private, hospitals, tmp_path)
    contents: list[RecordDict] = []
    left = federate(tmp_path, private, hospitals, contents)
    assert (tmp_path / "server" / "global.safetensors").exists()  # it ran to its end
    updates = [content for content in contents if "arrays" in content]
    assert len(updates) == 4  # of two sites in two rounds
    for content in updates:
        assert {name: set(record) for name, record in content.items()} == IN_AN_UPDATE
        assert dict(content["metrics"]) == {"num-examples": 1}
    who = [content for content in contents if "images" in content["config"]]
    assert len(who) == 2 and all(content["config"]["images"] == 1 for content in who)
    assert words_in(left, [*all_words(hospitals), "images_seen", "feature_spread", "patients_a_step"]) == set()
    assert patches_in(left, all_patterns(private, hospitals)) == 0


def cut_files(hospital: Hospital) -> None:
    for path in hospital.site_file.parent.rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:700])


def move_away(hospital: Hospital) -> None:
    (hospital.site_file.parent / "pacs-export").rename(hospital.site_file.parent / "moved")


FAILING: dict[str, Callable[[Hospital], None]] = {
    "not approved": lambda hospital: None,
    "broken files": cut_files,
    "folder gone": move_away,
}


@pytest.mark.parametrize("case", FAILING)
def test_a_site_that_cannot_take_part_says_a_category_only(
    tmp_path: Path, small: Study, hospitals: list[Hospital], case: str
) -> None:
    if case != "not approved":
        approved(small, hospitals, tmp_path)
    FAILING[case](hospitals[0])
    left = federate(tmp_path, small, hospitals)
    assert words_in(left, all_words(hospitals)) == set()
    category = "study-not-approved" if case == "not approved" else "data-not-usable"
    assert words_in(left, [category]) == {category}
    assert "Traceback" in (hospitals[0].site_file.parent / "state" / "site.log").read_text()


@pytest.mark.parametrize("kind", ["a metric's name", "an error's text", "a tensor"])
def test_a_method_that_means_to_tell_does_not_get_it_out(
    tmp_path: Path, small: Study, hospitals: list[Hospital], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    approved(small, hospitals, tmp_path)
    real = client.training.site_training.train_round

    def train_round(*arguments: Any) -> RoundOutcome:
        outcome = real(*arguments)
        if kind == "an error's text":
            raise ValueError("DOE^SECRET at /data/MRN-0048151623")
        if kind == "a metric's name":
            outcome.metrics["doe_secret_mrn_0048151623"] = 1.0
        else:
            arguments[0].method.encoder.register_buffer("doe_secret", torch.rand(4, 4))
        return outcome

    monkeypatch.setattr(client.training.site_training, "train_round", train_round)
    left = federate(tmp_path, small, hospitals)
    assert words_in(left, [*all_words(hospitals), "doe_secret"]) == set()
    assert words_in(left, ["internal-error"]) == {"internal-error"}
    log = (hospitals[0].site_file.parent / "state" / "site.log").read_text()
    assert "doe_secret" in log.lower().replace("^", "_")  # the site's own log says what was withheld
