"""The app that a run ships: the same bytes wherever they are made, and nothing in them but names and a hash."""

import importlib.metadata
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import get_fab_config, get_fused_config_from_fab, get_metadata_from_config
from flwr.supercore.run import Run

from federation.app_bundle import CLIENT_APP, SERVER_APP, app_bundle, bundle_digest
from federation.study import Study, study_from

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Study]


@pytest.fixture
def study(raw_study: dict[str, Any]) -> Make:
    """``study(title="x", training={"batch": 2})``: the small study with other values."""

    def make(**changes: Any) -> Study:
        raw = {
            key: {**raw_study.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        return study_from({**raw_study, **raw}, "test")

    return make


def pyproject(bundle: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        assert archive.testzip() is None
        return archive.read("pyproject.toml").decode()


ELSEWHERE = """
import os, sys
from pathlib import Path
os.umask(0o077)
from federation.app_bundle import app_bundle
from federation.study import load_study
sys.stdout.buffer.write(app_bundle(load_study(Path("study.yaml"))))
"""


def test_the_same_bytes_in_another_process_zone_and_umask(study: Make, tmp_path: Path) -> None:
    """Defends the comparison at a site: any byte that depended on the machine would refuse every honest server."""
    (tmp_path / "study.yaml").write_text(study().to_yaml())
    environment = os.environ | {
        "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "LC_ALL": "C",
    }  # fmt: skip
    elsewhere = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(elsewhere, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert done.stdout == app_bundle(study())


def test_it_holds_names_and_a_hash_and_no_code(study: Make) -> None:
    """Defends a hospital that would run Flower's own executor by mistake: there is nothing in it to run or install."""
    bundle = app_bundle(study(title="A title", simulation={"dataset": "folder", "root": "/secret/place"}))
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    text = pyproject(bundle)
    assert f'training-hash = "{study().training_hash()}"' in text
    assert f'clientapp = "{CLIENT_APP}"' in text and f'serverapp = "{SERVER_APP}"' in text
    assert "dependencies = []" in text and "build-system" not in text
    assert "/secret" not in text and "A title" not in text
    assert len(bundle) < 2000


def test_flower_takes_it(study: Make) -> None:
    """What a SuperLink asks of the app of a run, and what a SuperNode makes of it, before any code of ours."""
    bundle = app_bundle(study())
    config = get_fab_config(bundle)
    assert config["tool"]["flwr"]["app"]["components"] == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    version = importlib.metadata.version("fedpretext")
    assert get_metadata_from_config(config) == ("fedpretext/tiny", version)
    run = Run.create_empty(1)
    assert get_fused_config_from_fab(bundle, run) == {"training-hash": study().training_hash()}
    assert len(bundle_digest(bundle)) == 64


DIFFERENT: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "rounds": {"rounds": {"count": 4}},
    "training": {"training": {"learning_rate": 0.02}},
    "method": {"method": {"name": "mae", "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 2}},
    "encoder": {"encoder": {"width": 48}},
    "image": {"image": {"size": 64}},
    "algorithm": {"algorithm": {"name": "fedprox"}},
    "name": {"name": "other"},
}


def test_it_differs_where_what_is_trained_differs(study: Make) -> None:
    """Defends the approval: no two studies that train differently have one app."""
    made = {case: app_bundle(study(**changes)) for case, changes in DIFFERENT.items()} | {"": app_bundle(study())}
    assert len(set(made.values())) == len(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "Another title"},
        {"evaluation": {"protocols": ["knn"]}},
        {"simulation": {"dataset": "folder", "root": "elsewhere"}},
        {"demonstration": True},
    ],
)
def test_it_does_not_differ_where_only_words_or_the_evaluation_do(study: Make, changes: dict[str, Any]) -> None:
    """A hospital that has approved a study goes on when the study lead names or evaluates it otherwise."""
    assert app_bundle(study(**changes)) == app_bundle(study())


def test_it_differs_from_that_of_another_version(study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defends the run against two programs that train differently under one study file."""
    before = app_bundle(study())
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9.9")
    assert app_bundle(study()) != before
