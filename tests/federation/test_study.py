"""The study file: what is wrong with one is said in one line; what is trained has one hash."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from federation.study import Study, load_study, study_from
from foundation.configuration.yaml_files import read_yaml
from foundation.errors import StudyError
from foundation.files import digest
from ssl_methods import METHODS

Raw = dict[str, Any]


def _with(raw: Raw, key: str, value: Any) -> Raw:
    changed = copy.deepcopy(raw)
    *parents, last = key.split(".")
    place = changed
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return changed


def _without(raw: Raw, key: str) -> Raw:
    changed = copy.deepcopy(raw)
    *parents, last = key.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    del place[last]
    return changed


def _refusal(raw: Raw) -> str:
    with pytest.raises(StudyError) as caught:
        study_from(raw, "study.yaml")
    text = str(caught.value)
    assert text.startswith("study.yaml: ")
    assert "\n" not in text
    return text.removeprefix("study.yaml: ")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rouns", {}, "key 'rouns' is not known; did you mean 'rounds'?"),
        ("training.learing_rate", 1, "key 'training.learing_rate' is not known; did you mean 'learning_rate'?"),
        ("method.mask_ratoi", 0.5, "key 'method.mask_ratoi' is not known; did you mean 'mask_ratio'?"),
        ("image.augment.crop_scal", [0.1, 1], "key 'image.augment.crop_scal' is not known; did you mean 'crop_scale'?"),
        ("encoder.widht", 24, "key 'encoder.widht' is not known; did you mean 'width'?"),
        ("evaluation.lable", "x", "key 'evaluation.lable' is not known; did you mean 'label'?"),
        ("rounds.count", "many", "rounds.count: Input should be a valid integer"),
        ("rounds.count", 0, "rounds.count: Input should be greater than or equal to 1 (got 0)"),
        ("rounds.quorum", 1.5, "rounds.quorum: Input should be less than or equal to 1 (got 1.5)"),
        ("rounds", 3, "rounds: Input should be a valid dictionary"),
        ("training.learning_rate", math.nan, "training.learning_rate: Input should be a finite number"),
        ("rounds.deadline_minutes", math.inf, "rounds.deadline_minutes: Input should be a finite number"),
        ("training.betas", [0.9, 1.0], "training.betas.1: Input should be less than 1 (got 1.0)"),
        ("training.betas", [0.9], "training.betas.1"),
        ("method.mask_ratio", "half", "method.mask_ratio: Input should be a valid number"),
        ("name", "Two Words", "name: String should match pattern"),
        ("seed", -1, "seed: Input should be greater than or equal to 0"),
        ("method.name", "maee", "'maee'"),
    ],
)
def test_one_wrong_thing_is_named(raw_study: Raw, key: str, value: Any, said: str) -> None:
    assert said in _refusal(_with(raw_study, key, value))


def test_a_misspelt_key_of_an_algorithm(raw_study: Raw) -> None:
    raw_study["algorithm"] = {"name": "fedadam", "server_lerning_rate": 0.1}
    assert _refusal(raw_study) == (
        "key 'algorithm.server_lerning_rate' is not known; did you mean 'server_learning_rate'?"
    )


def test_a_key_like_none_lists_those_there_are(raw_study: Raw) -> None:
    assert _refusal(_with(raw_study, "rounds.zzzzzz", 1)) == (
        "key 'rounds.zzzzzz' is not known; known there: attempts, count, deadline_minutes, keep_checkpoints, "
        "norm_bound, norm_factor, quorum"
    )


def test_a_misspelling_is_told_before_what_it_leaves_missing(raw_study: Raw) -> None:
    raw = _without(_with(raw_study, "rounds.cuont", 3), "rounds.count")
    assert _refusal(raw) == "key 'rounds.cuont' is not known; did you mean 'count'?"


@pytest.mark.parametrize(
    "key", ["name", "image", "encoder", "method", "algorithm", "rounds", "rounds.count", "image.size"]
)
def test_a_missing_key_is_named(raw_study: Raw, key: str) -> None:
    assert _refusal(_without(raw_study, key)) == f"key {key!r} is missing; add it"


@pytest.mark.parametrize("amount", [{"epochs": 1, "steps": 5}, {"epochs": None}, {"epochs": None, "steps": None}])
def test_exactly_one_amount_of_work(raw_study: Raw, amount: Raw) -> None:
    raw_study["training"] |= amount
    assert _refusal(raw_study) == "training: epochs and steps: exactly one of them is set, the other is null"


def test_epochs_or_steps(raw_study: Raw) -> None:
    assert study_from(_with(raw_study, "training.epochs", 2), "x").training.steps is None
    raw_study["training"] |= {"epochs": None, "steps": 7}
    assert study_from(raw_study, "x").training.steps == 7


def test_a_study_does_not_change(raw_study: Raw) -> None:
    study = study_from(raw_study, "x")
    with pytest.raises(ValueError, match="frozen"):
        study.training.batch = 5  # type: ignore[misc]  # what the test is about


# files and --set


@pytest.fixture
def file(tmp_path: Path, raw_study: Raw) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw_study))
    return path


def test_overrides(file: Path) -> None:
    study = load_study(
        file,
        [
            "rounds.count=7",
            "training.betas=[0.8, 0.9]",
            "title=a=b",
            "image.augment.blur=0",
            "training.learning_rate=1e-3",
        ],
    )
    assert study.rounds.count == 7
    assert study.training.betas == (0.8, 0.9)
    assert study.title == "a=b"
    assert study.image.augment.blur == 0
    assert study.training.learning_rate == 0.001
    assert study.training.batch == 4


def test_overrides_can_null_and_make_sections(file: Path) -> None:
    study = load_study(file, ["training.epochs=null", "training.steps=3", "simulation.dataset=phantoms"])
    assert study.training.epochs is None
    assert study.training.steps == 3
    assert study.simulation == {"dataset": "phantoms"}


def test_the_last_override_wins(file: Path) -> None:
    assert load_study(file, ["rounds.count=7", "rounds.count=8"]).rounds.count == 8


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds.count", "--set 'rounds.count': write key=value, for example --set rounds.count=5"),
        ("=5", "--set '=5': write key=value, for example --set rounds.count=5"),
        ("name.first=5", "--set 'name.first=5': 'name' is a value, not a section"),
        ("rounds.count=[1", "--set 'rounds.count=[1': the value is not valid YAML"),
    ],
)
def test_a_bad_override(file: Path, override: str, said: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(file, [override])
    assert str(caught.value) == said


def test_a_misspelt_override_names_the_file_and_the_nearest_key(file: Path) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(file, ["rounds.cuont=5"])
    assert str(caught.value) == f"{file}: key 'rounds.cuont' is not known; did you mean 'count'?"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1, 2", "is not valid YAML"),
        (b"a: 1\n\tb: 2", "is not valid YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"- 1\n- 2", "holds list instead of 'key: value' lines"),
        (b"", "holds NoneType instead of 'key: value' lines"),
        (b"\xff\xfe\x00", "cannot be read as a text file"),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    """PyYAML by itself lets the second win, so that a setting would silently do nothing."""
    path = tmp_path / "study.yaml"
    path.write_text("training:\n  batch: 8\n  epochs: 1\n  batch: 16\n")
    with pytest.raises(StudyError, match=r"is not valid YAML .*key 'batch' twice"):
        read_yaml(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nowhere.yaml: there is no such study file; the ready ones are in configs/$"):
        load_study(tmp_path / "nowhere.yaml")
    with pytest.raises(StudyError, match="cannot be read as a text file"):
        load_study(tmp_path)


# hash and round trip


def test_the_hash_is_over_canonical_json(raw_study: Raw) -> None:
    study = study_from(raw_study, "x")
    whole = json.loads(study.model_dump_json())
    for outside in ("simulation", "evaluation", "title", "demonstration"):
        del whole[outside]
    assert study.training_hash() == digest(json.dumps(whole, sort_keys=True, separators=(",", ":")))


def _reversed(value: Any) -> Any:
    return {key: _reversed(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def test_the_hash_does_not_depend_on_key_order_or_spelling(raw_study: Raw) -> None:
    study = study_from(raw_study, "x")
    turned = study_from(_reversed(raw_study), "x")
    assert list(turned.model_fields_set) != [] and turned.training_hash() == study.training_hash()
    assert turned.whole_hash() == study.whole_hash()
    assert study_from(_with(raw_study, "training.epochs", 1), "x").training_hash() == study.training_hash()


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        path = f"{key}.{name}".lstrip(".")
        if isinstance(inner, dict):
            yield from _leaves(inner, path)
        else:
            yield path, inner


OTHER: dict[str, Any] = {
    "image.modality": "fundus",
    "encoder.name": "vit_small_patch16_224",
    "training.precision": "bf16",
    "training.optimiser_state": "reset",
    "method.share": ["encoder"],
    "training.epochs": 2.0,
    "training.clip": 1.0,
    "algorithm.mu": 0.5,
    "simulation": {"dataset": "phantoms"},
}


def _changed(study: Study, key: str) -> Study:
    """The same study with another value at ``key``, put past validation: it is the hash that is asked."""
    whole = study.model_dump(mode="python")
    *parents, last = key.split(".")
    place = whole
    for parent in parents:
        place = place[parent]
    value = place[last]
    if key in OTHER:
        place[last] = OTHER[key]
    elif isinstance(value, bool):
        place[last] = not value
    elif isinstance(value, int | float):
        place[last] = value + 1
    elif isinstance(value, str):
        place[last] = value + "x"
    elif isinstance(value, tuple):
        place[last] = (*value, "x")
    else:
        place[last] = 0.25
    assert place[last] != value

    def rebuilt(section: Any, values: Any) -> Any:
        inner = {
            name: rebuilt(getattr(section, name), value)
            if hasattr(getattr(section, name), "model_fields_set")
            else value
            for name, value in values.items()
        }
        return type(section).model_construct(**inner)

    return rebuilt(study, whole)


SECTIONS: dict[str, Raw] = {
    "mae": {"method": {"name": "mae"}, "algorithm": {"name": "fedprox"}},
    "simclr": {"method": {"name": "simclr"}, "algorithm": {"name": "fedadam"}},
    "ijepa": {"method": {"name": "ijepa"}, "algorithm": {"name": "fedmedian"}},
}
OUTSIDE = ("evaluation", "title", "demonstration", "simulation")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the values are put past validation
@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_of_training_changes_the_hash(raw_study: Raw, section: str) -> None:
    study = study_from(raw_study | SECTIONS[section], "x")
    seen = {study.training_hash(): "unchanged"}
    keys = [key for key, _ in _leaves(study.model_dump(mode="python"))]
    assert len(keys) > 60
    for key in keys:
        value = _changed(study, key)
        if key.startswith(OUTSIDE):
            assert value.training_hash() == study.training_hash(), key
            assert (value.whole_hash() == study.whole_hash()) is False, key
        else:
            assert value.training_hash() not in seen, f"{key} has the hash of {seen[value.training_hash()]}"
            seen[value.training_hash()] = key


def test_where_the_data_lies_changes_no_hash(raw_study: Raw) -> None:
    raw_study["simulation"] = {"dataset": "folder", "root": "/here"}
    study = study_from(raw_study, "x")
    moved = study_from(_with(raw_study, "simulation.root", "/there"), "x")
    assert moved.training_hash() == study.training_hash()
    assert moved.whole_hash() == study.whole_hash()
    assert study_from(_with(raw_study, "simulation.dataset", "busi"), "x").whole_hash() != study.whole_hash()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_written_study_is_the_same_study(tmp_path: Path, raw_study: Raw, section: str) -> None:
    raw_study |= SECTIONS[section]
    raw_study |= {"title": "Zürich: 1e-3 # not a comment", "simulation": {"dataset": "phantoms", "root": None}}
    raw_study["rounds"]["deadline_minutes"] = 1e9
    raw_study["training"] |= {"learning_rate": 1e-5, "betas": [0.9, 0.999]}
    study = study_from(raw_study, "x")
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml(), encoding="utf-8")
    again = load_study(path)
    assert again == study
    assert again.training_hash() == study.training_hash()
    assert again.whole_hash() == study.whole_hash()


def test_the_written_study_has_every_default(raw_study: Raw) -> None:
    written = yaml.safe_load(study_from(raw_study, "x").to_yaml())
    assert written["training"]["weight_decay"] == 0.05
    assert written["rounds"]["norm_factor"] == 10.0
    assert written["method"]["mask_ratio"] == 0.75


def test_every_setting_has_a_sentence(make_models: Callable[[], list[Any]]) -> None:
    missing = [
        f"{model.__name__}.{name}"
        for model in make_models()
        for name, field in model.model_fields.items()
        if not field.description
        and name not in ("name", "image", "encoder", "method", "training", "algorithm", "rounds", "evaluation")
    ]
    assert missing == []


@pytest.fixture
def make_models() -> Callable[[], list[Any]]:
    """All sections that a study is made of."""

    def inside(model: Any) -> list[Any]:
        found = [model]
        for field in model.model_fields.values():
            for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
                if hasattr(part, "model_fields"):
                    found += inside(part)
        return found

    return lambda: inside(Study)


def test_a_misspelt_method_name_is_told_with_the_nearest(raw_study: dict[str, Any]) -> None:
    raw_study["method"] = {"name": "simclrr"}
    with pytest.raises(
        StudyError,
        match=r"^s: method.name 'simclrr' is not known; there are: autoencoder, .*, vicreg; did you mean 'simclr'\?$",
    ):
        study_from(raw_study, "s")


SUM: Raw = {
    "name": "combine",
    "methods": [{"method": {"name": "mae"}}, {"method": {"name": "simclr", "temperature": 0.5}, "weight": 0.5}],
}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "methods.0.method.mask_ratoi=.5",
            "key 'method.methods.0.method.mask_ratoi' is not known; did you mean 'mask_ratio'?",
        ),
        ("methods.1.wieght=2", "key 'method.methods.1.wieght' is not known; did you mean 'weight'?"),
        ("methods.1.weight=0", "method.methods.1.weight: Input should be greater than 0 (got 0)"),
        (
            "methods.1.method.name=simclrr",
            "method.methods.1.method.name 'simclrr' is not known; there are: autoencoder, ",
        ),
        (
            "methods.1.method.name=combine",
            "method.methods.1.method.name 'combine' is not known; there are: autoencoder, ",
        ),
        ("methods.0.method=null", "method.methods.0.method"),
        ("methods.2.weight=1", "--set 'method.methods.2.weight=1': '2' is none of a list's 2 entries, counted from 0"),
        ("methods.x=1", "--set 'method.methods.x=1': 'x' is none of a list's 2 entries, counted from 0"),
        ("methods.0.method.share=[encoder]", "share of member mae: parts of all members are shared by method.share"),
        ("methods.1.method={name: slice_order}", None),
        ("share=[encoder, mae.decodr]", "'mae.decodr' is no part of 'combine'; there are: encoder, mae.decoder, "),
    ],
)
def test_a_sum_of_methods_is_told_and_changed_by_the_number_of_its_member(
    tmp_path: Path, raw_study: Raw, override: str, said: str | None
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw_study | {"method": SUM}))
    if said is None:
        study = load_study(path, [f"method.{override}"])
        assert study.method.partner == "placed"
        return
    with pytest.raises(StudyError) as caught:
        load_study(path, [f"method.{override}"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_written_sum_of_methods_is_the_same_study(tmp_path: Path, raw_study: Raw) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw_study | {"method": SUM}))
    study = load_study(path)
    hashes = {study.training_hash()}
    for override in ("methods.0.weight=2", "methods.1.method.temperature=.4", "methods.0.method.mask_ratio=.5"):
        changed = load_study(path, [f"method.{override}"])
        hashes.add(changed.training_hash())
        path.with_name("written.yaml").write_text(changed.to_yaml())
        assert load_study(path.with_name("written.yaml")) == changed
    assert len(hashes) == 4


def test_a_method_that_does_not_fit_its_encoder_is_refused_when_read(raw_study: dict[str, Any]) -> None:
    raw_study["encoder"] = {"name": "resnet10t"}
    with pytest.raises(StudyError, match="mae"):
        study_from(raw_study, "s")


# the method's own rate


@pytest.mark.parametrize("name", [name for name in METHODS if name != "swin_unetr"])
def test_a_rate_that_is_left_out_is_the_methods_own(raw_study: Raw, name: str) -> None:
    facts = METHODS[name]
    raw_study |= {"method": {"name": name}, "training": {"batch": 4}}
    if "vit" not in facts.encoders:
        raw_study["encoder"] = {"name": "resnet10t"}
    left, named = study_from(raw_study, "x"), copy.deepcopy(raw_study)
    assert (left.training.learning_rate, left.training.betas) == (facts.learning_rate, facts.betas)
    named["training"] |= {"learning_rate": facts.learning_rate, "betas": facts.betas}
    assert study_from(named, "x").training_hash() == left.training_hash()
    written = yaml.safe_load(left.to_yaml())["training"]
    assert (written["learning_rate"], written["betas"]) == (facts.learning_rate, list(facts.betas))


def test_rates_of_methods_by_hand(raw_study: Raw) -> None:
    known = {"simclr": (4e-3, 0.95), "mae": (4e-3, 0.95), "dino": (4e-3, 0.999), "rotation": (5e-4, 0.95)}
    found = {}
    del raw_study["training"]
    for name in known:
        training = study_from(raw_study | {"method": {"name": name}}, "x").training
        assert training.betas is not None
        found[name] = training.learning_rate, training.betas[1]
    assert found == known
    assert METHODS["swin_unetr"].learning_rate * 32 / 256 == pytest.approx(4e-4)


def test_a_sum_has_the_least_of_its_members(raw_study: Raw) -> None:
    members = [{"method": {"name": name}} for name in ("dino", "rotation", "mae")]
    raw_study |= {"method": {"name": "combine", "methods": members}, "training": {"learning_rate": None}}
    training = study_from(raw_study, "x").training
    assert (training.learning_rate, training.betas) == (5e-4, (0.9, 0.95))


def test_a_rate_that_is_given_stays(raw_study: Raw) -> None:
    raw_study["training"] = {"learning_rate": 0.3, "betas": [0.5, 0.6]}
    training = study_from(raw_study, "x").training
    assert (training.learning_rate, training.betas) == (0.3, (0.5, 0.6))
