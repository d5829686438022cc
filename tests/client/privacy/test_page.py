"""`fedpretext privacy`: what was spent, what a study adds, what is left, and what the figure means."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.privacy.page import plan_lines, privacy_lines
from client.site_file import load_site_file
from federation.privacy.accounting import Release, epsilon_of
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.study import Study, study_from
from fedpretext.cli import main
from foundation.errors import RunError, StudyError

PRIVACY = {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 36, "patients_per_step": 8}
OTHER = Release("gaussian", 9.0, 0.1, 100)


@pytest.fixture
def study(raw_study: dict[str, Any]) -> Callable[..., Study]:
    def make(privacy: dict[str, Any] | None = PRIVACY, **sections: Any) -> Study:
        training = {"epochs": None, "steps": 50, "batch": 4, "precision": "float32"}
        rounds = raw_study["rounds"] | {"count": 4}
        return study_from(raw_study | {"privacy": privacy, "training": training, "rounds": rounds} | sections, "test")

    return make


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """``place(study, epsilon=8)``: a kit-like folder with that study and a budget."""

    def make(study: Study | None, **budget: float) -> Path:
        site = {"site": "north", "data": "d", "state": "s", "cache": "c", "ledger": "ledger.jsonl"}
        if budget:
            site |= {"policy": {"privacy_budget": {"delta": 1e-3} | budget}}  # type: ignore[dict-item]
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
        if study is not None:
            (tmp_path / "study.yaml").write_text(study.to_yaml())
        return tmp_path

    return make


def figure(lines: list[str], label: str) -> float:
    (line,) = [line for line in lines if line.strip().startswith(label)]
    return float(line.split()[-1])


def test_spent_planned_and_left(study: Callable[..., Study], place: Callable[..., Path]) -> None:
    s = study()
    folder, plan = place(s, epsilon=9.0), plan_of(s)
    assert plan is not None
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.charge(s.training_hash(), 1, plan.per_round, None)
    ledger.charge(s.training_hash(), 1, plan.per_round, None)  # a round that was killed and done again
    ledger.charge("b" * 64, 1, OTHER, None)
    before = ledger.path.read_bytes()
    lines = privacy_lines(folder, check=True)
    own, all_ = [plan.per_round] * 2, [plan.per_round] * 2 + [OTHER]
    for label, releases in (
        (f"study {s.training_hash()[:12]}", own),
        ("study bbbbbbbbbbbb", [OTHER]),
        ("spent, all studies together", all_),
        ("still to come of tiny", [plan.per_round] * 3),
        ("spent after it", [*all_, *[plan.per_round] * 3]),
    ):
        assert figure(lines, label) == pytest.approx(epsilon_of(releases, 1e-3), abs=6e-4)
    assert figure(lines, "left of the budget") == pytest.approx(9 - epsilon_of(all_, 1e-3), abs=6e-4)
    text = " ".join(" ".join(lines).split())
    assert "warning: that is over the budget of 9: this site will stop before the study ends" in text
    assert "Whatever anybody believed about whether one patient took part" in text
    assert "Not covered: - settings that were chosen by trying them on the same patients" in text
    second = re.search(r"a second accountant \(Opacus\) gives ([\d.]+) for what is spent", text)
    assert second is not None and float(second[1]) == pytest.approx(epsilon_of(all_, 1e-3), abs=0.02)
    assert max(map(len, lines)) <= 80
    assert ledger.path.read_bytes() == before  # looking costs nothing


def test_a_study_within_the_budget_is_not_warned_of(study: Callable[..., Study], place: Callable[..., Path]) -> None:
    text = "\n".join(privacy_lines(place(study(), epsilon=50.0)))
    assert "warning: that is over" not in text and "second accountant" not in text
    assert "0 charges" in text
    assert "no budget is set (policy.privacy_budget)" in "\n".join(privacy_lines(place(study())))


def test_a_site_without_study_or_ledger(place: Callable[..., Path], study: Callable[..., Study]) -> None:
    folder = place(None, epsilon=3.0)
    lines = privacy_lines(folder / "site.yaml")
    assert figure(lines, "left of the budget") == 3.0
    assert "still to come" not in "\n".join(lines) and not (folder / "ledger.jsonl").exists()
    (folder / "open.yaml").write_text(study(None).to_yaml())
    answer = " ".join(" ".join(privacy_lines(folder, folder / "open.yaml")).split())
    assert "study tiny has no `privacy` section: it promises nothing, and is not counted here" in answer
    raw = yaml.safe_load((folder / "site.yaml").read_text()) | {"ledger": None}
    (folder / "site.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(StudyError, match=r"its site file names no `ledger`; add the line  ledger: ledger\.jsonl"):
        privacy_lines(folder)


def test_a_broken_ledger_is_told(study: Callable[..., Study], place: Callable[..., Path]) -> None:
    folder = place(study())
    Ledger(folder / "ledger.jsonl").charge("b" * 64, 1, OTHER, None)
    text = (folder / "ledger.jsonl").read_text()
    (folder / "ledger.jsonl").write_text(text.replace('"noise":9.0', '"noise":90.0'))
    with pytest.raises(RunError, match="chain is broken at row 2"):
        privacy_lines(folder)


def test_the_plan_of_a_study_file(
    study: Callable[..., Study], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.privacy.page._PATIENTS", (4, 13, 36, 200))
    (tmp_path / "mine.yaml").write_text(study().to_yaml())
    monkeypatch.setattr(sys, "argv", ["fedpretext", "privacy", str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert "privacy by patient: noise 1.67 x the clipping bound 1, q 0.222, 200 steps in all: epsilon 7.9" in text
    assert "warning: signal-to-noise" in text and "very likely equal its start" in text
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("   ")}
    assert rows["4"][1:3] == ["1.0e-03", "1.000"]  # no more than all of them
    assert rows["13"][1:4] == ["1.0e-03", "0.615", "4.23"]
    assert rows["36"][1:4] == ["1.0e-03", "0.222", "1.67"]
    assert rows["200"][1:3] == ["5.0e-04", "0.040"]  # delta falls with the patients
    assert max(map(len, lines)) <= 80


def test_a_study_without_privacy_says_so(study: Callable[..., Study], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(study(None).to_yaml())
    answer = "study tiny has no `privacy` section: weights leak, and nothing is promised"
    assert privacy_lines(tmp_path / "mine.yaml") == [answer]


def test_the_plan_by_site(study: Callable[..., Study], tmp_path: Path) -> None:
    s = study({"unit": "site", "epsilon": 8, "sites": 6, "delta": 1e-3})
    (tmp_path / "mine.yaml").write_text(s.to_yaml())
    text = " ".join(" ".join(privacy_lines(tmp_path / "mine.yaml")).split())
    assert "privacy by site: noise" in text and "4 rounds in all" in text
    assert "one site took part, with all its patients" in text
    assert "a single site's own update before the noise, to whoever sees it: the server does" in text


def test_a_study_with_signal_enough_is_not_warned_of(study: Callable[..., Study]) -> None:
    s = study()
    plan = plan_of(s)
    assert plan is not None
    assert any("warning" in line for line in plan_lines(s, plan, sites=2))
    assert not any("warning" in line for line in plan_lines(s, plan, sites=10**6))


def test_what_is_no_place(tmp_path: Path) -> None:
    for name, said in (("none.yaml", "there is no such file"), ("x.jsonl", "neither a study file nor a site file")):
        with pytest.raises(StudyError, match=said):
            privacy_lines(tmp_path / name)


def test_ledger_and_budget_of_a_site_file(place: Callable[..., Path]) -> None:
    folder = place(None, epsilon=3.0)
    site = load_site_file(folder / "site.yaml")
    assert site.ledger == folder.resolve() / "ledger.jsonl"
    assert site.policy.privacy_budget is not None and site.policy.privacy_budget.epsilon == 3.0
    raw = yaml.safe_load((folder / "site.yaml").read_text())
    for wrong in ({"epsilon": 0}, {"epsilon": 3, "delta": 0.5}, {"epsilon": 3, "detla": 1e-5}):
        (folder / "site.yaml").write_text(yaml.safe_dump(raw | {"policy": {"privacy_budget": wrong}}))
        with pytest.raises(StudyError, match=r"policy\.privacy_budget"):
            load_site_file(folder / "site.yaml")
