"""The study files that the advisor writes: valid for every pair, private where asked, and trained for a round."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from advisor.candidates import CANDIDATES
from advisor.ranking import Ranked, best
from advisor.setting import Setting
from advisor.study_file import batch_of, study_text
from advisor.study_file import write_study as write
from evaluation.config import TaskKind
from federation.study import Study, study_from
from foundation.files import read_jsonl
from server.rounds import write_study
from simulation.runtimes.table import RUNTIMES
from simulation.simulate import simulate
from simulation.sites.site_folders import Federation
from simulation.validate import validate
from ssl_methods import build_method
from tests.advisor.conftest import PAIRS, setting

from ..tiers import slow

SMALL: dict[int, dict[str, Any]] = {
    2: {"image": {"size": 32, "channels": 1}, "encoder": {"patch_size": 8, "depth": 1, "width": 24, "heads": 2}},
    3: {
        "image": {"size": 16, "depth": 16, "channels": 1},
        "encoder": {"patch_size": 4, "depth": 1, "width": 24, "heads": 2},
    },
}
EXTRA: dict[str, dict[str, Any]] = {
    "mae": {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "dino": {"small_size": 16},
    "ibot": {"small_size": 16},
}


def studies(**answer: Any) -> list[tuple[Setting, Ranked, Study]]:
    """What would be written for every pair, all candidates of the answer."""
    found = []
    for pair in PAIRS:
        asked = setting(*pair, **answer)
        for ranked in best(asked):
            text = study_text(asked, ranked, "fedpretext advise")
            assert max(map(len, text.splitlines())) <= 120
            found.append((asked, ranked, study_from(yaml.safe_load(text), "written")))
    return found


@pytest.mark.parametrize("accelerator", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("volumes", [False, True], ids=["2-D", "3-D"])
def test_every_pair_has_a_valid_study(volumes: bool, accelerator: bool) -> None:
    for asked, ranked, study in studies(volumes=volumes, accelerator=accelerator, images=3):
        assert study.image.modality == asked.modality
        assert study.evaluation.kind == asked.task
        assert study.image.dimensions == asked.dimensions
        assert study.method.name == ranked.candidate.method
        assert study.algorithm.name == "fedavg"


@pytest.mark.parametrize("volumes", [False, True], ids=["2-D", "3-D"])
def test_under_privacy_no_image_influences_anothers_gradient(volumes: bool) -> None:
    seen = set()
    for asked, ranked, study in studies(volumes=volumes, privacy=True):
        if (ranked.candidate.name, asked.dense) not in seen:
            seen.add((ranked.candidate.name, asked.dense))
            assert not build_method(study.method, study.encoder, study.image, 0).is_batch_coupled()
    assert len(seen) > 3


@pytest.mark.parametrize(("privacy", "norm"), [(False, "own"), (True, "group")])
def test_a_convolutional_method_gets_a_convolutional_encoder(privacy: bool, norm: str) -> None:
    asked = setting(privacy=privacy)
    spark = next(each for each in CANDIDATES if each.method == "spark")
    text = study_text(asked, replace(best(asked)[0], candidate=spark), "fedpretext advise")
    encoder = study_from(yaml.safe_load(text), "written").encoder
    assert (encoder.name, encoder.norm) == ("resnet10t", norm)
    assert "the only kind that the method takes" in text


def test_the_batch_is_bounded_by_what_the_smallest_site_has() -> None:
    simclr, mae = (next(r.candidate for r in best(setting(task=t)) if r.candidate.name == n) for t, n in (
        ("classification", "simclr"), ("segmentation", "mae"),
    ))  # fmt: skip
    assert batch_of(setting(patients=200), simclr)[0] == 32
    assert batch_of(setting(patients=10, images=50), simclr) == (
        8, "the smallest site has 10 patients, and images of one patient are no negatives",
    )  # fmt: skip
    assert batch_of(setting(patients=2, images=50), simclr)[0] == 2
    assert batch_of(setting(patients=1, images=7), mae) == (4, "the smallest site has 7 images")
    assert batch_of(setting(volumes=True), mae)[0] == 8


def test_reasons_stand_beside_the_choices(tmp_path: Path) -> None:
    asked = setting("ultrasound", "segmentation", images=3, pretrained_weights=True)
    path = tmp_path / "study.yaml"
    write(path, asked, best(asked)[0], "fedpretext advise --modality ultrasound")
    text = path.read_text()
    assert text.startswith("# Written by: fedpretext advise --modality ultrasound\n")
    for said in (
        "Pretext Matters 2026; direct comparison",
        "Yan et al. 2023",
        "Huang et al. 2023",
        "#   weights: FILE",
    ):
        assert said in text
    assert "is valid" in validate(path)[-1]
    contrastive = setting("mri", "classification", images=3)
    assert "# positives: patient" in study_text(contrastive, best(contrastive)[0], "")


def test_the_simulation_section_works_with_the_marks_off(tmp_path: Path, images: Any) -> None:
    asked = setting("mri", "classification")
    text = study_text(asked, best(asked)[0], "")
    at = text.index("# simulation:")
    off = text[:at] + text[at:].replace("# ", "").replace("MANIFEST.csv", str(images.listing))
    (tmp_path / "study.yaml").write_text(off)
    assert "site north: 12 images of 4 patients to pretrain on" in " ".join(validate(tmp_path / "study.yaml"))


def distinct() -> dict[str, Study]:
    """A written study of each method and dimension that any pair gets, whatever else is asked."""
    found: dict[str, Study] = {}
    for answer in ({}, {"privacy": True}, {"different_sites": True}, {"patients": 4, "images": 5}):
        for volumes in (False, True):
            for _, ranked, study in studies(volumes=volumes, **answer):
                found.setdefault(f"{ranked.candidate.name}, {study.image.dimensions}-D", study)
    return found


WRITTEN = distinct()


def made_small(study: Study) -> Study:
    """The written study, its sizes and nothing else made small."""
    raw = study.model_dump(mode="json")
    raw["image"] |= SMALL[study.image.dimensions]["image"]
    if "vit" in study.encoder.name:
        raw["encoder"] |= SMALL[study.image.dimensions]["encoder"]
    members = raw["method"].get("methods", [{"method": raw["method"]}])
    for member in members:
        member["method"] |= EXTRA.get(member["method"]["name"], {})
    raw["rounds"] |= {"count": 1, "attempts": 1}
    raw["training"] |= {"batch": 4, "threads": 1}
    return study_from(raw, "small")


QUICK = ("mae, 2-D", "simclr, 2-D")


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in WRITTEN])
def test_every_written_study_trains(name: str, tmp_path: Path, write_site: Callable[..., Path]) -> None:
    study = made_small(WRITTEN[name])
    write_study(tmp_path, study)
    for seed, site in enumerate(("A", "B")):
        write_site(tmp_path / "sites", site, 6, 3, seed)
        if study.image.depth is not None:
            as_volumes(tmp_path / "sites" / site)
        add_positions(tmp_path / "sites" / site / "manifest.csv")
    RUNTIMES["in-process"](Federation(tmp_path, ("A", "B")))
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["site"] for row in rows] == ["A", "B"]
    assert np.isfinite([row["loss"] for row in rows]).all()


@pytest.mark.slow
@pytest.mark.parametrize("task", get_args(TaskKind))
def test_a_written_study_of_each_task_runs_to_its_report(task: str, tmp_path: Path) -> None:
    """On phantoms, judged by all protocols that the file names."""
    asked = setting("mri", task)
    written = study_from(yaml.safe_load(study_text(asked, best(asked)[0], "")), "written")
    raw = made_small(written).model_dump(mode="json")
    for head in ("finetune", "segmentation", "detection"):
        raw["evaluation"][head] |= {"epochs": 1}
    phantoms = {"dataset": "phantoms", "options": {"images": 40, "size": 32}, "arms": []}
    raw["simulation"] = phantoms | {"splits": {"left_out": ["F"], "min_test_patients": 3}}
    run = simulate(study_from(raw, "small"), runs=tmp_path, device="cpu")
    scored = run.results[run.results["encoder"] == "federated"]
    assert set(written.evaluation.protocols) <= set(scored.loc[scored["value"].notna(), "protocol"])
    assert run.report.is_file()


def as_volumes(site: Path) -> None:
    """Random volumes in place of the site's images."""
    draw = np.random.default_rng(0)
    for path in sorted(site.glob("*.png")):
        np.save(path.with_suffix(".npy"), draw.integers(-500, 500, (16, 16, 16)).astype(np.int16))
    manifest = site / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(".png", ".npy"))


def add_positions(manifest: Path) -> None:
    heading, *rows = manifest.read_text().splitlines()
    lines = [f"{heading},series,position", *(f"{row},{row.split(',')[1]},{number}" for number, row in enumerate(rows))]
    manifest.write_text("\n".join(lines) + "\n")
