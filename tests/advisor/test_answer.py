"""The answer in words: every pair, with citations, in 80 columns."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from advisor.answer import advice, answer, changes, compared
from advisor.evidence import FINDINGS, UNKNOWN
from advisor.ranking import best
from foundation.errors import StudyError
from tests.advisor.conftest import PAIRS, setting

Advise = Callable[..., list[str]]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "advisor.md"
ASKED = (
    "--modality", "ultrasound", "--task", "segmentation", "--labels", "40", "--sites", "5",
    "--patients-per-site", "200",
)  # fmt: skip


@pytest.mark.parametrize("volumes", [False, True], ids=["2-D", "3-D"])
@pytest.mark.parametrize(("modality", "task"), PAIRS)
def test_every_pair_is_answered_with_citations(modality: str, task: str, volumes: bool) -> None:
    asked = setting(modality, task, volumes=volumes)
    lines = answer(asked)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert text.count("[") >= 3
    assert compared(asked) in text
    for title in ("Left out", "Whatever the method", "What would change the answer", "What nobody knows"):
        assert lines.count(title) == 1
    for each in best(asked):
        assert each.reasons
        for reason in each.reasons:
            assert reason.finding.citation in text
    direct = modality in ("histopathology", "ultrasound")
    assert (f"has no published comparison of pretext tasks on {modality}." in text) != direct
    if task == "regression":
        assert "extrapolated, classification to regression" in text
        assert "Which pretext task suits regression" in text


def test_what_would_change_it_is_asked_and_not_guessed() -> None:
    said = list(changes(setting("x-ray", "classification"), "simclr"))
    assert "with --privacy: mae first" in said
    assert "for segmentation: mae first" in said
    assert not any(line.startswith("if sites look") for line in said)  # SimCLR stays: 3.5 to MAE's 2.5
    assert best(setting("x-ray", different_sites=True))[0].candidate.name == "simclr"
    other = setting("x-ray", "regression")
    assert "if sites look strongly different: mae first" in list(changes(other, best(other)[0].candidate.name))
    fixed = setting("x-ray", "segmentation", privacy=True, volumes=True)
    first = best(fixed)[0].candidate.name
    assert not any(line.endswith(f": {first} first") for line in changes(fixed, first))


def test_advice_by_setting() -> None:
    def said(**reported: object) -> str:
        return " ".join(advice(setting(**reported)))

    assert "better in 8 of 11 [Huang et al. 2023; review]" in said()
    assert "8 of 11" not in said(labels=100)
    assert "nothing can be evaluated" in said(labels=0)
    assert "Azizi et al." in said(pretrained_weights=True)
    assert "+0.184 (+0.099 to +0.270)" in said(pretrained_weights=True)
    assert "plain averaging of encoder and decoder by size" in said(different_sites=True)
    assert "method.positives" in said(images=4)
    assert "method.positives" not in said(images=4, privacy=True)  # no candidate compares two views then
    assert "can erase the lesion" in said(task="detection")
    assert "batch normalisation" in said(privacy=True)


def test_what_nobody_knows_depends_on_what_is_asked() -> None:
    def known_not(*pair: str, **reported: object) -> int:
        return sum(note.holds(setting(*pair, **reported)) for note in UNKNOWN)

    asked = {"volumes": True, "privacy": True, "different_sites": True}
    assert known_not("ultrasound", "regression", **asked) == known_not() + 5 == len(UNKNOWN)


def test_the_page_has_every_finding() -> None:
    page = " ".join(PAGE.read_text().split())
    for finding in FINDINGS.values():
        assert f"| {finding.citation} | {finding.grade} | {finding.compared} | {finding.says} |" in page


def test_the_command_answers_and_writes(advise: Advise, tmp_path: Path) -> None:
    lines = advise(*ASKED, "--device", "cpu")
    assert max(map(len, lines)) <= 80
    assert lines[-2:] == [
        "study file: advise-ultrasound-segmentation.yaml",
        "check it: fedpretext validate advise-ultrasound-segmentation.yaml",
    ]
    assert any(line.startswith("1. ijepa:") for line in lines)
    assert (tmp_path / "advise-ultrasound-segmentation.yaml").is_file()
    before = (tmp_path / "advise-ultrasound-segmentation.yaml").read_bytes()
    with pytest.raises(StudyError, match="exists already and is not overwritten; give another name with --out"):
        advise(*ASKED, "--device", "cpu")
    assert (tmp_path / "advise-ultrasound-segmentation.yaml").read_bytes() == before
    advise(*ASKED, "--device", "cpu", "--out", "other.yaml", "--privacy", "--images-per-patient", "3")
    assert "patient-level privacy" in (tmp_path / "other.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modality", "mri"], "give --task, --labels, --sites, --patients-per-site too, or a STUDY with --pilot"),
        (["--pilot"], "--pilot measures on a study's own data: give a STUDY"),
        (["study.yaml"], "STUDY does nothing without --pilot"),
        ([*ASKED, "--passes", "5"], "--passes does nothing without --pilot"),
        (["study.yaml", "--pilot", "--labels", "4"], "--labels does nothing with --pilot: the study says it"),
        (["study.yaml", "--pilot", "--labels", "0"], "--labels does nothing with --pilot: the study says it"),
        (["study.yaml", "--pilot", "--volumes"], "--volumes does nothing with --pilot: the study says it"),
    ],
)
def test_options_that_do_nothing_are_refused(arguments: list[str], said: str, advise: Advise, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter) as error:
        advise(*arguments)
    assert said in error.value.message
    assert list(tmp_path.iterdir()) == []
