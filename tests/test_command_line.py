"""The command line: instant help, lists that fit a terminal, --debug, Ctrl-C and how to go on after it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from federation.algorithms import ALGORITHMS
from federation.audit.log import AuditLog
from foundation.files import read_jsonl
from server.enrolment.provision import provision
from server.monitoring.status_writer import StatusWriter
from ssl_methods import METHODS
from ssl_methods.encoders.table import ENCODERS

Call = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "timm", "monai", "flwr", "pandas", "numpy", "pydantic", "matplotlib")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}


HELP = f"""
import sys
sys.argv = ["fedpretext", *sys.argv[1:]]
from fedpretext.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"], ["evaluate", "--help"]], ids=" ".join)
def test_help_is_instant(arguments: list[str], tmp_path: Path) -> None:
    """It imports nothing that takes time: less than a second of processor time."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False,
    )  # fmt: skip
    after = os.times()
    assert done.returncode == 0, done.stderr
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.0
    assert max(map(len, done.stdout.splitlines())) <= 80
    words = ("simulate", "evaluate", "validate", "preview", "methods", "algorithms", "encoders", "--debug")
    for word in words if arguments == ["--help"] else ("--help",):
        assert word in done.stdout


LOOKED_UP = ("audit", "status", "revoke", "expiry")


@pytest.mark.parametrize("command", LOOKED_UP)
def test_who_looks_something_up_does_not_wait_for_the_methods(command: str, tmp_path: Path) -> None:
    """At two in the night seconds count: torch, timm and Flower, which take several, stay out of it."""
    StatusWriter(tmp_path / "status.json", "tiny", "ab" * 32, 3)
    AuditLog(tmp_path / "audit.jsonl", "server").append("round aggregated", round=1)
    provision(ROOT / "configs" / "walkthrough.yaml", server="localhost:8443", sites=["north"], out=tmp_path / "kits")
    arguments = {
        "audit": [tmp_path],
        "status": [tmp_path, "--once"],
        "revoke": [tmp_path / "kits" / "server", "north", "--reason", "a test"],
        "expiry": [tmp_path / "kits" / "server"],
    }[command]
    code = HELP.replace(repr(HEAVY), repr(("torch", "timm", "flwr", "scipy")))
    done = subprocess.run(
        [sys.executable, "-c", code, command, *map(str, arguments)],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "table"), [("algorithms", ALGORITHMS), ("encoders", ENCODERS)])
def test_lists(command: str, table: dict[str, Any], fedpretext: Call) -> None:
    """Every entry with its summary and its paper, in 80 columns."""
    said = fedpretext(command)
    assert said.code == 0
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[0] != " "] == list(table)
    text = " ".join(said.out.split())
    for entry in table.values():
        assert entry.summary in text
        assert entry.paper in text
    if command == "encoders":
        norms = text.count("; BatchNorm, or GroupNorm with encoder.norm: group")
        assert norms == sum(entry.batch_norm for entry in table.values()) > 0


def test_methods_by_family_with_all_that_a_reader_chooses_by(fedpretext: Call) -> None:
    lines = fedpretext("methods").out.splitlines()
    assert max(map(len, lines)) <= 80
    families = [line for line in lines[:-4] if line[0] != " "]
    assert families == ["contrastive", "non-contrastive", "predictive", "reconstruction", "hybrid"]
    entries = " ".join(" ".join(lines).split())
    for name, method in METHODS.items():
        about = f"{'per-sample' if method.per_sample else 'coupled'}; {', '.join(f'{d}-D' for d in method.dimensions)};"
        assert f"{name} {method.summary} ({method.paper}) {about} encoders: " in entries
    assert "least of its members" in entries
    assert "learning_rate 0.0032, betas 0.9, 0.999" in entries


def test_validate_prints_facts(fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    said = fedpretext("validate", study_file)
    assert said.code == 0
    facts = said.out.splitlines()
    assert facts[0] == ("method: mae (He et al. 2022; federated: Yan et al. 2023), encoder vit_tiny_patch16_224, 32 px")
    assert "site north: 12 images of 4 patients to pretrain on" in facts
    assert "site small: 9 images of 3 patients to pretrain on" in facts
    assert not any("site away" in fact for fact in facts)
    # five random, federated, pooled, north and south alone; 12, 12 and 8 of 9 images in whole batches of 4, two rounds.
    assert (
        "arms: 9 encoders, 4 of them pretrained, each by the same passes over its own; federated: 64 images seen, "
        "each 1.94 times (6 steps one after another)"
    ) in facts
    assert any(fact.startswith("a round: ") and fact.endswith("; 2 rounds") for fact in facts)
    assert any(fact.startswith("memory at a site: about ") for fact in facts)
    assert facts[-1].startswith("study tiny: is valid, hash ")
    assert not any("warning" in fact for fact in facts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "study.yaml"]


def test_bytes_a_round(fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    """Counted by hand for a ViT of one block, and printed in MiB."""
    wide = "encoder={name: vit_tiny_patch16_224, patch_size: 8, depth: 1, width: 256, heads: 2}"
    said = fedpretext("validate", study_file, "--set", wide, "--set", "method.share=[encoder]")
    width, patch, places = 256, 64, 16
    block = 4 * width + (3 * width * width + 3 * width) + (width * width + width)
    block += (4 * width * width + 4 * width) + (4 * width * width + width)
    encoder = (patch * width + width) + places * width + block + 2 * width
    assert f"shared: encoder {encoder / 1e6:.2f} M numbers" in said.out.splitlines()
    assert f"a round: {encoder * 4 / 2**20:.1f} MiB to each site and as much back; 2 rounds" in said.out.splitlines()


def test_validate_warns_of_positives(fedpretext: Call, study_file: Path, images: Any) -> None:
    """Where the label varies within a patient, patient positives teach the encoder to ignore it."""
    simclr = ("validate", study_file, "--set", "method={name: simclr, positives: patient}")
    (warning,) = [line for line in fedpretext(*simclr).out.splitlines() if line.startswith("warning: ")]
    assert "positives by patient, but the label 'label' varies within 20 of 20 patients" in warning
    assert warning.endswith("use positives: view")
    assert "warning" not in fedpretext("validate", study_file, "--set", "method.name=simclr",
                                       "--set", "method={name: simclr}").out  # fmt: skip
    heading, *rows = images.listing.read_text().splitlines()
    constant = [row[:-1] + str(int(row.split(",")[1][-1]) % 2) for row in rows]
    images.listing.write_text("\n".join([heading, *constant]) + "\n")
    said = fedpretext(*simclr)
    assert said.code == 0
    assert "warning" not in said.out


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback(place: int, fedpretext: Call) -> None:
    """Anywhere on the line; without it there is none."""
    arguments = ["validate", "nothing.yaml"]
    assert "Traceback" not in fedpretext(*arguments).err
    said = fedpretext(*arguments[:place], "--debug", *arguments[place:])
    assert said.code == 2
    assert "Traceback (most recent call last)" in said.err
    assert "StudyError" in said.err
    assert said.err.splitlines()[-1].startswith("error: nothing.yaml: there is no such study file")


def test_wrong_usage(fedpretext: Call) -> None:
    assert "No such command 'simulat'" in fedpretext("simulat").error
    assert "Missing argument 'STUDY'" in fedpretext("simulate").error
    answer = fedpretext("simulate", "x.yaml", "--resum", "y").error
    assert "No such option" in answer
    assert "--resum" in answer


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, fedpretext: Call, study_file: Path) -> None:
    """What is no error of the user's keeps its traceback, which a report of the fault needs."""

    def faulty(*_: Any, **__: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr("simulation.validate.validate", faulty)
    with pytest.raises(AssertionError, match="ours"):
        fedpretext("validate", study_file)


def test_simulate_prints_the_answer_and_the_report(fedpretext: Call, finished: Any, tmp_path: Path) -> None:
    """On the finished run again: it only reads."""
    run = finished.copy(tmp_path / "run")
    said = fedpretext("simulate", finished.study, "--resume", run)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[-1] == f"report: {run / 'report.html'}"
    assert max(map(len, lines[:-1])) <= 80
    assert any(line.startswith("Federated ") for line in lines)
    assert f"resuming {run}" in said.err
    assert "error" not in said.err


def test_evaluate_with_another_protocol(fedpretext: Call, finished: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    said = fedpretext("evaluate", run, "--protocol", "logistic")
    assert said.code == 0
    assert said.out.splitlines()[-1] == f"report: {run / 'report.html'}"
    results = (run / "results.csv").read_text()
    assert ",logistic," in results
    assert ",knn," in results


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    """Exit code 130, no traceback, and the line to go on with, which works as it is printed."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    brief = ("--device", "cpu", "--set", "simulation.arms=[]")
    with monkeypatch.context() as patched:
        patched.setattr("client.training.site_training.train_round", interrupted)
        said = fedpretext("simulate", study_file, *brief)
    assert said.code == 130
    assert "Traceback" not in said.err
    assert "error" not in said.err
    (hint,) = [line for line in said.err.splitlines() if line.startswith("stopped; ")]
    said = fedpretext(*hint.split("Go on with: fedpretext ")[1].split())
    assert said.code == 0, said.err
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_ctrl_c_for_real(fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    """SIGINT to a process in the middle of training; what it had done is not done again."""
    raw = yaml.safe_load(study_file.read_text())
    raw["rounds"]["count"] = 80
    raw["simulation"]["arms"] = []
    study_file.write_text(yaml.safe_dump(raw))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpretext", "simulate", str(study_file), "--device", "cpu"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        pattern = "runs/*/arms/federated/fold-0/seed-0/checkpoints/round-*"
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert out == ""
    assert "Traceback" not in err
    assert "stopped; what is finished is kept. Go on with: fedpretext simulate runs/" in err
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "arms" / "federated" / "fold-0" / "seed-0" / "encoder.json").exists()
    reached = max(int(path.name[-5:]) for path in tmp_path.glob(pattern))
    assert reached < 80
    said = fedpretext("simulate", study_file, "--resume", run, "--device", "cpu")
    assert said.code == 0, said.err
    rows = read_jsonl(run / "arms" / "federated" / "fold-0" / "seed-0" / "metrics.jsonl")
    assert [row["round"] for row in rows if row["site"] == "north"] == list(range(1, 81))
