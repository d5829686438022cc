"""The attacks on a tiny run, by function and by command, and what the report says of them."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from attacks import attack as module
from attacks.commands import table
from attacks.reading import largest_advantage
from attacks.settings import AttackSettings
from evaluation.report.page import write_report
from evaluation.report.tables.attack_rows import attack_rows, attack_section

Attacked = tuple[Path, dict[str, Any]]
KINDS = ["membership-loss", "membership-features", "membership-shadows", "inversion", "site"]


def test_every_attack_has_a_figure_a_control_and_a_reading(attacked: Attacked) -> None:
    _, answer = attacked
    assert [each["attack"] for each in answer["attacks"]] == KINDS
    for each in answer["attacks"]:
        for figure in (each["figure"], each["control"]):
            assert -1 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert each["reading"].endswith(".")
        assert each["permitted"] is None


def test_members_are_those_who_trained_and_the_others_were_held_out_at_the_same_sites(attacked: Attacked) -> None:
    folder, answer = attacked
    splits = pd.read_csv(folder / "evaluation" / "splits.csv", dtype=str).drop_duplicates("patient")
    splits = splits[splits["site"] != "away"]
    assert answer["members"] == (splits["role"] == "train").sum()
    assert answer["others"] == splits["role"].isin(["test", "validation"]).sum()


def test_nothing_is_left_in_the_run_but_figures(attacked: Attacked) -> None:
    folder, answer = attacked
    text = (folder / "attacks.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(answer))
    listing = pd.read_csv(folder / "evaluation" / "splits.csv", dtype=str)
    words = {*listing["patient"], *listing["site"], *(Path(image).name for image in listing["image"])}
    assert not [word for word in words if word in text]
    strings = [s for s in re.findall(r'"([^"]*)"', text) if "/" in s or "\\" in s]
    assert strings == []
    assert list(folder.glob(".attack-*")) == []


def test_the_command_does_it_again_with_the_same_figures(
    attacked: Attacked, small: AttackSettings, fedpretext: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, answer = attacked
    monkeypatch.setattr(module, "attack", partial(module.attack, settings=small))
    said = fedpretext("attack", folder, "--shadows", "0", "--device", "cpu")
    again = json.loads((folder / "attacks.json").read_text())
    assert said.code == 0, said.err
    expected = [each for each in answer["attacks"] if each["attack"] != "membership-shadows"]
    assert again["attacks"] == json.loads(json.dumps(expected))
    assert max(map(len, said.out.splitlines()[:-1])) <= 80
    assert "No promise was made" in said.out


def test_the_report_shows_the_attacks(attacked: Attacked) -> None:
    folder, _ = attacked
    page = write_report(folder).read_text()
    section = page[page.index('id="attacks"') :]
    assert "Image from an update" in section
    assert "No promise was made" in section


def test_a_run_that_was_not_attacked_has_no_section(tmp_path: Path) -> None:
    assert attack_section(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--arm", "centralised"], "centralised"), (["--shadows", "3"], "even number"), (["--arm", "random"], "random")],
)
def test_what_cannot_be_attacked_is_refused(
    attacked: Attacked, fedpretext: Callable[..., Any], arguments: list[str], said: str
) -> None:
    assert said in fedpretext("attack", attacked[0], "--device", "cpu", *arguments).error


def test_a_folder_without_a_split_or_without_weights_is_refused(
    attacked: Attacked, fedpretext: Callable[..., Any], tmp_path: Path
) -> None:
    assert "no simulated run with a split" in fedpretext("attack", tmp_path).error
    copy = shutil.copytree(attacked[0], tmp_path / "copy")
    (copy / "arms" / "federated" / "fold-0" / "seed-0" / "global.safetensors").unlink()
    assert "finish the run first" in fedpretext("attack", copy, "--device", "cpu").error


def test_a_private_study_is_attacked_through_its_noise_and_held_to_its_promise(
    attacked: Attacked, small: AttackSettings, tmp_path: Path
) -> None:
    copy = shutil.copytree(attacked[0], tmp_path / "copy")
    raw = yaml.safe_load((copy / "study.yaml").read_text())
    raw["privacy"] = {"unit": "patient", "epsilon": 2.0, "delta": 0.005, "patients": 8, "patients_per_step": 2}
    raw["training"] |= {"epochs": None, "steps": 3, "learning_rate": 0.003}
    (copy / "study.yaml").write_text(yaml.safe_dump(raw))
    answer = module.attack(copy, shadows=0, device="cpu", settings=small)
    assert answer["promise"]["largest_advantage"] == pytest.approx(largest_advantage(2.0, 0.005), abs=1e-4)
    found = {each["attack"]: each for each in answer["attacks"]}
    assert found["membership-loss"]["permitted"] == answer["promise"]["largest_advantage"]
    # The control is undefended, and so differs from what the noise lets through.
    assert found["inversion"]["figure"]["more"] != found["inversion"]["control"]["more"]
    page = write_report(copy).read_text()
    assert "permits an advantage of at most 0.76" in page[page.index('id="attacks"') :]


FIGURE = {"value": 0.31, "low": -0.1, "high": 0.6, "n": 20, "more": {}}


def told_of(verdict: str, promise: dict[str, Any] | None) -> dict[str, Any]:
    entry = {
        "attack": "membership-loss", "figure": FIGURE, "control": FIGURE, "permitted": None, "verdict": verdict,
        "reading": "said.",
    }  # fmt: skip
    return {"arm": "federated", "members": 9, "others": 8, "promise": promise, "attacks": [entry]}


def test_a_figure_that_reassures_is_not_shown_of_an_attack_that_is_too_weak() -> None:
    assert attack_rows(told_of("too weak here", None))[0].advantage == "–"
    assert attack_rows(told_of("nothing found", None))[0].advantage == "0.31 (−0.10 to 0.60)"


def test_the_promise_stands_above_the_table() -> None:
    promise = {"unit": "patient", "epsilon": 2.0, "delta": 1e-5, "largest_advantage": 0.7616}
    text = " ".join("\n".join(table(told_of("nothing found", promise))).split())
    assert "epsilon 2 at delta 1e-05, which permits an advantage of at most 0.76" in text
