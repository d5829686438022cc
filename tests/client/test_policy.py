"""A hospital's policy: what it refuses is refused at the site, in one line, before anything is decoded or trained."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import client.site_images
import client.site_study
import client.training.site_training
from client.policy import (
    Policy,
    check_images,
    check_study,
    check_trained,
    check_work,
    quiet_minutes,
    wait_for_quiet_hours,
)
from client.site import Site
from client.site_file import SiteFile, load_site_file
from federation.records import TrainInstruction
from federation.study import Study
from foundation.errors import DataError, StudyError

MakeStudy = Callable[..., Study]
Instruct = Callable[..., TrainInstruction]
ROOT = Path(__file__).resolve().parents[2]
ANY: dict[str, Any] = {"studies": "any", "min_images": 1, "min_patients": 1, "smallest_count": 1}


@pytest.fixture
def site_with(hospital: Callable[..., Path], tmp_path: Path) -> Callable[..., Site]:
    """``site_with(study, max_rounds=2)``: a site of 9 images of 3 patients that permits all but what is said."""

    def make(study: Study, **policy: Any) -> Site:
        path = tmp_path / "sites" / "A" / "site.yaml"
        path = path if path.exists() else hospital("A")
        raw = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(raw | {"policy": ANY | policy}))
        return Site(load_site_file(path), study)

    return make


def read(tmp_path: Path, policy: dict[str, Any] | None) -> SiteFile:
    path = tmp_path / "site.yaml"
    raw = {"site": "A", "data": "d", "state": "s", "cache": "c"} | ({} if policy is None else {"policy": policy})
    path.write_text(yaml.safe_dump(raw))
    return load_site_file(path)


def test_the_example_shows_every_key_with_its_default() -> None:
    example = yaml.safe_load((ROOT / "configs" / "sites" / "example.yaml").read_text())
    assert example.keys() == SiteFile.model_fields.keys()
    assert example["policy"].keys() == Policy.model_fields.keys()
    assert SiteFile.model_validate(example).policy == Policy()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"studies": "approvd"}, "policy.studies: neither approved, any nor a list of training hashes; did you mean "
                                 "'approved'? (got 'approvd')"),
        ({"studies": ["3F2A90C1B7DE"]}, "'3F2A90C1B7DE' is no training hash: give at least its first 12 hex digits"),
        ({"studies": ["3f2a90c1b7d"]}, "'3f2a90c1b7d' is no training hash"),
        ({"studies": [123456789012]}, "123456789012 is no text: write a training hash in quotes, in a list"),
        ({"studies": 123456789012}, "123456789012 is no text"),
        ({"methods": ["mea"]}, "policy.methods: method 'mea' is not known; did you mean 'mae'?"),
        ({"encoders": ["vit_tiny_patch16_225"]}, "encoder 'vit_tiny_patch16_225' is not a timm model; did you mean "),
        ({"metrics": ["los"]}, "policy.metrics: metric 'los' is not known; did you mean 'loss'?"),
        ({"metrics": "al"}, "policy.metrics: neither all nor a list of metric names; did you mean 'all'?"),
        ({"max_round": 3}, "key 'policy.max_round' is not known; did you mean 'max_rounds'?"),
        ({"smallest_count": 0}, "policy.smallest_count: Input should be greater than or equal to 1 (got 0)"),
        ({"quiet_hours": ["22-6"]}, "'22-6' is no span of time: write '22:00-06:00' or 'mon-fri 07:30-18:00'"),
        ({"quiet_hours": ["08:00-08:00"]}, "is no span of time: from 00:00 to 24:00, and its ends differ"),
        ({"quiet_hours": ["08:60-09:00"]}, "is no span of time: from 00:00"),
        ({"quiet_hours": ["tag 08:00-09:00"]}, "names a day that is none of mon, tue"),
        ({"quiet_hours": ["06:00-22:00", "22:00-06:00"]}, "cover the whole week, so that no round would ever start"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, policy: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError) as caught:
        read(tmp_path, policy)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "policy" in str(caught.value)


def test_without_a_policy_only_approved_studies_are_trained(study: MakeStudy, tmp_path: Path) -> None:
    s, policy = study(), read(tmp_path, None).policy
    with pytest.raises(StudyError) as caught:
        check_study(policy, s, ())
    own = s.training_hash()
    assert str(caught.value) == (
        f"study tiny ({own[:12]}) has no approval at this site, and policy.studies is approved: read and approve it "
        "with `fedpretext site approve STUDY`"
    )
    with pytest.raises(StudyError):
        check_study(policy, s, {"0" * 64})
    check_study(policy, s, {own})


def test_studies_by_hash_and_any(study: MakeStudy) -> None:
    s = study()
    own = s.training_hash()
    check_study(Policy(studies="any"), s, ())
    check_study(Policy(studies=(own[:12],)), s, ())
    check_study(Policy(studies=("0" * 12, own)), s, ())
    for listed in ((), ("0" * 12,), (own[:12] + ("0" if own[12] != "0" else "1"),)):
        with pytest.raises(StudyError, match=f"in this site's policy.studies: add '{own[:12]}' there, or stay out"):
            check_study(Policy(studies=listed), s, {own})


SUM = {"name": "combine", "methods": [{"method": {"name": "mae"}}, {"method": {"name": "simclr"}}]}


@pytest.mark.parametrize(
    ("policy", "sections", "said"),
    [
        ({"methods": ["mae"]}, {}, None),
        ({"methods": ["simclr", "ijepa"]}, {}, "trains the method mae, and this site's policy.methods has simclr, ij"),
        ({"methods": []}, {}, "policy.methods has none: add it there"),
        ({"methods": ["combine", "mae"]}, {"method": SUM}, "trains the method simclr"),
        ({"methods": ["mae", "simclr"]}, {"method": SUM}, "trains the method combine"),
        ({"methods": ["mae", "simclr", "combine"]}, {"method": SUM}, None),
        (
            {"encoders": ["resnet18"]},
            {},
            "trains the encoder vit_tiny_patch16_224, and this site's policy.encoders has",
        ),
        ({"encoders": ["vit_tiny_patch16_224"]}, {}, None),
        ({"max_rounds": 2}, {}, "study tiny has 3 rounds, and this site's policy.max_rounds is 2: raise it"),
        ({"max_rounds": 3}, {}, None),
        ({"max_epochs_per_round": 1.5}, {"training": {"epochs": 2}}, "passes 2 times over this site's images"),
        ({"max_epochs_per_round": 2}, {"training": {"epochs": 2}}, None),
        ({"require_privacy": True}, {}, "study tiny has no `privacy` section, and this site's policy.require_privacy"),
    ],
)
def test_rules_of_a_study(study: MakeStudy, policy: dict[str, Any], sections: dict[str, Any], said: str | None) -> None:
    rules, s = Policy.model_validate(ANY | policy), study(**sections)
    if said is None:
        check_study(rules, s, ())
        return
    with pytest.raises(StudyError) as caught:
        check_study(rules, s, ())
    assert said in str(caught.value)


def test_steps_are_converted_to_epochs(study: MakeStudy) -> None:
    s = study(training={"epochs": None, "steps": 5, "batch": 4})
    check_study(Policy(studies="any", max_epochs_per_round=1), s, ())  # how many epochs that is depends on the images
    check_work(Policy(max_epochs_per_round=2), s, [4, 6])  # 5 steps of 4 are 20 images
    with pytest.raises(StudyError, match=r"passes 2\.222 times over this site's images in a round, and policy\.max_"):
        check_work(Policy(max_epochs_per_round=2), s, [9])


def test_the_work_of_drawn_patients_is_what_is_expected(private_study: MakeStudy) -> None:
    """4 patients, 2 a step by the study: each takes part with probability a half, with 2 of its images or 1."""
    s = private_study(privacy={"images_per_patient": 2}, training={"steps": 10, "batch": 64})
    images = [5, 2, 1]  # 10 steps of (2 + 2 + 1) / 2 images are 25, of 8; a batch of 64 has nothing to do with it
    check_work(Policy(max_epochs_per_round=3.2), s, images)
    with pytest.raises(StudyError, match=r"passes 3\.125 times over this site's images in a round"):
        check_work(Policy(max_epochs_per_round=3.1), s, images)


def test_images_and_patients() -> None:
    check_images(Policy(min_images=9, min_patients=3), 9, 3)
    with pytest.raises(DataError, match=r"^this site has 8 usable images, and its policy.min_images is 9: add imag"):
        check_images(Policy(min_images=9), 8, 8)
    with pytest.raises(DataError, match=r"^this site has images of 2 patients, and its policy.min_patients is 3: add"):
        check_images(Policy(min_patients=3), 9, 2)
    with pytest.raises(DataError, match=r"^this site's images do not say whose they are, and its policy.min_patients"):
        check_images(Policy(), 900, None)
    check_images(Policy(min_patients=1), 900, None)


MONDAY = datetime(2026, 11, 23)


def minute(day: int, hour: int, minute: int = 0) -> int:
    return (day * 24 + hour) * 60 + minute


@pytest.mark.parametrize(
    ("span", "quiet", "loud"),
    [
        ("08:00-09:30", [minute(0, 8), minute(6, 9, 29)], [minute(0, 7, 59), minute(6, 9, 30)]),
        ("22:00-06:00", [minute(0, 22), minute(1, 5, 59), minute(0, 3)], [minute(0, 21, 59), minute(1, 6)]),
        ("mon-fri 22:00-06:00", [minute(4, 23), minute(5, 5, 59)], [minute(0, 3), minute(5, 22)]),
        ("sun 22:00-06:00", [minute(6, 22), minute(0, 5)], [minute(6, 5), minute(0, 22)]),
        ("sat-mon 00:00-24:00", [minute(5, 0), minute(6, 12), minute(0, 23, 59)], [minute(1, 0), minute(4, 23, 59)]),
        ("Wed 12:00-13:00", [minute(2, 12)], [minute(1, 12), minute(3, 12)]),
    ],
)
def test_spans(span: str, quiet: list[int], loud: list[int]) -> None:
    covered = quiet_minutes((span,))
    assert set(quiet) <= covered
    assert not set(loud) & covered


@given(start=st.integers(0, 1439), end=st.integers(0, 1439), moment=st.integers(0, 7 * 1440 - 1))
def test_a_span_of_every_day_by_the_clock_alone(start: int, end: int, moment: int) -> None:
    if start == end:
        return
    span = f"{start // 60:02d}:{start % 60:02d}-{end // 60:02d}:{end % 60:02d}"
    now = moment % 1440
    inside = start <= now < end if start < end else now >= start or now < end
    assert (moment in quiet_minutes((span,))) == inside


class Clock:
    """A clock that stands until somebody sleeps."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment
        self.longest = 0.0

    def now(self) -> datetime:
        return self.moment

    def sleep(self, seconds: float) -> None:
        self.longest = max(self.longest, seconds)
        self.moment += timedelta(seconds=seconds)


def test_the_wait_ends_when_the_quiet_hours_do() -> None:
    policy = Policy(quiet_hours=("22:00-06:00", "06:00-06:15"))
    clock = Clock(MONDAY + timedelta(hours=23, seconds=17))
    wait_for_quiet_hours(policy, clock.now, clock.sleep)
    assert clock.moment == MONDAY + timedelta(days=1, hours=6, minutes=15)
    assert clock.longest <= 60
    day = Clock(MONDAY + timedelta(hours=12))
    wait_for_quiet_hours(policy, day.now, day.sleep)
    assert day.longest == 0


# At the site


def test_nothing_is_decoded_for_a_study_that_is_not_permitted(
    study: MakeStudy, site_with: Callable[..., Site], instruction: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.site_images.TensorStore, "build", lambda *_: pytest.fail("images were decoded"))
    s = study()
    for policy in ({"studies": "approved"}, {"methods": ["simclr"]}, {"max_rounds": 2}):
        here = site_with(s, **policy)
        with pytest.raises(StudyError):
            here.describe()
        with pytest.raises(StudyError):
            here.train(instruction(s))


@pytest.mark.parametrize("policy", [{"min_images": 10}, {"min_patients": 4}])
def test_too_few_images_are_not_decoded(
    study: MakeStudy, site_with: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, policy: dict[str, int]
) -> None:
    monkeypatch.setattr(client.site_images.TensorStore, "build", lambda *_: pytest.fail("images were decoded"))
    with pytest.raises(DataError, match=f"policy.{next(iter(policy))}"):
        site_with(study(), **policy).describe()


def test_images_that_cannot_be_read_do_not_count(
    study: MakeStudy, hospital: Callable[..., Path], site_with: Callable[..., Site]
) -> None:
    """25 images are listed; one is broken, which a store bears."""
    path = hospital("A", images=25, patients=5)
    (path.parent / "003.png").write_bytes(b"no image")
    raw = yaml.safe_load(path.read_text())
    for fewest, fits in ((24, True), (25, False)):
        path.write_text(yaml.safe_dump(raw | {"policy": ANY | {"min_images": fewest}}))
        here = Site(load_site_file(path), study())
        if fits:
            assert here.describe().images == 24
        else:
            with pytest.raises(DataError, match="this site has 24 usable images"):
                here.describe()


def test_steps_beyond_the_epochs_are_refused_at_the_site(study: MakeStudy, site_with: Callable[..., Site]) -> None:
    s = study(training={"epochs": None, "steps": 5, "batch": 4})
    with pytest.raises(StudyError, match=r"passes 2\.222 times"):
        site_with(s, max_epochs_per_round=2).describe()


def test_rounds_repeated_from_other_weights_are_counted(
    study: MakeStudy, site_with: Callable[..., Site], instruction: Instruct
) -> None:
    """A server that asks for one round again and again with weights of its choice gets no more than the study's."""
    s = study()
    here = site_with(s, max_rounds=3)
    for factor in (1.0, 0.9, 0.8):
        weights = {name: value * factor for name, value in instruction(s).weights.items()}
        here.train(instruction(s, 1, weights))
        here.train(instruction(s, 1, weights))  # sent again: the stored update, not counted
    with pytest.raises(StudyError, match=r"^this site has trained 3 rounds of study tiny, repeats from other weights"):
        here.train(instruction(s, 2))
    with pytest.raises(StudyError):
        check_trained(Policy(max_rounds=3), s, 4)


@pytest.mark.parametrize("round_", [0, -1, 4])
def test_a_round_that_the_study_has_not(
    study: MakeStudy, site_with: Callable[..., Site], instruction: Instruct, round_: int
) -> None:
    s = study()
    with pytest.raises(StudyError, match=f"^site A: was asked for round {round_} of a study of 3$"):
        site_with(s).train(instruction(s, round_))


def test_the_server_cannot_write_into_what_stays(
    study: MakeStudy, site_with: Callable[..., Site], instruction: Instruct, ijepa: dict[str, Any]
) -> None:
    s = study(method=ijepa)
    planted = instruction(s).weights
    name = next(name for name in planted if name.startswith("encoder."))
    planted[f"target_{name}"] = planted[name]
    with pytest.raises(StudyError, match=r"^site A: was sent other tensors than those that the study shares$"):
        site_with(s).train(instruction(s, 1, planted))


def test_a_round_waits_for_the_end_of_the_quiet_hours_and_asks_again_whether_it_may(
    study: MakeStudy, site_with: Callable[..., Site], instruction: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = study()
    here = site_with(s, quiet_hours=["22:00-06:00"])
    order: list[str] = []
    real = client.training.site_training.train_round
    monkeypatch.setattr(
        client.training.site_training, "wait_for_quiet_hours", lambda policy: order.append(policy.quiet_hours[0])
    )
    monkeypatch.setattr(client.site_study, "check_study", lambda *_: order.append("permitted"))

    def noted(*arguments: Any) -> Any:
        order.append("trained")
        return real(*arguments)

    monkeypatch.setattr(client.training.site_training, "train_round", noted)
    here.train(instruction(s))
    assert order == ["permitted", "22:00-06:00", "permitted", "trained"]
    here.train(instruction(s))  # a stored update is sent at any time
    assert order[4:] == ["permitted"]
