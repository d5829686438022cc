"""Who is not trained on: drawn once, by patient, and kept whatever becomes of the manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from client.approval_page import page
from client.labels.held_out import NO_CLASS, codes_of, held_out, kept_held_out
from client.site import Site
from client.site_file import load_site_file
from federation.records import TrainInstruction
from federation.study import Study
from foundation.errors import DataError, RunError
from foundation.vault import PLAIN
from imaging.listing.manifest import Manifest

MakeStudy = Callable[..., Study]
SECTION = {"classes": ["0", "1"]}


def listed(patients: int = 20, labelled: int = 20, **columns: Any) -> Manifest:
    rows = [
        {"image": f"{p}-{n}.png", "patient": f"p{p:02d}", "label": (p + n) % 2 if p < labelled else None}
        for p in range(patients)
        for n in range(3)
    ]
    return Manifest(pd.DataFrame(rows).assign(**columns), Path())


def test_a_share_of_the_labelled_patients(study: MakeStudy) -> None:
    s = study(federated_evaluation=SECTION)
    manifest = listed(patients=30, labelled=20)
    held = held_out(manifest, s, "A")
    assert len(held.roles) == 4  # .2 of the 20 with a label
    assert set(held.roles) <= {f"p{number:02d}" for number in range(20)}
    assert set(held.pretrained(manifest).table["patient"]).isdisjoint(held.tested(manifest).table["patient"])
    assert len(held.pretrained(manifest)) + len(held.tested(manifest)) == 90
    assert held_out(manifest, s, "A") == held
    assert held_out(manifest, s, "B") != held
    assert held_out(manifest, s.model_copy(update={"seed": 9}), "A") != held


def test_the_share_is_the_studys(study: MakeStudy) -> None:
    assert len(held_out(listed(), study(federated_evaluation=SECTION | {"test_share": 0.5}), "A").roles) == 10


@pytest.mark.parametrize(
    ("manifest", "section"),
    [
        (listed(), None),
        (listed(labelled=0), SECTION),
        (listed(patients=4), SECTION),
        (listed(), SECTION | {"label": "x"}),
    ],
    ids=["no evaluation", "no labels", "four patients", "no such column"],
)
def test_nobody_is_held_out(study: MakeStudy, manifest: Manifest, section: Any) -> None:
    held = held_out(manifest, study(**({} if section is None else {"federated_evaluation": section})), "A")
    assert held.roles == {}
    assert len(held.pretrained(manifest)) == len(manifest)


def test_a_manifest_may_say_itself(study: MakeStudy) -> None:
    manifest = listed()
    role = manifest.table["patient"].map({"p03": "test", "p04": "validation"}).fillna("train")
    held = held_out(Manifest(manifest.table.assign(role=role), Path()), study(federated_evaluation=SECTION), "A")
    assert held.roles == {"p03": "test", "p04": "validation"}
    assert len(held.pretrained(manifest)) == 54
    assert set(held.tested(manifest).table["patient"]) == {"p03"}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            ["trian"] * 60,
            "column 'role' has 'trian'; there are: train, validation, test, left-out; did you mean 'train'?",
        ),
        (["train", "test"] * 30, "column 'role' gives 20 patients two roles; a patient has one"),
    ],
)
def test_roles_that_cannot_be(study: MakeStudy, roles: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        held_out(Manifest(listed().table.assign(role=roles), Path()), study(federated_evaluation=SECTION), "A")
    assert str(caught.value) == message


def test_the_draw_is_kept_when_the_manifest_changes(study: MakeStudy, tmp_path: Path) -> None:
    """New patients, and labels put right, would give another draw: patients already trained on would be tested."""
    s = study(federated_evaluation=SECTION)
    first = kept_held_out(listed(), s, "A", tmp_path, PLAIN)
    grown = listed(patients=40, labelled=40)
    assert held_out(grown, s, "A") != first
    kept = kept_held_out(grown, s, "A", tmp_path, PLAIN)
    assert kept == first
    assert set(kept.tested(grown).table["patient"]) == set(first.roles)
    (tmp_path / "held-out.json").write_text("{")
    with pytest.raises(RunError, match=r"held-out\.json: is damaged"):
        kept_held_out(grown, s, "A", tmp_path, PLAIN)


def test_codes(study: MakeStudy) -> None:
    config = study(federated_evaluation={"classes": ["benign", "malignant"]}).federated_evaluation
    assert config is not None
    table = pd.DataFrame({"label": ["malignant", None, " benign ", ""]})
    assert codes_of(table, config).tolist() == [1, NO_CLASS, 0, NO_CLASS]
    with pytest.raises(DataError) as caught:
        codes_of(pd.DataFrame({"label": ["malignent"]}), config)
    assert "column 'label' has the label 'malignent', and the study's classes are benign, malignant" in str(
        caught.value
    )
    numbers = study(federated_evaluation={"classes": ["0", "1"]}).federated_evaluation
    assert numbers is not None
    assert codes_of(pd.DataFrame({"label": [1.0, None, 0.0]}), numbers).tolist() == [1, NO_CLASS, 0]


def label_all(site_file: Path) -> None:
    """A label for every patient of the hospital's manifest."""
    path = site_file.parent / "manifest.csv"
    table = pd.read_csv(path, dtype=str)
    table.assign(label=[number % 2 for number in range(len(table))]).to_csv(path, index=False)


def test_a_site_does_not_train_on_its_test_patients(
    study: MakeStudy,
    hospital: Callable[..., Path],
    instruction: Callable[..., TrainInstruction],
    restart: Callable[[], None],
) -> None:
    path = hospital("A", images=20, patients=10)
    label_all(path)
    s = study(federated_evaluation=SECTION)
    site = Site(load_site_file(path), s)
    assert site.train(instruction(s)).images == 16
    trained = set(site.images.store().table["patient"])
    assert len(trained) == 8
    restart()
    assert set(Site(load_site_file(path), s).images.store().table["patient"]) == trained
    assert Site(load_site_file(path), study()).train(instruction(study())).images == 20


def test_the_approval_page_says_who_is_held_out_and_what_leaves(
    study: MakeStudy, hospital: Callable[..., Path]
) -> None:
    path = hospital("A", images=20, patients=10)
    label_all(path)
    s = study(federated_evaluation=SECTION | {"histogram": True, "steps": 77})
    text = "\n".join(page(s, load_site_file(path)))
    assert "16 images of 8 patients are listed here" in text
    assert "2 more patients are held out, never trained on" in text
    assert "nothing: policy.allow_label_statistics is false" in text
    path.write_text(path.read_text().replace("smallest_count: 1", "smallest_count: 4, allow_label_statistics: true"))
    text = "\n".join(page(s, load_site_file(path)))
    assert "up to 77 times: a loss and its gradient, 25 numbers" in text
    assert "nothing where a class has fewer than 4" in text
    assert "bins" not in text
    path.write_text(
        path.read_text().replace(
            "allow_label_statistics: true", "allow_label_statistics: true, allow_score_histogram: true"
        )
    )
    assert "spread in 100 bins, by class; bins under 4 merged" in "\n".join(page(s, load_site_file(path)))
    assert "of its labels" not in "\n".join(page(study(), load_site_file(path)))
