"""The list of what may leave: everything that is not on it is withheld, whatever a method or a bug puts there."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

import client.app
import client.training.site_training
from client.outgoing.answers import checked_reply, hide_count
from client.outgoing.metrics import OUTGOING_METRICS, known_metric, rounded
from client.policy import Policy
from client.training.round import RoundOutcome
from federation.audit.log import NOTHING, AuditHead, Extension
from federation.flower.permitted import Permitted, check_record_dict
from federation.flower.private_identity import assume_identity
from federation.flower.records import (
    confirmation_to_content,
    content_to_reply,
    failure_of,
    instruction_to_content,
    question,
    reply_to_content,
    site_to_content,
    with_note,
)
from federation.packed import pack
from federation.records import (
    CATEGORIES,
    AuditNote,
    Failure,
    SiteInfo,
    TrainInstruction,
    TrainReply,
    WithheldError,
)
from federation.study import Study, study_from
from ssl_methods import METHODS, build_method, method_type
from ssl_methods.method import Batch
from ssl_methods.reconstruction.mae import MAE

MakeStudy = Callable[..., Study]
Instruct = Callable[..., TrainInstruction]
SECRET = "DOE^SECRET"
SHAPES: dict[str, Tensor] = {
    "encoder.weight": torch.zeros(2, 3),
    "encoder.bias": torch.zeros(3),
    "encoder.norm.running_var": torch.ones(3),
    "encoder.norm.num_batches_tracked": torch.tensor(0),
}
LENIENT = Policy(studies="any", smallest_count=1)


def failure_in(content: RecordDict) -> str | None:
    """The category that a site answered with, if it did not do what it was asked."""
    failure = failure_of(content)
    return None if failure is None else failure.category


def tiny(**sections: Any) -> Study:
    raw: dict[str, Any] = {
        "name": "tiny", "image": {"modality": "mri", "size": 32, "channels": 1},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
        "method": {"name": "mae"}, "algorithm": {"name": "fedavg"}, "rounds": {"count": 3},
    }  # fmt: skip
    return study_from(raw | sections, "test")


STUDY = tiny()
HASH = STUDY.training_hash()
METRICS = {"loss": 0.25, "steps": 2.0, "feature_spread": 0.5}


def good(**changes: Any) -> TrainReply:
    weights = {name: value.clone() for name, value in SHAPES.items()}
    return replace(TrainReply(HASH, 1, "A", 9, weights, dict(METRICS)), **changes)


def check(reply: Any, policy: Policy = LENIENT) -> Any:
    return checked_reply(STUDY, reply, SHAPES, policy, "A", 1)


def bytes_of(reply: TrainReply | Failure) -> bytes:
    """What would leave the site."""
    return recorddict_to_proto(reply_to_content(reply)).SerializeToString()


def test_good_answers_pass_unchanged() -> None:
    sent = check(good())
    assert (sent.study_hash, sent.round, sent.site, sent.images, sent.metrics) == (HASH, 1, "A", 9, METRICS)
    assert all(torch.equal(sent.weights[name], value) for name, value in good().weights.items())
    assert check(SiteInfo("A", HASH, 9)) == SiteInfo("A", HASH, 9)
    for category in CATEGORIES:
        assert check(Failure("", 3, "A", category)) == Failure("", 3, "A", category)
    assert checked_reply(None, Failure("", 0, "unknown", "internal-error"), {}, Policy(), "unknown").site == "unknown"


names = st.text(max_size=60)
arrays = st.lists(st.floats(width=32), max_size=8).map(lambda values: torch.tensor(values, dtype=torch.float32))


@given(name=names.filter(lambda name: name not in SHAPES), value=arrays)
def test_no_tensor_beyond_the_studys(name: str, value: Tensor) -> None:
    with pytest.raises(WithheldError):
        check(good(weights=good().weights | {name: value}))


@given(name=names, value=st.floats())
def test_no_metric_beyond_the_table(name: str, value: float) -> None:
    reply = good(metrics={name: value})
    if name not in OUTGOING_METRICS:
        with pytest.raises(WithheldError):
            check(reply)
        return
    assert set(check(reply).metrics) <= {name}


@given(name=st.sampled_from(sorted(OUTGOING_METRICS)), value=st.floats() | st.integers() | st.text() | st.booleans())
def test_a_metric_is_a_finite_number_of_six_digits_within_bounds_or_stays(name: str, value: Any) -> None:
    reply = good(metrics={name: value})
    if type(value) not in (int, float):
        with pytest.raises(WithheldError):
            check(reply)
        return
    for reported in check(reply).metrics.values():
        assert type(reported) is float
        assert math.isfinite(reported) and abs(reported) <= OUTGOING_METRICS[name].most
        assert reported == float(f"{reported:.6g}") and (reported == 0 or abs(reported) >= 9.9e-13)
        assert reported == pytest.approx(value, rel=1e-5, abs=1e-12)


@given(
    field=st.sampled_from(["study_hash", "site", "category"]),
    text=st.text(max_size=80) | st.sampled_from([SECRET, HASH, "A", *CATEGORIES]),
)
def test_no_word_but_the_hash_the_name_and_a_category(field: str, text: str) -> None:
    failure = replace(Failure("", 1, "A", "internal-error"), **{field: text})
    allowed = {"study_hash": ("", HASH), "site": ("A",), "category": CATEGORIES}[field]
    if text in allowed:
        assert check(failure) == failure
    else:
        with pytest.raises(WithheldError) as caught:
            check(failure)
        assert text not in str(caught.value) or len(text) < 12
    if field != "category" and (field, text) != ("study_hash", HASH) and (field, text) != ("site", "A"):
        for answer in (good(), SiteInfo("A", HASH, 9)):
            with pytest.raises(WithheldError):
                check(replace(answer, **{field: text}))


def payload(pattern: int) -> Tensor:
    """NaNs of float32 whose 22 free bits say something."""
    return torch.tensor([0x7F800001 | pattern] * 3, dtype=torch.int32).view(torch.float32)


PIXELS = torch.arange(12, dtype=torch.float32).reshape(3, 4)
SMUGGLED: dict[str, Callable[[], Any]] = {
    "pixels in a tensor more": lambda: good(weights=good().weights | {"encoder.pixels": PIXELS}),
    "a tensor less": lambda: good(weights={"encoder.bias": torch.zeros(3)}),
    "pixels in a longer tensor": lambda: good(weights=good().weights | {"encoder.bias": PIXELS}),
    "pixels in a wider type": lambda: good(weights=good().weights | {"encoder.bias": torch.zeros(3).double()}),
    "pixels in an integer counter": lambda: good(
        weights=good().weights | {"encoder.norm.num_batches_tracked": torch.zeros(64, dtype=torch.int64)}
    ),
    "bits of NaN": lambda: good(weights=good().weights | {"encoder.bias": payload(0x2ABCDE)}),
    "infinity": lambda: good(weights=good().weights | {"encoder.bias": torch.tensor([0, math.inf, 0])}),
    "a metric's name": lambda: good(metrics={"p_00ff10a3b7": 1.0}),
    "a metric's name beginning with a known one": lambda: good(metrics={"loss_00ff10a3b7": 1.0}),
    "a metric's name ending with a known one": lambda: good(metrics={"p00ff10a3b7_loss": 1.0}),
    "a text as a metric": lambda: good(metrics={"loss": SECRET}),
    "a list as a metric": lambda: good(metrics={"loss": [0.1, 0.2]}),
    "a boolean": lambda: good(metrics={"loss": True}),
    "another round": lambda: good(round=271828),
    "a text as a round": lambda: Failure("", SECRET, "A", "internal-error"),  # type: ignore[arg-type]
    "a round that says something": lambda: Failure("", 1957_03_11, "A", "internal-error"),
    "the count as a fraction": lambda: good(images=9.123456789),
    "a category": lambda: Failure("", 1, "A", f"internal-error: {SECRET}"),
    "the site": lambda: good(site=f"A.{SECRET}"),
    "the study": lambda: good(study_hash=SECRET),
    "who": lambda: SiteInfo(f"A.{SECRET}", HASH, 9),
    "who, of which study": lambda: SiteInfo("A", "", 9),
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_smuggled(case: str) -> None:
    with pytest.raises(WithheldError) as caught:
        check(SMUGGLED[case]())
    assert "\n" not in str(caught.value)


def test_without_a_study_only_a_failure_leaves() -> None:
    for answer in (good(), SiteInfo("A", HASH, 9)):
        with pytest.raises(WithheldError):
            checked_reply(None, answer, SHAPES, LENIENT, "A", 1)


def test_digits_of_a_metric_carry_no_pixels() -> None:
    hidden = struct.unpack("<d", b"\x01\x02\x03\x04\x05\x06\xe0\x3f")[0]
    sent = check(good(metrics={"loss": hidden}))
    assert struct.pack("<d", hidden) not in bytes_of(sent)
    assert sent.metrics["loss"] == 0.500735
    assert rounded(-1234567.0) == -1234570.0
    assert rounded(3e-310) == 0.0
    assert check(good(metrics={"loss": 2**80, "steps": math.nan, "rankme": 1.0})).metrics == {"rankme": 1.0}


def test_only_the_metrics_that_the_policy_names_leave() -> None:
    policy = Policy(studies="any", metrics=("loss", "rankme"))
    assert check(good(), policy).metrics == {"loss": 0.25}
    assert check(good(), Policy(metrics=())).metrics == {}


COMBINED = tiny(
    method={"name": "combine", "methods": [{"method": {"name": "mae"}}, {"method": {"name": "simclr"}}, {"method": {
        "name": "simclr"}}]}
)  # fmt: skip


def test_metrics_of_a_sum_are_its_members() -> None:
    reported = {"loss", "mae_loss", "simclr_loss", "simclr_2_anchors_left_out"}
    assert {known_metric(COMBINED, name) for name in reported} == {"loss", "anchors_left_out"}
    for name in ("ijepa_loss", "simclr_3_loss", "mae_mae_loss", "mae_", "simclr_2_", "mae_pixels"):
        assert known_metric(COMBINED, name) is None
    assert known_metric(STUDY, "mae_loss") is None
    reply = good(study_hash=COMBINED.training_hash(), metrics=dict.fromkeys(reported, 0.5))
    sent = checked_reply(COMBINED, reply, SHAPES, Policy(smallest_count=1, metrics=("loss",)), "A", 1)
    assert set(sent.metrics) == {"loss", "mae_loss", "simclr_loss"}


# The count of images


def test_a_small_count_is_hidden_with_all_that_tells_it() -> None:
    policy = Policy(smallest_count=5)
    reported = dict.fromkeys(OUTGOING_METRICS, 0.5) | {"simclr_2_anchors_left_out": 0.5, "mae_loss": 0.5}
    counted = good().weights | {"encoder.norm.num_batches_tracked": torch.tensor(7)}
    hidden = hide_count(good(images=3, metrics=reported, weights=counted), SHAPES, policy)
    assert hidden.images == 5
    assert {"steps", "images_seen", "seconds", "learning_rate", "accuracy", "rankme"}.isdisjoint(hidden.metrics)
    assert {"loss", "feature_spread", "mae_loss"} <= hidden.metrics.keys()
    assert "simclr_2_anchors_left_out" not in hidden.metrics
    assert int(hidden.weights["encoder.norm.num_batches_tracked"]) == 0  # as it came
    for name in ("encoder.weight", "encoder.bias", "encoder.norm.running_var"):
        assert hidden.weights[name] is counted[name]
    exact = good(images=5, metrics=reported, weights=counted)
    assert hide_count(exact, SHAPES, policy) is exact


@pytest.mark.parametrize("answer", [good(images=4), SiteInfo("A", HASH, 4)])
def test_a_count_that_was_not_hidden_does_not_leave(answer: Any) -> None:
    with pytest.raises(WithheldError, match="the count of images is no whole number of at least 5"):
        check(answer, Policy(smallest_count=5))


# Byte for byte

HEX = "0123456789abcdef" * 4


def note() -> AuditNote:
    return AuditNote(Extension(AuditHead(3, HEX), (HEX, HEX)), AuditHead(1, HEX))


def content(**changes: Any) -> RecordDict:
    return reply_to_content(check(good(**changes)))


def check_content(record: RecordDict) -> None:
    check_record_dict(record, Permitted("A", HASH, SHAPES, set(METRICS)))


def test_the_contents_that_pass() -> None:
    check_content(content())
    check_content(with_note(content(), note()))
    check_content(with_note(content(), AuditNote(Extension(NOTHING, ()), NOTHING)))
    check_content(reply_to_content(Failure("", 1, "A", "disk-full")))
    check_content(site_to_content(SiteInfo("A", HASH, 9)))
    check_content(confirmation_to_content("A", HASH, HEX))


def changed(key: str, record: str = "config") -> Callable[[Any], RecordDict]:
    def change(value: Any) -> RecordDict:
        made = content()
        made[record][key] = value  # type: ignore[index, assignment]
        return made

    return change


def with_array(data: bytes | None = None, **facts: Any) -> RecordDict:
    made = content()
    old = made.array_records["arrays"]["weights"]
    facts = {"dtype": old.dtype, "shape": old.shape, "stype": old.stype, "data": old.data} | facts
    if data is not None:
        facts |= {"data": data, "shape": (len(data),)}
    made.array_records["arrays"]["weights"] = Array(**facts)
    return made


def with_tensors(**tensors: torch.Tensor) -> RecordDict:
    """An update whose packed tensors are others."""
    weights = good().weights
    return with_array(pack({**weights, **{name.replace("__", "."): value for name, value in tensors.items()}}))


def data_of() -> bytes:
    return content().array_records["arrays"]["weights"].data


def turned(data: bytes) -> bytes:
    """The same tensors with the entries of the header in another order."""
    start = 8 + int.from_bytes(data[:8], "little")
    facts = json.loads(data[8:start])
    header = json.dumps(dict(reversed(facts.items())), separators=(",", ":")).encode()
    assert len(facts) > 1
    return data[:8] + header.ljust(start - 8) + data[start:]


def more_records(name: str, record: Any) -> RecordDict:
    made = content()
    made[name] = record
    return made


def with_noted(key: str, value: Any) -> RecordDict:
    made = with_note(content(), note())
    made["audit"][key] = value  # type: ignore[index]
    return made


BYTES: dict[str, Callable[[], RecordDict]] = {
    "nothing": RecordDict,
    "a record more": lambda: more_records("log", ConfigRecord({"text": SECRET})),
    "more arrays": lambda: more_records("pixels", ArrayRecord({"p": Array(PIXELS.numpy())})),
    "a record of another kind": lambda: more_records("metrics", ConfigRecord({"num-examples": 9})),
    "a key more": lambda: changed("path")(f"/data/{SECRET}"),
    "the site": lambda: changed("site")(SECRET),
    "the study": lambda: changed("study")(""),
    "a number as study": lambda: changed("study")(7),
    "a text as round": lambda: changed("round")("1"),
    "a list as round": lambda: changed("round")([1, 2, 3]),
    "a round beyond any": lambda: changed("round")(10**9),
    "a failure's text": lambda: reply_to_content(Failure("", 1, "A", SECRET)),
    "a failure with tensors": lambda: changed("failure")("disk-full"),
    "an update without metrics": lambda: RecordDict({k: v for k, v in content().items() if k != "metrics"}),
    "metrics alone": lambda: RecordDict({k: v for k, v in content().items() if k == "metrics"}),
    "an array more": lambda: changed("extra", "arrays")(Array(PIXELS.numpy())),
    "another array": lambda: changed("weights", "arrays")(Array(PIXELS.numpy())),
    "a tensor more": lambda: with_tensors(extra=PIXELS),
    "a longer tensor": lambda: with_tensors(encoder__bias=PIXELS),
    "another type": lambda: with_tensors(encoder__bias=torch.zeros(3).double()),
    "bytes behind the numbers": lambda: with_array(data_of() + b"DOE"),
    "bytes in the header": lambda: with_array(save(good().weights, {"patient": "DOE"})),
    "an order that says something": lambda: with_array(turned(data_of())),
    "a type that says something": lambda: with_array(dtype=SECRET),
    "a shape that is not so": lambda: with_array(shape=(1957, 3, 11)),
    "a format that says something": lambda: with_array(stype=SECRET),
    "NaN": lambda: with_tensors(encoder__bias=payload(0x2ABCDE)),
    "a metric more": lambda: changed("p00ff", "metrics")(1.0),
    "digits": lambda: changed("loss", "metrics")(0.12345678901),
    "a metric that is not finite": lambda: changed("loss", "metrics")(math.nan),
    "an infinite metric": lambda: changed("loss", "metrics")(math.inf),
    "a whole number as metric": lambda: changed("loss", "metrics")(2**60),
    "a list of metrics": lambda: changed("loss", "metrics")([0.1, 0.2]),
    "a count that is none": lambda: changed("num-examples", "metrics")(0),
    "a note with a text": lambda: more_records("audit", ConfigRecord({"head": SECRET})),
    "a note with a false hash": lambda: with_noted("known-head", SECRET),
    "a note with a hash of nothing": lambda: with_noted("known-head", ""),
    "a note with a false digest": lambda: with_noted("digests", [HEX, SECRET]),
    "a note with very many digests": lambda: with_noted("digests", [HEX] * 100_001),
    "a note with a text for a list": lambda: with_noted("digests", SECRET),
    "a note with a fraction": lambda: with_noted("count", 1957.0311),
    "a confirmation with a text": lambda: confirmation_to_content("A", HASH, SECRET),
}  # fmt: skip


@pytest.mark.parametrize("case", BYTES)
def test_no_other_bytes(case: str) -> None:
    with pytest.raises(WithheldError) as caught:
        check_content(BYTES[case]())
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value)


@given(
    record=names, key=names, value=st.text(max_size=40) | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary()
)
def test_no_arbitrary_key(record: str, key: str, value: Any) -> None:
    made = content()
    if record in made and key in made[record]:  # type: ignore[operator]
        return
    here = made.config_records.setdefault(record, ConfigRecord()) if record not in made else made["config"]
    here[key] = value  # type: ignore[index, assignment]
    with pytest.raises(WithheldError):
        check_content(made)


# A private study

PRIVATE = tiny(
    training={"epochs": None, "steps": 2},
    privacy={"unit": "site", "epsilon": 8, "delta": 1e-3, "sites": 4, "clip": 1.0},
)
LEDGER = Extension(AuditHead(3, HEX), (HEX, HEX))


def private_reply(**changes: Any) -> TrainReply:
    whole = {"study_hash": PRIVATE.training_hash(), "images": 1, "metrics": {}, "ledger": LEDGER}
    return good(**(whole | changes))


def check_private(answer: Any, policy: Policy = LENIENT) -> Any:
    return checked_reply(PRIVATE, answer, SHAPES, policy, "A", 1)


def test_a_private_study_tells_one_image_and_no_metric_whatever_the_policy() -> None:
    for policy in (LENIENT, Policy()):  # smallest_count 5 is for counts, and this is none
        assert check_private(private_reply(), policy).images == 1
        assert check_private(SiteInfo("A", PRIVATE.training_hash(), 1), policy).images == 1


PRIVATE_SMUGGLED: dict[str, tuple[Any, str]] = {
    "a count": (private_reply(images=9), "the count of images is not 1"),
    "a count that is true": (private_reply(images=True), "the count of images is not 1"),
    "a count, to who": (SiteInfo("A", PRIVATE.training_hash(), 5), "the count of images is not 1"),
    "a metric": (private_reply(metrics={"loss": 0.25}), "has metrics, which tell of its patients"),
    "no ledger": (private_reply(ledger=None), "the head of a privacy ledger where there is none to be, or lacks it"),
}


@pytest.mark.parametrize("case", PRIVATE_SMUGGLED)
def test_smuggled_out_of_a_private_study(case: str) -> None:
    answer, message = PRIVATE_SMUGGLED[case]
    with pytest.raises(WithheldError, match=message):
        check_private(answer)


def test_no_ledger_leaves_where_there_is_no_private_study() -> None:
    with pytest.raises(WithheldError, match="the head of a privacy ledger where there is none to be"):
        check(good(ledger=LEDGER))


def private_content(**changes: Any) -> RecordDict:
    return reply_to_content(check_private(private_reply(**changes)))


def check_private_content(record: RecordDict) -> None:
    check_record_dict(record, Permitted("A", PRIVATE.training_hash(), SHAPES, set(METRICS), True))


def with_ledger(**changes: Any) -> RecordDict:
    made = private_content()
    for key, value in changes.items():
        made["ledger"][key] = value  # type: ignore[index]
    return made


def with_told(**reported: Any) -> RecordDict:
    made = private_content()
    for key, value in reported.items():
        made["metrics"][key.replace("_", "-")] = value  # type: ignore[index]
    return made


def test_the_contents_of_a_private_study_that_pass() -> None:
    check_private_content(private_content())
    check_private_content(with_note(private_content(), note()))
    check_private_content(private_content(ledger=Extension(AuditHead(1, HEX), ())))
    check_private_content(reply_to_content(Failure("", 1, "A", "budget-spent")))
    check_private_content(site_to_content(SiteInfo("A", PRIVATE.training_hash(), 1)))
    check_private_content(confirmation_to_content("A", PRIVATE.training_hash(), HEX))


PRIVATE_BYTES: dict[str, Callable[[], RecordDict]] = {
    "an exact count": lambda: with_told(num_examples=9),
    "a metric on the list": lambda: with_told(loss=0.25),
    "the count of images": lambda: site_to_content(SiteInfo("A", PRIVATE.training_hash(), 9)),
    "no ledger": lambda: RecordDict({k: v for k, v in private_content().items() if k != "ledger"}),
    "a key more in the ledger": lambda: with_ledger(patients=36),
    "a false head": lambda: with_ledger(head=SECRET),
    "a false digest": lambda: with_ledger(digests=[SECRET]),
    "a fraction": lambda: with_ledger(count=1957.0311),
    "no rows and a hash": lambda: with_ledger(count=0),
    "a ledger of another kind": lambda: RecordDict({**private_content(), "ledger": MetricRecord({"count": 3})}),
    "a ledger with a failure": lambda: RecordDict(
        {**reply_to_content(Failure("", 1, "A", "disk-full")), "ledger": private_content()["ledger"]}
    ),
    "a ledger with a name": lambda: RecordDict(
        {**site_to_content(SiteInfo("A", PRIVATE.training_hash(), 1)), "ledger": private_content()["ledger"]}
    ),
}


@pytest.mark.parametrize("case", PRIVATE_BYTES)
def test_no_other_bytes_of_a_private_study(case: str) -> None:
    with pytest.raises(WithheldError) as caught:
        check_private_content(PRIVATE_BYTES[case]())
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_ledgers_head_is_no_part_of_another_studys_update() -> None:
    made = content()
    made["ledger"] = private_content()["ledger"]
    with pytest.raises(WithheldError, match="the head of a privacy ledger where there is none to be"):
        check_content(made)


# Every method


SINGLE = sorted(set(METHODS) - {"combine"})
EXTRAS: dict[str, dict[str, Any]] = {"ibot": {"koleo_weight": 0.1, "gram_weight": 1.0, "gram_from": 0.0}}


@pytest.mark.parametrize("name", SINGLE)
def test_every_method_s_metrics_are_in_the_table(name: str) -> None:
    flat = 2 in METHODS[name].dimensions
    fields = method_type(name).Config.model_fields
    extras = {key: value for key, value in EXTRAS.get(name, {}).items() if key in fields}
    swin = {"name": "monai_swin_unetr", "width": 12, "depth": 1, "heads": 1}
    own = {} if "vit" in METHODS[name].encoders else {"encoder": {"name": "resnet10t"}}
    study = tiny(method={"name": name} | extras, **own) if flat else tiny(
        method={"name": name}, encoder=swin, image={"modality": "mri", "size": 32, "depth": 32, "channels": 1}
    )  # fmt: skip
    method = build_method(study.method, study.encoder, study.image, 0)
    method.before_step(0.9)
    draw = torch.Generator().manual_seed(0)
    images = torch.rand((4, 1, *(32,) * study.image.dimensions), generator=draw)
    codes = torch.arange(4)
    batch = Batch(images, codes, codes, codes, images.flip(0), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    _, scalars = method.loss(method.make_views(batch, draw))
    unknown = [key for key in scalars if known_metric(study, key) is None]
    assert unknown == [], "name them in OUTGOING_METRICS of client/outgoing/metrics.py"


# At the site's app


def noted(instruction: TrainInstruction) -> RecordDict:
    """The instruction's content, of a server whose audit log has one row."""
    return instruction_to_content(instruction, note=AuditNote(Extension(AuditHead(1, HEX), ()), NOTHING))


@pytest.fixture
def ask(tmp_path: Path, study: MakeStudy, hospital: Callable[..., Path]) -> Callable[..., RecordDict]:
    """``ask("train", record, smallest_count=5)``: what site A, of ``images`` images, answers."""
    assume_identity(1)
    (tmp_path / "study.yaml").write_text(study().to_yaml())

    def act(kind: str, record: RecordDict, images: int = 9, **policy: Any) -> RecordDict:
        path = tmp_path / "sites" / "A" / "site.yaml"
        path = path if path.exists() else hospital("A", images=images)
        lenient = {"studies": "any", "min_images": 1, "min_patients": 1, "smallest_count": 1}
        raw = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(raw | {"policy": lenient | policy}))
        context = Context(1, 2, {"site-file": str(path)}, RecordDict(), {"study": str(tmp_path / "study.yaml")})
        return client.app.app(Message(record, 2, kind, group_id="1"), context).content

    return act


@pytest.mark.parametrize("kind", ["tensor", "metric", "digits", "NaN"])
def test_a_method_that_smuggles_sends_a_category(
    ask: Callable[..., RecordDict], study: MakeStudy, instruction: Instruct, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, kind: str,
) -> None:  # fmt: skip
    """Code at the site that is not ours to trust: the update it makes is not sent, and the site's log says why."""
    pixels = torch.tensor([3.25, 7.5, 11.125, 13.0625])
    real, shared = client.training.site_training.train_round, MAE.shared_state

    def train_round(*arguments: Any) -> RoundOutcome:
        outcome = real(*arguments)
        reported = {"metric": {"p_3_7_11_13": 1.0}, "digits": {"loss": 0.123456789012}}.get(kind, {})
        return replace(outcome, metrics=outcome.metrics | reported)

    def shared_state(self: MAE) -> dict[str, Tensor]:
        state = shared(self)
        if kind == "tensor":
            return state | {"encoder.pixels": pixels}
        name = "encoder.norm.bias"
        return state | {name: torch.full_like(state[name], math.nan)} if kind == "NaN" else state

    asked = noted(instruction(study()))
    monkeypatch.setattr(client.training.site_training, "train_round", train_round)
    monkeypatch.setattr(MAE, "shared_state", shared_state)
    answer = ask("train", asked)
    if kind == "digits":
        assert content_to_reply(answer).metrics["loss"] == 0.123457  # type: ignore[union-attr]
        return
    assert failure_in(answer) == "internal-error"
    sent = recorddict_to_proto(answer).SerializeToString()
    assert pixels.numpy().tobytes() not in sent and b"p_3_7" not in sent and b"pixels" not in sent
    assert "WithheldError: the reply " in (tmp_path / "sites" / "A" / "state" / "site.log").read_text()


def test_a_small_site_s_count_is_in_no_answer(
    ask: Callable[..., RecordDict], study: MakeStudy, instruction: Instruct
) -> None:
    who = ask("query", question(study().training_hash()), images=4, smallest_count=7)
    assert dict(who["config"])["images"] == 7  # type: ignore[call-overload]
    reply = content_to_reply(ask("train", noted(instruction(study())), smallest_count=7))
    assert isinstance(reply, TrainReply)
    assert reply.images == 7
    assert "loss" in reply.metrics and "steps" not in reply.metrics and "images_seen" not in reply.metrics
    # The update that lies on the disk is told exactly where the policy lets it be.
    reported = content_to_reply(ask("train", noted(instruction(study())), smallest_count=4))
    assert isinstance(reported, TrainReply)
    assert reported.images == 4 and reported.metrics["steps"] == 1


def test_a_site_file_that_was_changed_counts_from_the_next_message(
    ask: Callable[..., RecordDict], study: MakeStudy, instruction: Instruct
) -> None:
    asked = noted(instruction(study()))
    assert failure_in(ask("train", asked)) is None
    assert failure_in(ask("train", asked, studies="approved")) == "study-not-approved"
    assert failure_in(ask("train", asked, min_patients=4)) == "data-not-usable"
    answer = content_to_reply(ask("train", asked, metrics=["loss"]))
    assert isinstance(answer, TrainReply) and list(answer.metrics) == ["loss"]
