"""A site check end to end: faults planted in a hospital's folder are found, told in one line, shown and written."""

import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter

import client.checks.machine
import client.checks.study
from client.checks.report import STAYS, lines, write_check
from client.checks.site_check import SiteCheck, check_kit, check_site
from client.policy import Policy
from federation.keys.certificates import ca_certificate, new_key
from federation.keys.kit import Kit, write_kit
from federation.privacy.plan import plan_of
from federation.study import Study
from foundation.errors import StudyError

MakeStudy = Callable[..., Study]


def write_image(path: Path, seed: int, side: int = 40) -> Path:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten patients with three images each."""
    for number in range(30):
        write_image(tmp_path / "data" / f"p{number // 3}" / f"{number}.png", number)
    return tmp_path / "data"


@pytest.fixture
def check(data: Path, tmp_path: Path) -> Callable[..., SiteCheck]:
    return lambda *arguments, **more: check_site(data, *arguments, state=tmp_path / "state", device="cpu", **more)


def kinds(found: SiteCheck) -> dict[str, str]:
    return {finding.kind: finding.level for finding in found.findings}


def facts(found: SiteCheck, title: str) -> dict[str, str]:
    table = next(table for table in found.facts if table.title == title)
    return {row[0]: row[-1] for row in table.rows}


def test_clean_images(check: Callable[..., SiteCheck], study: MakeStudy, tmp_path: Path) -> None:
    found = check(study())
    assert found.ok and kinds(found) == {"no accelerator": "note"}
    assert found.looked == 30
    assert found.verdict == "Nothing stands in the way (1 note)."
    answer = facts(found, "Study")
    # 30 images of 1 x 32 x 32, two bytes a value; 7 whole batches of 4 in an epoch.
    assert answer["decoded images"] == "0.1 MB on disk" and answer["a round here"] == "7 steps of 4 x 1 images"
    assert answer["time a round"].startswith("about ")
    assert not (tmp_path / "state").exists()  # a check writes nothing


def test_planted_faults(data: Path, check: Callable[..., SiteCheck], study: MakeStudy, tmp_path: Path) -> None:
    shutil.copy(data / "p0" / "0.png", data / "p1" / "copy.png")
    Image.new("L", (40, 40)).save(data / "p2" / "black.png")
    np.save(data / "p3" / "volume.npy", np.random.default_rng(0).random((6, 40, 40)).astype(np.float32))
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    for name, person in {"a": "Roe^Jane", "b": "Doe^John"}.items():
        dataset.PatientName = person
        dataset.PixelData = (dataset.pixel_array // (2 if name == "a" else 3)).astype(np.int16).tobytes()
        dataset.save_as(data / f"p4/{name}.dcm")
    (data / "p5" / "cut.dcm").write_bytes((data / "p4" / "a.dcm").read_bytes()[:-5000])
    (data / "p6" / "scan.nrrd").write_text("another format")
    found = check(study())
    expected = {
        "copies across patients", "blank", "mixed dimensions", "shared id", "broken", "passed over", "other modality",
        "header identifiers", "no accelerator",
    }  # fmt: skip
    assert kinds(found).keys() == expected
    assert found.ok  # one broken file of 36 is left out
    shown = "\n".join(lines(found, 80))
    assert "p5/cut.dcm" in shown and STAYS.split(":")[0] in shown.replace("\n", " ")
    page = write_check(found, tmp_path / "out" / "check.html").read_text()
    for secret in ("Roe", "Doe", "Jane", "John"):
        assert secret not in shown and secret not in page


def test_too_many_broken_files_are_an_error(data: Path, check: Callable[..., SiteCheck], study: MakeStudy) -> None:
    for number in range(4):
        (data / "p0" / f"empty{number}.png").write_bytes(b"")
    found = check(study())
    assert not found.ok and kinds(found)["broken"] == "error"
    assert found.verdict.startswith("Not ready to join (1 error")


def test_a_first_look_comes_before_all_is_read(
    data: Path, check: Callable[..., SiteCheck], capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "p0" / "0.png").write_bytes(b"")  # the first of the sample
    found = check(sample=5)
    assert found.looked == 30
    said = capsys.readouterr().err
    assert "first look: 5 images of 30 files, 4 usable" in said and "1 of 5 images cannot be read" in said


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_no_images_is_a_finding(check: Callable[..., SiteCheck], tmp_path: Path, study: MakeStudy, place: str) -> None:
    (tmp_path / "empty").mkdir()
    found = check_site(tmp_path / place, study(), state=tmp_path, device="cpu")
    assert kinds(found)["no images"] == "error" and str(tmp_path / place) in found.of("error")[0].text
    assert facts(found, "Machine")


def test_a_broken_manifest_is_a_finding(data: Path, check: Callable[..., SiteCheck]) -> None:
    (data / "manifest.csv").write_text("image,patient\na.png,\n")
    assert "empty 'patient' cell" in check().of("error")[0].text


def test_a_closed_server(check: Callable[..., SiteCheck]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert kinds(check(server=f"127.0.0.1:{port}"))["refused"] == "error"


# The study at this site


def test_one_patient_is_too_few_for_a_contrast_between_patients(tmp_path: Path, study: MakeStudy) -> None:
    for number in range(6):
        write_image(tmp_path / "data" / "only" / f"{number}.png", number)
    found = check_site(tmp_path / "data", study(method={"name": "simclr"}), state=tmp_path, device="cpu")
    (error,) = found.of("error")
    assert error.kind == "not accepted" and error.text == "this site has 1 patient"
    assert error.remedy.startswith("simclr needs 2")


def test_policy(data: Path, check: Callable[..., SiteCheck], study: MakeStudy) -> None:
    found = check(study(), policy=Policy(min_images=31, methods=("byol",), max_epochs_per_round=0.5))
    assert {"policy on images", "policy on work", "policy on the study"} <= kinds(found).keys()
    assert kinds(check(study(), policy=Policy())) == {"no accelerator": "note"}


def test_a_private_study(
    check: Callable[..., SiteCheck], private_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s, ledger, policy = private_study(), tmp_path / "ledger.jsonl", Policy(studies="any")
    plan = plan_of(s)
    assert plan is not None
    timed: list[int] = []
    real = client.checks.study.clipped_sum

    def clipped_sum(*given: Any) -> Any:
        timed.append(given[3])
        return real(*given)

    monkeypatch.setattr(client.checks.study, "clipped_sum", clipped_sum)
    monkeypatch.setattr(client.checks.study, "_SECONDS", 0.1)
    found = check(s, policy=policy, ledger=ledger)
    assert found.ok
    answer = facts(found, "Study")
    assert answer["privacy"] == f"by patient: epsilon {plan.epsilon:.3g} at delta 0.001, whole study"
    assert answer["privacy ledger"] == f"epsilon 0 spent by all studies, {plan.epsilon:.3g} with this one's rounds"
    # Ten patients, each with probability one half, and one image each.
    assert answer["a round here"] == "2 steps of about 5.0 images, of patients drawn at random"
    assert timed and not ledger.exists()  # what is timed is the clipped step, and a check writes nothing
    bound = Policy.model_validate({"studies": "any", "privacy_budget": {"epsilon": plan.epsilon / 2, "delta": 1e-3}})
    assert kinds(check(s, policy=bound, ledger=ledger))["budget"] == "warning"
    (missing,) = check(s, policy=policy).of("error")
    assert missing.kind == "no ledger" and "the site file names no `ledger`" in missing.line
    assert check(s).ok  # without a site file there is nothing to say of it


def test_a_private_study_asks_whose_images_they_are(private_study: MakeStudy, tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / "flat" / f"{number}.png", number)
    found = check_site(tmp_path / "flat", private_study(), state=tmp_path / "state", device="cpu")
    assert kinds(found)["whose images"] == "error"


def test_a_slow_site_is_told_of_the_deadline(
    check: Callable[..., SiteCheck], study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (100.0, 2)
    monkeypatch.setattr(client.checks.study, "time_step", lambda *_: slow)
    found = check(study())
    # 7 steps of 4 images at 50 s an image: 1,400 s; the deadline is 5 minutes, the study has 3 rounds.
    assert kinds(found)["too slow"] == "warning"
    answer = facts(found, "Study")
    assert answer["time a round"].startswith("at most 23 minutes") and answer["time of the study"].startswith(
        "at most 1.2 hours"
    )


def test_a_batch_that_does_not_fit_is_an_error(
    check: Callable[..., SiteCheck], study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(client.checks.study, "time_step", exhausted)
    assert kinds(check(study()))["out of memory"] == "error"


def test_timing_leaves_the_threads_as_they_were_and_times_the_studys_batch(
    data: Path, study: MakeStudy, check: Callable[..., SiteCheck]
) -> None:
    before = torch.get_num_threads()
    found = check(study(training={"batch": 16, "threads": before + 1}))
    assert torch.get_num_threads() == before
    assert "timed with 16 a step" in facts(found, "Study")["time a round"]


# The machine


def test_a_small_disk(check: Callable[..., SiteCheck], study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.checks.machine, "free_at", lambda _: 1000)
    found = check(study())
    assert kinds(found)["disk"] == "error" and "0.0 GB are free" in found.of("error")[0].text


def test_little_memory(check: Callable[..., SiteCheck], study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.checks.machine, "memory", lambda: (1000, 2000))
    assert kinds(check(study()))["memory"] == "error"


def test_more_threads_than_cores(
    check: Callable[..., SiteCheck], study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.checks.machine, "usable_cores", lambda: 1)
    assert "threads" not in kinds(check(study()))
    assert kinds(check(study(training={"threads": 2})))["threads"] == "warning"


def test_a_device_that_is_not_there(data: Path, tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has what the test takes to be missing")
    assert kinds(check_site(data, device="mps", state=tmp_path))["device"] == "error"


def test_memory_is_what_the_system_says() -> None:
    available, total = client.checks.machine.memory()
    assert 0 < available <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# A kit, and what is shown


def test_a_kit_names_images_server_study_and_policy(data: Path, tmp_path: Path, study: MakeStudy) -> None:
    folder, plain = tmp_path / "kit", study()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = f"127.0.0.1:{taken.getsockname()[1]}"
    ca = ca_certificate(new_key(), "test", datetime.now(UTC), 30)
    write_kit(folder, Kit(site="a", federation="test", server=server, study=plain.training_hash()), plain.to_yaml(), ca)
    (folder / "site.yaml").write_text(
        f"site: a\ndata: {data}\nstate: state\ncache: cache\ndevice: cpu\npolicy: {{min_patients: 11}}\n"
    )
    found = check_kit(folder)
    assert {"refused", "policy on images"} <= kinds(found).keys() and found.study == "tiny"
    one = write_image(tmp_path / "other" / "p" / "0.png", 5)
    assert check_kit(folder / "site.yaml", one.parents[1]).looked == 1


def test_without_a_site_file_images_are_needed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--data"):
        check_kit(tmp_path / "site.yaml")
    assert check_kit(tmp_path / "site.yaml", data).study is None


@pytest.mark.parametrize("width", [60, 80])
def test_lines_fit_the_screen(data: Path, check: Callable[..., SiteCheck], study: MakeStudy, width: int) -> None:
    (data / "p0" / ("long-name" * 20 + ".png")).write_bytes(b"")
    shown = lines(check(study(), server="127.0.0.1:9"), width)
    assert max(map(len, shown)) <= width
    assert shown[-1].startswith("Not ready to join") and any(line.startswith("Not ready to join") for line in shown[:6])


def test_the_page_stands_alone_and_escapes_names(data: Path, check: Callable[..., SiteCheck], tmp_path: Path) -> None:
    (data / "p0" / "<script>alert(1)&.png").write_bytes(b"")
    page = write_check(check(), tmp_path / "check.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&amp;.png" in page
    assert "http://" not in page and "https://" not in page and "src=" not in page
    assert STAYS in page
