"""What goes wrong on the way: broken images, a loss that is not finite, a full disk, files cut short."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.files import read_jsonl
from foundation.tensor_files import load_tensors
from simulation.runtimes.table import run_in_process
from simulation.sites.site_folders import Federation
from ssl_methods.reconstruction.mae import MAE

Call = Callable[..., Any]


def run_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else []


def quick(study_file: Path) -> list[str | Path]:
    """The command for a run of one pretrained arm."""
    return ["simulate", study_file, "--device", "cpu", "--set", "simulation.arms=[]"]


def test_broken_images_are_skipped_counted_and_listed(
    fedpretext: Call, study_file: Path, images: Any, tmp_path: Path
) -> None:
    """A truncated PNG and a corrupt DICOM among the images of a site; its sizes are mixed and it trains."""
    site = tmp_path / "images"
    row = "small-{0},small,{1}\n"
    for number in range(32):
        name = f"small-extra-{number}.png"
        Image.fromarray(np.full((20 + number, 40), number * 7, np.uint8)).save(site / name)
        with images.listing.open("a") as manifest:
            manifest.write(f"{name}," + row.format(number % 3, number % 2))
    (site / "corrupt.dcm").write_bytes(bytes(128) + b"DICM" + b"\x07" * 400)
    with images.listing.open("a") as manifest:
        manifest.write("corrupt.dcm," + row.format(0, 0))
    broken = site / "small-1-1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    said = fedpretext(*quick(study_file))
    assert said.code == 0, said.err
    assert "site small: 2 images cannot be read and are left out; listed in " in said.err
    (run,) = run_folders(tmp_path)
    listed = [path.read_text() for path in run.glob("store/*/skipped.csv")]
    assert any("small-1-1.png" in text and "corrupt.dcm" in text and "cannot be read" in text for text in listed)
    rows = read_jsonl(run / "arms" / "federated" / "fold-0" / "seed-0" / "metrics.jsonl")
    assert {row["images"] for row in rows if row["site"] == "small"} == {9 + 32 + 1 - 2}
    assert "small" in (run / "report.html").read_text()


def test_too_many_broken_images_stop_the_site(fedpretext: Call, study_file: Path, images: Any, tmp_path: Path) -> None:
    """Before anything is trained; with the image mended, the same run goes on."""
    broken = tmp_path / "images" / "small-1-1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    said = fedpretext(*quick(study_file))
    assert said.error.startswith("site small: 1 of 9 images (11.1%) cannot be used, more than 5%; first: ")
    assert "small-1-1.png: cannot be read" in said.error
    (run,) = run_folders(tmp_path)
    assert not (run / "arms").exists()
    assert f"--resume {run.relative_to(tmp_path)}" in said.err
    broken.write_bytes(whole)
    assert fedpretext(*quick(study_file), "--resume", run).code == 0
    assert (run / "report.html").exists()


def test_mixed_channels(fedpretext: Call, study_file: Path, images: Any, tmp_path: Path) -> None:
    for path in images.of("south"):
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey, grey // 2, grey], axis=-1)).save(path)
    said = fedpretext("simulate", study_file)
    assert said.error.startswith("site south: ")
    assert "has 3 channels, but image.channels is 1; set image.channels to 3 or convert the image" in said.error


def not_a_number(monkeypatch: pytest.MonkeyPatch, sites: set[str]) -> None:
    """Make the loss NaN at these sites."""
    import client.training.site_training

    train_round, loss = client.training.site_training.train_round, MAE.loss
    now = {"at": ""}

    def answer(context: Any, *rest: Any) -> Any:
        now["at"] = context.site
        return train_round(context, *rest)

    def poisoned(self: MAE, views: Any) -> Any:
        value, scalars = loss(self, views)
        return value * (float("nan") if now["at"] in sites else 1.0), scalars

    monkeypatch.setattr("client.training.site_training.train_round", answer)
    monkeypatch.setattr(MAE, "loss", poisoned)


def test_nan_at_one_site(
    monkeypatch: pytest.MonkeyPatch, raw_study: dict[str, Any], federation: Callable[[dict[str, Any]], Federation]
) -> None:
    """Its reply is withheld, the reason recorded, and the round goes on as if it had not been there."""
    not_a_number(monkeypatch, {"B"})
    prepared = federation(raw_study)
    run_in_process(prepared)
    rows = read_jsonl(prepared.folder / "metrics.jsonl")
    answer = {"event": "site left out", "site": "B", "reason": "loss-not-finite"}
    assert [row for row in rows if "event" in row] == [{"round": number, **answer} for number in (1, 2, 3)]
    assert {row["site"] for row in rows if "loss" in row} == {"A", "C"}
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert not list(prepared.folder.glob("sites/B/state/*/round-*"))
    weights = load_tensors(prepared.folder / "global.safetensors")[0]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_nan_at_all_sites(monkeypatch: pytest.MonkeyPatch, fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    not_a_number(monkeypatch, {"north", "small", "south"})
    said = fedpretext(*quick(study_file))
    assert said.error.startswith(
        "round 1: fewer than 2 of 3 sites gave a usable update in 1 attempts (north: loss-not-finite; "
        "small: loss-not-finite; south: loss-not-finite); mend those sites, then go on; north's log says: "
    )
    assert "site north, round 1: the loss is not finite; lower training.learning_rate" in said.error
    (run,) = run_folders(tmp_path)
    rows = read_jsonl(run / "arms" / "federated" / "fold-0" / "seed-0" / "metrics.jsonl")
    reasons = {row["site"]: row["reason"] for row in rows if row["event"] == "no usable update"}
    assert reasons == dict.fromkeys(["north", "small", "south"], "loss-not-finite")


def test_a_learning_rate_that_breaks_the_weights(fedpretext: Call, study_file: Path) -> None:
    said = fedpretext(*quick(study_file), "--set", "training.learning_rate=1.0e+38")
    assert "loss-not-finite" in said.error
    assert "lower training.learning_rate" in said.error


def full_disk(monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    """Let no file get onto the disk whose path contains ``below``."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if below in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", refuse)


@pytest.mark.slow
def test_a_full_disk_and_then_room(
    monkeypatch: pytest.MonkeyPatch, fedpretext: Call, finished: Any, tmp_path: Path
) -> None:
    """Where images are decoded, at a site, reply store or checkpoint; then it ends as if nothing had been."""
    command = ["simulate", finished.study, "--device", "cpu"]
    with monkeypatch.context() as full:
        full_disk(full, "/store/")
        said = fedpretext(*command)
        assert "cannot be written (No space left on device); free space" in said.error
    (run,) = run_folders(tmp_path)
    command += ["--resume", run]
    with monkeypatch.context() as full:
        full_disk(full, "/state/")
        said = fedpretext(*command)
        assert said.error.startswith("site north: cannot take part (disk-full); its own log (state/site.log) says why")
        assert "No space left on device" in said.error
    for place in ("/replies/", "/checkpoints/"):
        with monkeypatch.context() as full:
            full_disk(full, place)
            said = fedpretext(*command)
            assert "could not be written (No space left on device); free space or permit writing" in said.error
            assert place in said.error
    assert not list(run.rglob("*.part"))
    assert not list(run.rglob("global.safetensors"))
    assert fedpretext(*command).code == 0
    for encoder in finished.folder.rglob("encoder.safetensors"):
        assert (run / encoder.relative_to(finished.folder)).read_bytes() == encoder.read_bytes()


def test_a_full_disk_at_the_start(
    monkeypatch: pytest.MonkeyPatch, fedpretext: Call, study_file: Path, tmp_path: Path
) -> None:
    full_disk(monkeypatch, "/runs/")
    assert "No space left on device" in fedpretext("simulate", study_file).error
    assert run_folders(tmp_path) == []


def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, fedpretext: Call, study_file: Path, tmp_path: Path
) -> None:
    """Libraries raise their own OSError: writing a phantom's PNG onto a full disk, say."""

    write = Path.write_bytes

    def refuse(path: Path, data: bytes) -> int:
        if path.suffix != ".png":
            return write(path, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    phantoms = (
        "--set",
        "simulation.dataset=phantoms",
        "--set",
        "simulation.root=null",
        "--set",
        "simulation.splits.left_out=[F]",
    )
    said = fedpretext("simulate", study_file, *phantoms)
    assert said.error.endswith(".png: No space left on device; free space or permit it, then try again")
    assert run_folders(tmp_path) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_files_of_a_federation(
    raw_study: dict[str, Any], federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint and a reply in the reply store, cut short: the last good ones count and the run ends the same."""
    undisturbed, disturbed = federation(raw_study, "undisturbed"), federation(raw_study, "disturbed")
    run_in_process(undisturbed)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        calls = iter([False, False, True])  # dies in round 3, with its reply store full
        write = __import__("server.rounds", fromlist=["write_checkpoint"]).write_checkpoint

        def dying(*arguments: Any, **named: Any) -> None:
            killed() if next(calls) else write(*arguments, **named)

        patched.setattr("server.rounds.write_checkpoint", dying)
        run_in_process(disturbed)
    cut(disturbed.folder / "replies" / "round-00003" / "B.safetensors")
    cut(disturbed.folder / "checkpoints" / "round-00002" / "weights.safetensors")
    run_in_process(disturbed)
    expected = (undisturbed.folder / "global.safetensors").read_bytes()
    assert (disturbed.folder / "global.safetensors").read_bytes() == expected
    assert len(list((disturbed.folder / "checkpoints").glob("damaged-round-00002-*"))) == 1
