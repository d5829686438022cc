"""Fixtures that every room's tests share."""

import copy
import fcntl
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image

from federation.study import study_from
from fedpretext.cli import main as command_line
from foundation.messages import print_messages
from server.rounds import write_study
from simulation.simulate import simulate
from simulation.sites.site_folders import Federation

print_messages()  # as the programs do: tests read them

# Examples of each property, chosen by --hypothesis-profile. A busy machine must not fail a test: no deadline.
for profile, examples in {"quick": 20, "thorough": 100, "soak": 500}.items():
    settings.register_profile(profile, deadline=None, max_examples=examples)
settings.load_profile("quick")

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that; some tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


_LONGEST = (
    "deployment/test_survival.py", "deployment/test_walkthrough.py", "simulation/test_ray_runtime.py",
    "deployment/test_private_deployment.py", "client/test_every_method.py", "advisor/test_study_file.py",
    "deployment/test_security.py", "evaluation/test_stage.py", "test_command_line.py", "test_readme.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, or one process would work on them when the others have nothing left.

    Those of a federation's real programs take turns with others: two of them at once are short of cores.
    """
    places = {path: number for number, path in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(ROOT / "tests").as_posix(), len(places)))


def pytest_collection_finish() -> None:
    """What the imports made is no garbage: the collector need not look through it thousands of times."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def disk_without_sync() -> Iterator[None]:
    """What a test writes need not outlive a power cut, and waiting for disks takes as long as all the computing.

    Programs that tests start do wait for theirs; a test that looks at the waiting puts a function of its own here.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and recorded reference values that lies beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' beside the checkout (real images and reference values)")
    return folder


SIDE = 32


def write_site(folder: Path, site: str, images: int, patients: int, seed: int) -> Path:
    """A hospital's folder with small random images, its manifest and its site file; returns the site file."""
    draw = np.random.default_rng(seed)
    place = folder / site
    place.mkdir(parents=True)
    rows = ["image,patient"]
    for number in range(images):
        smooth = np.kron(draw.integers(0, 256, (8, 8)), np.ones((4, 4)))
        Image.fromarray(smooth.astype(np.uint8)).save(place / f"{number:03d}.png")
        rows.append(f"{number:03d}.png,{site}-{number % patients}")
    (place / "manifest.csv").write_text("\n".join(rows) + "\n")
    (place / "site.yaml").write_text(
        f"site: {site}\ndata: manifest.csv\nstate: state\ncache: ../../store\ndevice: cpu\n"
        "policy: {studies: any, min_images: 1, min_patients: 1, smallest_count: 1}\n"
    )
    return place / "site.yaml"


@pytest.fixture(name="write_site")
def write_site_fixture() -> Callable[..., Path]:
    """``write_site(folder, "A", images=9, patients=3, seed=0)``, for conftests of rooms."""
    return write_site


@pytest.fixture
def hospital(tmp_path: Path) -> Callable[..., Path]:
    """``hospital("A", images=9, patients=3)``: a hospital's folder; its site file."""

    def make(site: str = "A", images: int = 9, patients: int = 3, folder: Path = tmp_path / "sites") -> Path:
        return write_site(folder, site, images, patients, seed=images)

    return make


STUDY: dict[str, Any] = {
    "name": "tiny",
    "image": {"modality": "mri", "size": SIDE, "channels": 1},
    "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
    "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "training": {"batch": 4, "learning_rate": 0.01},
    "algorithm": {"name": "fedavg"},
    "rounds": {"count": 3, "deadline_minutes": 5},
}


@pytest.fixture
def raw_study() -> dict[str, Any]:
    """A study small enough to train in a second, as a plain mapping to change."""
    return copy.deepcopy(STUDY)


@pytest.fixture
def federation(tmp_path: Path) -> Callable[[dict[str, Any]], Federation]:
    """Makes a prepared federation of three small sites (A 9 images, B 6, C 4) for a raw study."""

    def make(raw: dict[str, Any], name: str = "federation") -> Federation:
        folder = tmp_path / name
        write_study(folder, study_from(raw, "test"))
        for seed, (site, images) in enumerate({"A": 9, "B": 6, "C": 4}.items()):
            write_site(folder / "sites", site, images, patients=2, seed=seed)
        return Federation(folder, ("A", "B", "C"))

    return make


SITES = {"north": 6, "south": 6, "small": 3, "away": 5}
SIMULATED: dict[str, Any] = {
    **STUDY,
    "rounds": {"count": 2, "attempts": 1},
    "evaluation": {"protocols": ["knn"], "finetune": {"epochs": 1}},
    "simulation": {"dataset": "folder", "splits": {"left_out": ["away"]}},
}


@dataclass(frozen=True)
class Images:
    """A dataset of the user's own: images of all sites in one folder, listed in ``manifest.csv``."""

    root: Path

    @property
    def listing(self) -> Path:
        return self.root / "manifest.csv"

    def of(self, site: str) -> list[Path]:
        return sorted(self.root.glob(f"{site}-*.png"))

    def replace(self, old: str, new: str, count: int = -1) -> None:
        """Change the manifest's text."""
        text = self.listing.read_text()
        assert old in text
        self.listing.write_text(text.replace(old, new, count))


def write_images(root: Path, sites: dict[str, int] = SITES, each: int = 3) -> Images:
    """Noise with a bright square in half of the images; their sizes differ."""
    draw = np.random.default_rng(7)
    root.mkdir(parents=True)
    rows = ["image,patient,site,label"]
    for site, patients in sites.items():
        for patient in range(patients):
            for number in range(each):
                label, side = (patient + number) % 2, int(draw.integers(28, 40))
                pixels = draw.integers(0, 128, (side, side))
                pixels[8:20, 8:20] += 100 * label
                name = f"{site}-{patient}-{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(root / name)
                rows.append(f"{name},{site}-{patient},{site},{label}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return Images(root)


def write_simulated(path: Path, root: Path, **changes: Any) -> Path:
    """A study file over the images in ``root``; ``changes`` replace whole sections."""
    raw = copy.deepcopy(SIMULATED) | changes
    raw["simulation"]["root"] = str(root)
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Images of four sites: north and south (6 patients), small (3, so it has no test set), away (left out)."""
    return write_images(tmp_path / "images")


@pytest.fixture
def study_file(tmp_path: Path, images: Images) -> Path:
    """A study over ``images``: MAE, two rounds."""
    return write_simulated(tmp_path / "study.yaml", images.root)


@dataclass(frozen=True)
class Finished:
    """A finished run, for tests that only look at it or copy it."""

    study: Path
    images: Path
    folder: Path

    def copy(self, place: Path) -> Path:
        shutil.copytree(self.folder, place)
        return place


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once("name", make)``: a folder that ``make(folder)`` filled, once for all of pytest's processes.

    The name says all that the content depends on. Tests read such a folder, or work in a copy.
    """
    base = tmp_path_factory.getbasetemp()
    common = (base if worker_id == "master" else base.parent) / "made-once"
    common.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = common / name, common / f"{name}.whole"
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def finished(made_once: Callable[..., Path]) -> Finished:
    """The study of ``study_file``, run once for all tests."""

    def make(place: Path) -> None:
        study = write_simulated(place / "study.yaml", write_images(place / "images").root)
        simulate(study, runs=place / "runs", device="cpu")

    place = made_once("finished", make)
    (folder,) = (place / "runs").iterdir()
    return Finished(place / "study.yaml", place / "images", folder)


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error, without ``error: ``; fails where there is not exactly one, or a traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 2, (self.code, self.out, self.err)
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err, self.err
        return lines[0].removeprefix("error: ")


@pytest.fixture
def fedpretext(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """``fedpretext("validate", study)``: the command line, in this process and in a folder of its own."""

    def call(*arguments: str | Path) -> Said:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["fedpretext", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            command_line()
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return Said(code or 0, printed.out, printed.err)

    return call
