"""DICOM series with identifiers, trained end to end: every byte that left and every file of the server is searched."""

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_to_proto
from pydicom.data import get_testdata_file

import client.app
import client.site
from client.approval import approve
from client.site import Site
from client.site_file import load_site_file
from client.training import RoundOutcome
from federation.records import TrainInstruction, TrainReply
from federation.study import Study
from foundation.errors import FedpretextError
from server.app import app as server_app
from server.rounds import write_study
from simulation.grid import InProcessGrid

MakeStudy = Callable[..., Study]
Pixels = npt.NDArray[np.uint16]
SIDE = 32
IDENTIFIERS = {
    "PatientName": "DOE^SECRET", "PatientID": "MRN-0048151623", "PatientBirthDate": "19570311",
    "InstitutionName": "St. Elsewhere", "AccessionNumber": "ACC-4815162342", "StudyDate": "20231107",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4815", "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.1623",
    "OperatorsName": "HOUSE^GREGORY", "StudyDescription": "Kopf nativ, V.a. Hirntumor",
}  # fmt: skip


@dataclass(frozen=True)
class Hospital:
    """A hospital's site file, all that must not be found elsewhere, and its pixels."""

    site_file: Path
    words: list[str]
    pixels: list[Pixels]


def write_hospital(place: Path, name: str, patients: int = 5, each: int = 2) -> Hospital:
    """A folder with a DICOM series a patient, named after the patient, as an export leaves it."""
    draw = np.random.default_rng(len(name))
    words, pixels = [str(place), place.name, *IDENTIFIERS.values()], []
    for patient in range(patients):
        folder = place / f"DOE_SECRET_{name}_{patient}"
        folder.mkdir(parents=True)
        for number in range(each):
            dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
            for tag, value in IDENTIFIERS.items():
                own = f"{value}.{patient}" if tag.endswith("UID") else value
                setattr(dataset, tag, f"{own}-{patient}" if tag == "PatientID" else own)
            dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.99.{patient}.{number}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.Rows = dataset.Columns = SIDE
            array = draw.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
            dataset.PixelData = array.tobytes()
            dataset.InstanceNumber = number + 1
            dataset.save_as(folder / f"IMG-{name}-{patient}-{number}.dcm")
            words.append(f"IMG-{name}-{patient}-{number}")
            pixels.append(array)
        words.append(folder.name)
    site = {"site": name, "data": str(place), "state": "state", "cache": "cache", "device": "cpu"}
    (place.parent / f"{place.name}.yaml").write_text(yaml.safe_dump(site))
    return Hospital(place.parent / f"{place.name}.yaml", words, pixels)


class RecordingGrid(InProcessGrid):
    """Keeps every reply as it would be on the wire."""

    sent: list[bytes]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies, after noting their bytes."""
        replies = super().pull_messages(message_ids)
        self.sent += [message_to_proto(reply).SerializeToString() for reply in replies]
        return replies


def federate(tmp_path: Path, study: Study, hospitals: list[Hospital]) -> list[bytes]:
    """Run the study; the bytes of every message that left a hospital, and of every file at the server."""
    folder = tmp_path / "server"
    write_study(folder, study)
    config = {"study": str(folder / "study.yaml"), "folder": str(folder), "sites": len(hospitals)}
    nodes = [{"site-file": str(hospital.site_file)} for hospital in hospitals]
    grid = RecordingGrid(client.app.app, nodes, config)
    grid.sent = []
    try:
        server_app(grid, Context(1, 1, {}, RecordDict(), dict(config)))
    except FedpretextError as error:
        grid.sent.append(str(error).encode())
    return [*grid.sent, *(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())]


def forms(word: str) -> list[bytes]:
    """How a text may be written."""
    plain = word.encode()
    return [
        plain,
        word.encode("utf-16-le"),
        plain.hex().encode(),
        base64.b64encode(plain).rstrip(b"=")[:-1],
        plain[::-1],
    ]


def words_in(blobs: list[bytes], words: list[str]) -> set[str]:
    return {word for word in words for blob in blobs if any(form in blob for form in forms(word))}


def patterns(pixels: Pixels, stored: npt.NDArray[Any]) -> set[bytes]:
    """All 4 x 4 patches of a picture, as the file, the cache and the trainer have them, and scaled to 8 bits."""
    unit = stored.astype(np.float32) / np.float32(65535)
    kinds = [pixels, pixels.astype(np.float32), (pixels >> 4).astype(np.uint8), stored, unit]
    kinds += [(stored >> 8).astype(np.uint8), unit.astype(np.float16), unit.astype(np.float64)]
    found: set[bytes] = set()
    for kind in kinds:
        windows = np.lib.stride_tricks.sliding_window_view(kind, (4, 4)).reshape(-1, 16)
        found |= {row.tobytes() for row in windows}
    return found


def patches_in(blobs: list[bytes], wanted: set[bytes]) -> int:
    """How many of the patches are somewhere in the blobs, at any offset."""
    starts = np.unique(np.array([int.from_bytes(each[:8], "little") for each in wanted], dtype=np.uint64))
    hits = 0
    for blob in blobs:
        data = np.frombuffer(blob, np.uint8)
        if len(data) < 16:
            continue
        at = np.lib.stride_tricks.sliding_window_view(data, 8)
        heads = np.ascontiguousarray(at).view("<u8")[:, 0]
        for offset in np.flatnonzero(np.isin(heads, starts)).tolist():
            hits += sum(blob[offset : offset + length] in wanted for length in (16, 32, 64, 128))
    return hits


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Two hospitals of 10 slices of 5 patients, with the default policy."""
    yield [write_hospital(tmp_path / f"klinik-{name}" / "pacs-export", name) for name in ("north", "south")]
    client.site._bench.clear()  # a test may have changed the model


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
        store = Site(load_site_file(hospital.site_file), study).store()
        decoded = (store.batch(np.arange(len(store))).numpy()[:, 0] * 65535).round().astype(np.uint16)
        for pixels, picture in zip(hospital.pixels, decoded, strict=True):
            found |= patterns(pixels, picture)
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
    real = Site.trained_or_stored

    def train(self: Site, instruction: TrainInstruction) -> tuple[TrainReply, bool]:
        reply, again = real(self, instruction)
        picture = self.store().batch(np.array([0]))[0, 0]
        next(v for v in reply.weights.values() if v.numel() >= 64).view(-1)[8:24] = picture[3:7, 5:9].flatten()
        return reply, again

    monkeypatch.setattr(Site, "trained_or_stored", train)
    left = federate(tmp_path, small, hospitals)
    assert patches_in(left, all_patterns(small, hospitals)) >= 4


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
    real = client.site.train_round

    def train_round(*arguments: Any) -> RoundOutcome:
        outcome = real(*arguments)
        if kind == "an error's text":
            raise ValueError("DOE^SECRET at /data/MRN-0048151623")
        if kind == "a metric's name":
            outcome.metrics["doe_secret_mrn_0048151623"] = 1.0
        else:
            arguments[1].encoder.register_buffer("doe_secret", torch.rand(4, 4))
        return outcome

    monkeypatch.setattr(client.site, "train_round", train_round)
    left = federate(tmp_path, small, hospitals)
    assert words_in(left, [*all_words(hospitals), "doe_secret"]) == set()
    assert words_in(left, ["internal-error"]) == {"internal-error"}
    log = (hospitals[0].site_file.parent / "state" / "site.log").read_text()
    assert "doe_secret" in log.lower().replace("^", "_")  # the site's own log says what was withheld
