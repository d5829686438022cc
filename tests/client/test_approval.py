"""A study is trained after somebody at the site has read what leaves, and exactly that study."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.approval import Approval, approvals, approve, approved_study, withdraw
from client.site import Site
from client.site_file import SiteFile, load_site_file
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.records import TrainInstruction
from federation.study import Study
from foundation.errors import FedpretextError, StudyError
from ssl_methods import build_method
from ssl_methods.reconstruction.mae import MAE

MakeStudy = Callable[..., Study]
Instruct = Callable[..., TrainInstruction]


@pytest.fixture
def here(hospital: Callable[..., Path]) -> Callable[..., SiteFile]:
    """``here(smallest_count=5)``: a site of 9 images of 3 patients; all but what is said is the default."""

    def make(images: int = 9, **policy: Any) -> SiteFile:
        path = hospital("A", images=images)
        raw = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(raw | {"policy": {"min_images": 2, "min_patients": 2} | policy}))
        return load_site_file(path)

    return make


@pytest.fixture
def written(study: MakeStudy, tmp_path: Path) -> Callable[..., Path]:
    """The file of ``study(**sections)``."""

    def write(name: str = "study.yaml", **sections: Any) -> Path:
        (tmp_path / name).write_text(study(**sections).to_yaml())
        return tmp_path / name

    return write


def yes(text: str) -> bool:
    return True


def no(text: str) -> bool:
    return False


def text_of(lines: list[str]) -> str:
    return "\n".join(lines)


def test_the_page_says_what_is_trained_and_what_leaves(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    asked: list[str] = []
    lines = approve(written(), here(), "Dr. Ada Klein", lambda text: bool(asked.append(text)) or True)
    page, s = text_of(lines), study()
    assert asked == [text_of(lines[:-1])]  # the whole page is what is asked about
    for said in (
        f"training hash {s.training_hash()}",
        f"method: mae: {MAE.summary} ({MAE.paper})",
        "encoder: vit_tiny_patch16_224, patch_size 8, depth 1, width 24, heads 2",
        "modality mri, size 32", "algorithm: fedavg", "rounds: 3", "views: of one image",
        "local work in a round: 1 epochs in batches of 4 x 1", "at this site: 2 steps, 8 images seen",
        "the count of images: 9", "loss, learning_rate, images_seen", "the name A, the training hash, and of an er",
        "study-not-approved", "nothing else: no image, name, path, header or log", "6 steps, 24 images seen",
        "permits the study", "9 images of 3 patients are listed here",
    ):  # fmt: skip
        assert said in page, said


@pytest.mark.parametrize(("encoder", "shown"), [("resnet10t", True), ("vit_tiny_patch16_224", False)])
def test_the_exchange_of_statistics_is_told_where_there_is_one(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile], encoder: str, shown: bool
) -> None:
    simsiam = {"name": "simsiam"}
    blank = dict.fromkeys(("patch_size", "depth", "width", "heads"))
    lines = approve(written(method=simsiam, encoder={"name": encoder, **blank}), here(), "A. K.", yes)
    assert ("once more after the last round: means and variances of what the encoder" in text_of(lines)) == shown


def test_amounts_are_those_of_the_shared_tensors(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile], ijepa: dict[str, Any]
) -> None:
    lines = approve(written(method=ijepa), here(), "A. K.", yes)
    s = study(method=ijepa)
    method = build_method(s.method, s.encoder, s.image, s.seed)
    shared, local = method.shared_state(), method.local_state()
    numbers = sum(value.numel() for value in shared.values())
    assert f"together: {numbers:,} numbers in {len(shared)} tensors, {numbers * 4 / 2**20:,.1f} MiB;" in text_of(lines)
    encoder = [value for name, value in shared.items() if name.startswith("encoder.")]
    assert any(
        line.startswith(f"  encoder: {sum(v.numel() for v in encoder):,} numbers in {len(encoder)} ") for line in lines
    )
    leaves, stays = lines.index("WHAT LEAVES THIS SITE, in each round"), lines.index("WHAT STAYS")
    held = [number for number, line in enumerate(lines) if "target_encoder: " in line]
    assert held and all(number > stays for number in held) and stays > leaves
    assert f"target_encoder: {sum(v.numel() for v in local.values()):,} numbers in {len(local)} tensors" in text_of(
        lines
    )


def test_a_hidden_count_is_said_to_be_hidden(written: Callable[..., Path], here: Callable[..., SiteFile]) -> None:
    page = text_of(approve(written(), here(images=4, smallest_count=5), "A. K.", yes))
    assert "the count of images: sent as 5 (policy.smallest_count), the true one stays" in page


def test_metrics_that_the_policy_withholds_are_not_listed(
    written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    page = text_of(approve(written(), here(metrics=["loss"]), "A. K.", yes))
    assert "numbers about the round, of these those that the method has: loss\n" in page


def test_images_that_do_not_do_are_told_and_the_approval_is_still_one_s_own(
    written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    site = here(min_patients=4)
    page = text_of(approve(written(), site, "A. K.", yes))
    assert "permits the study, but not with these images:\n  this site has images of 3 patients" in page
    assert "at this site: " not in page
    shutil.rmtree(site.data.parent)
    assert "there is no such manifest" in text_of(approve(written(), site, "A. K.", yes))


def test_a_study_that_the_policy_refuses_is_not_even_asked_about(
    written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    site = here(methods=["simclr"])
    with pytest.raises(StudyError, match=r"trains the method mae, and this site's policy\.methods has simclr"):
        approve(written(), site, "A. K.", lambda _: pytest.fail("asked"))
    assert approvals(site) == []


def test_approved_recorded_read_back_and_withdrawn(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    s, site = study(), here()
    own = s.training_hash()
    assert approved_study(site, own) is None
    assert text_of(approve(written(), site, "Ada", no)).endswith("not approved; nothing was recorded")
    assert approved_study(site, own) is None
    assert approve(written(), site, "Dr. Ädä Klein", yes)[-1].startswith("approved by Dr. Ädä Klein; recorded in ")
    assert approved_study(site, own) == s
    assert approved_study(site, "0" * 64) is None
    assert approved_study(site, own[:16] + "0" * 48) is None
    (kept,) = approvals(site)
    assert (kept.by, kept.training_hash, kept.study) == ("Dr. Ädä Klein", own, s)
    assert kept.when.utcoffset() is not None
    other = study(training={"batch": 3})
    approve(written("other.yaml", training={"batch": 3}), site, "Ada", yes)
    assert {each.training_hash for each in approvals(site)} == {own, other.training_hash()}
    assert withdraw(site, own) == f"tiny {own[:16]}"
    assert approved_study(site, own) is None
    assert [approval.study for approval in approvals(site)] == [other]
    with pytest.raises(
        StudyError, match=f"names none of this site's approvals.* of one of: {other.training_hash()[:16]}"
    ):
        withdraw(site, own)
    with pytest.raises(StudyError, match="names none"):
        withdraw(site, other.training_hash()[:11])
    withdraw(site, other.training_hash()[:12])
    assert approvals(site) == []


def test_a_name_of_several_lines_is_refused(written: Callable[..., Path], here: Callable[..., SiteFile]) -> None:
    site = here()
    for by in ("", "Ada\nKlein"):
        with pytest.raises(StudyError, match="--by: by: String should match pattern"):
            approve(written(), site, by, yes)
    assert approvals(site) == []


def test_a_simulation_section_is_not_part_of_what_is_approved(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    site = here()
    approve(written(simulation={"dataset": "folder", "root": "/data/secret"}), site, "Ada", yes)
    assert approved_study(site, study().training_hash()) == study()
    assert b"secret" not in b"".join(path.read_bytes() for path in (site.state / "approvals").iterdir())


@pytest.mark.parametrize("damage", ["rounds", "hash", "both for another file", "cut", "simulation"])
def test_a_changed_record_counts_for_nothing(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile], capfd: pytest.CaptureFixture[str],
    instruction: Instruct, damage: str,
) -> None:  # fmt: skip
    s, site = study(), here()
    approve(written(), site, "Ada", yes)
    (path,) = (site.state / "approvals").iterdir()
    raw = yaml.safe_load(path.read_text())
    if damage == "rounds":
        raw["study"]["rounds"]["count"] = 1000
    elif damage == "hash":
        raw["training_hash"] = "0" * 64
    elif damage == "both for another file":
        other = study(rounds={"count": 1000})
        raw["study"], raw["training_hash"] = other.model_dump(mode="json"), other.training_hash()
    elif damage == "simulation":
        raw["study"]["simulation"] = {"root": "/"}
    text = yaml.safe_dump(raw)
    path.write_text(text[: len(text) // 2] if damage == "cut" else text)
    with pytest.raises(StudyError) as caught:
        approved_study(site, s.training_hash())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert approvals(site) == []
    assert str(path) in capfd.readouterr().err
    with pytest.raises(StudyError):
        Site(site, s).train(instruction(s))
    withdraw(site, s.training_hash())  # a damaged record can still be thrown away
    assert not path.exists()


def test_a_site_trains_after_the_approval_and_stops_at_its_withdrawal(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile], instruction: Instruct
) -> None:
    s, file = study(), here()
    site = Site(file, s)

    def refused() -> None:
        for act in (site.describe, lambda: site.train(instruction(s))):
            with pytest.raises(StudyError, match="has no approval at this site"):
                act()

    refused()
    approve(written(), file, "Ada", yes)
    assert site.describe().images == 9
    first = site.train(instruction(s))
    withdraw(file, s.training_hash())
    refused()  # what is stored is not sent either
    approve(written(), file, "Ada", yes)
    assert site.train(instruction(s)).metrics == first.metrics
    changed = study(training={"learning_rate": 0.02})
    with pytest.raises(StudyError):
        Site(file, changed).train(instruction(changed))


def test_a_record_is_whole_or_absent(
    written: Callable[..., Path], here: Callable[..., SiteFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = here()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foundation.files.os.fsync", full)
    with pytest.raises(FedpretextError, match=r"could not be written \(No space left on device\)"):
        approve(written(), site, "Ada", yes)
    assert approvals(site) == []
    assert list((site.state / "approvals").iterdir()) == []


def test_an_approval_is_a_file_that_a_person_can_read(
    study: MakeStudy, written: Callable[..., Path], here: Callable[..., SiteFile]
) -> None:
    site = here()
    approve(written(), site, "Ada", yes)
    (path,) = (site.state / "approvals").iterdir()
    assert path.name == f"{study().training_hash()[:16]}.yaml"
    assert list(yaml.safe_load(path.read_text())) == list(Approval.model_fields)


def test_the_page_of_a_private_study_says_what_is_promised(
    private_study: MakeStudy, here: Callable[..., SiteFile], tmp_path: Path
) -> None:
    s = private_study()
    plan = plan_of(s)
    assert plan is not None
    (tmp_path / "private.yaml").write_text(s.to_yaml())
    site = here(privacy_budget={"epsilon": 10.0, "delta": 1e-3}).model_copy(update={"ledger": tmp_path / "book.jsonl"})
    page = text_of(approve(tmp_path / "private.yaml", site, "A. K.", no))
    for said in (
        "WHAT IS PROMISED\n  to each patient, whose presence with all images",
        "each of 6 steps draws a patient with probability 0.5, shortens the gradient to 1 and adds noise of",
        f"adds noise of {plan.noise:g} times that", f"epsilon {plan.epsilon:.3g} at delta 0.001, for the whole study",
        "not covered: a person who was treated at two",
        "what noise promises about them is said below", "the count of images: sent as 1, as by every site",
        "the number of rows of this site's privacy ledger", "each patient takes part in a step with probability 0.5",
        # By hand: two steps a round with 3 patients of 1 image at probability .5, over 3 rounds.
        "at this site: 2 steps, 3 images seen", "6 steps, 9 images seen, in 3 rounds",
        "book.jsonl: spent so far epsilon 0 at delta 0.001", f"with all rounds of this study: {plan.epsilon:.3g}",
        f"policy.privacy_budget is 10: {10 - plan.epsilon:.3g} are left", "private.jsonl in the state folder",
        "this site has 3 patients, and the study takes it to have 4",
    ):  # fmt: skip
        assert said in page, said
    assert "nothing keeps them free of traces" not in page and "numbers about the round" not in page
    assert not (tmp_path / "book.jsonl").exists()  # looking writes nothing
    Ledger(tmp_path / "book.jsonl").charge("a" * 64, 1, replace(plan.per_round, steps=200), None)
    page = text_of(approve(tmp_path / "private.yaml", site, "A. K.", no))
    assert "policy.privacy_budget is 10: this site stops before it is passed, and before the end" in page
    assert "spent so far epsilon 0 at" not in page


def test_the_page_of_a_study_private_by_site(
    private_study: MakeStudy, here: Callable[..., SiteFile], tmp_path: Path
) -> None:
    (tmp_path / "private.yaml").write_text(private_study("site").to_yaml())
    page = text_of(approve(tmp_path / "private.yaml", here(), "A. K.", no))
    assert "to this site as a whole, and to its patients only as part of it" in page
    assert "an update is shortened to 0.05 here, and the server, which sees this site's own update, adds noise" in page
    assert "there is none: set `ledger` in the site file, or no round of this study is trained" in page


def test_the_page_of_a_private_study_over_images_of_nobody(
    private_study: MakeStudy, here: Callable[..., SiteFile], tmp_path: Path
) -> None:
    (tmp_path / "private.yaml").write_text(private_study().to_yaml())
    site = here(min_patients=1)
    (site.data.parent / "manifest.csv").unlink()
    page = text_of(approve(tmp_path / "private.yaml", site.model_copy(update={"data": site.data.parent}), "A. K.", no))
    assert "permits the study, but not with these images:\n  study tiny promises privacy to each patient" in page
