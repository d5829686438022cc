"""Which encoder is taken, where it is put, and what becomes of a place or a run that does not do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from evaluation.export import export as exporting
from evaluation.export.commands import mount
from evaluation.export.export import TARGETS, Target, export
from evaluation.export.source import Source, find_encoder
from foundation.errors import FedpretextError, RunError
from foundation.tensor_files import load_tensors

MakeRun = Callable[..., Path]


def test_arm_fold_and_seed_choose_the_weights(make_run: MakeRun) -> None:
    for arm in ("federated", "centralised"):
        for fold in (0, 1):
            for seed in (10, 9):
                run = make_run(arm=arm, fold=fold, seed=seed)
    place = export(run, "timm", "centralised", 1, 10)
    assert place == run / "export" / "centralised-fold-1-seed-10-timm"
    own, _ = load_tensors(run / "arms/centralised/fold-1/seed-10/encoder.safetensors")
    out, answer = load_tensors(place / "model.safetensors")
    assert answer == {"format": "pt"}
    assert all(torch.equal(own[name], out[name]) for name in own)
    assert find_encoder(run).weights == run / "arms/federated/fold-0/seed-9/encoder.safetensors"  # the lowest, not "10"


def test_an_empty_folder_is_taken_and_any_other_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "empty").mkdir()
    assert export(run, "monai", out=tmp_path / "empty") == tmp_path / "empty"
    for place in (tmp_path / "empty", run / "arms/federated/fold-0/seed-0/encoder.json"):
        with pytest.raises(RunError, match="exists already; name another folder with --out, or remove this one"):
            export(run, "monai", out=place)


def test_what_fails_half_way_leaves_nothing(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: Source, folder: Path, card: str) -> None:
        (folder / "half").write_text(card)
        raise RunError("the disk is full")

    monkeypatch.setitem(exporting.TARGETS, "timm", Target(write, lambda source: ""))
    with pytest.raises(RunError, match="the disk is full"):
        export(make_run(), "timm", out=tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"to": "tim"}, r"target 'tim' is not known; there are: monai, onnx, timm; did you mean 'timm'\?"),
        ({"arm": "federate"}, r"has no arm 'federate'; there are: centralised, federated; did you mean 'federated'\?"),
        ({"fold": 3}, "has no fold 3 of 'federated'; there are: 0"),
        ({"seed": 3}, "has no seed 3 of 'federated', fold 0; there are: 0, 12"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(make_run: MakeRun, asked: dict[str, object], said: str) -> None:
    make_run()
    make_run(seed=12)
    run = make_run(arm="centralised")
    with pytest.raises(FedpretextError, match=said) as caught:
        export(run, **({"to": "timm"} | asked))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (run / "export").exists()


def test_a_run_that_is_not_there_not_finished_or_damaged(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "begun" / "arms" / "federated" / "fold-0" / "seed-0").mkdir(parents=True)
    run = make_run()
    place = run / "arms/federated/fold-0/seed-0"
    facts = json.loads((place / "encoder.json").read_text())
    with pytest.raises(RunError, match="there is no such run folder"):
        export(tmp_path / "none", "timm")
    with pytest.raises(RunError, match="holds no trained encoder under arms/; finish it first"):
        export(tmp_path / "begun", "timm")
    for change, said in (
        (facts | {"encoder": facts["encoder"] | {"width": 48}}, "does not fit vit_tiny_patch16_224"),
        (facts | {"encoder": {"nam": "x"}}, "does not describe an encoder"),
        ([], "does not describe an encoder"),
    ):
        (place / "encoder.json").write_text(json.dumps(change))
        with pytest.raises(RunError, match=said) as caught:
            export(run, "timm")
        assert "\n" not in str(caught.value)
    (place / "encoder.safetensors").unlink()
    with pytest.raises(RunError, match=r"encoder\.safetensors: is missing beside its encoder\.json"):
        export(run, "timm")
    assert not (run / "export").exists()


def test_the_command(make_run: MakeRun, tmp_path: Path) -> None:
    app = typer.Typer()
    mount(app)
    run = make_run(seed=4)
    said = CliRunner().invoke(app, [str(run), "--to", "timm", "--seed", "4", "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert f"encoder: {tmp_path / 'out'}" in said.output
    assert (tmp_path / "out" / "config.json").is_file()
    assert set(TARGETS) == {"timm", "onnx", "monai"}
