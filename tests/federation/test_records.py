"""Each way in which a reply can be wrong, alone, and what is said of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from federation.records import CATEGORIES, TrainReply, check_reply, weights_digest
from foundation.errors import RunError

EXPECTED = {
    "encoder.w": torch.zeros(2, 3),
    "encoder.count": torch.tensor(4),
    "encoder.half": torch.zeros(2, dtype=torch.bfloat16),
}
GOOD = TrainReply("study", 3, "A", 12, {name: value + 1 for name, value in EXPECTED.items()}, {"loss": 0.5})


def test_a_good_reply_passes() -> None:
    check_reply(GOOD, EXPECTED, "study", 3)


def _weights(**changes: Any) -> TrainReply:
    named = {name.replace("_", "."): value for name, value in changes.items()}
    return replace(GOOD, weights={n: v for n, v in (GOOD.weights | named).items() if v is not None})


NAN = torch.tensor([[0, 0, 0], [0, float("nan"), 0]])
INF = torch.tensor([[0, 0, 0], [0, 0, -float("inf")]])

WRONG = {
    "another study": (replace(GOOD, study_hash="x"), "answers another study"),
    "another round": (replace(GOOD, round=2), "answers round 2 instead of 3"),
    "no images": (replace(GOOD, images=0), "claims 0 images; a site trains on at least 1"),
    "negative images": (replace(GOOD, images=-5), "claims -5 images; a site trains on at least 1"),
    "missing": (_weights(encoder_w=None), "lacks tensor 'encoder.w'; the study shares exactly 3 tensors"),
    "extra": (
        _weights(decoder_w=torch.ones(1)),
        "has the extra tensor 'decoder.w'; the study shares exactly 3 tensors",
    ),
    "shape": (
        _weights(encoder_w=torch.ones(3, 2)),
        "tensor 'encoder.w' is [3, 2] torch.float32 instead of [2, 3] torch.float32",
    ),
    "as many values in another shape": (
        _weights(encoder_w=torch.ones(6)),
        "tensor 'encoder.w' is [6] torch.float32 instead of [2, 3] torch.float32",
    ),
    "dtype": (
        _weights(encoder_w=torch.ones(2, 3, dtype=torch.float64)),
        "tensor 'encoder.w' is [2, 3] torch.float64 instead of [2, 3] torch.float32",
    ),
    "a counter as a float": (
        _weights(encoder_count=torch.tensor(4.0)),
        "tensor 'encoder.count' is [] torch.float32 instead of [] torch.int64",
    ),
    "NaN": (_weights(encoder_w=NAN), "tensor 'encoder.w' has values that are not finite"),
    "infinity": (_weights(encoder_w=INF), "tensor 'encoder.w' has values that are not finite"),
    "NaN in bfloat16": (
        _weights(encoder_half=torch.tensor([0, float("nan")], dtype=torch.bfloat16)),
        "tensor 'encoder.half' has values that are not finite",
    ),
}
NAMES = ["Loss", "loss/A", "", "müller", "a" * 41, "loss\n", "9loss", "round", "site", "event", "update_norm"]


@pytest.mark.parametrize("case", WRONG)
def test_one_wrong_thing_is_named(case: str) -> None:
    reply, said = WRONG[case]
    with pytest.raises(RunError) as caught:
        check_reply(reply, EXPECTED, "study", 3)
    assert str(caught.value) == said


@pytest.mark.parametrize("name", NAMES)
def test_metric_names_carry_no_text_and_no_column_of_the_journal(name: str) -> None:
    """The name is not repeated: it could hold what must not be seen."""
    with pytest.raises(RunError) as caught:
        check_reply(replace(GOOD, metrics={"loss": 1.0, name: 1.0}), EXPECTED, "study", 3)
    assert str(caught.value) == f"has a metric with a name that is not allowed ({len(name)} characters)"


def test_the_longest_metric_name() -> None:
    check_reply(replace(GOOD, metrics={"a" * 40: 1.0, "top_5": 2.0}), EXPECTED, "study", 3)


def test_categories_are_words_without_room_for_a_text() -> None:
    assert "loss-not-finite" in CATEGORIES
    assert all(name.replace("-", "").isalpha() and name.islower() for name in CATEGORIES)


def test_the_digest_of_weights_sees_every_bit() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "e": torch.empty(0)}
    same = {"n": torch.tensor(3), "e": torch.empty(0), "a": torch.tensor([0.0, 1.0, 2.0])[1:]}
    assert weights_digest(weights) == weights_digest(same)
    others = [
        weights | {"a": torch.tensor([1.0, 2.0000002])},
        weights | {"a": torch.tensor([[1.0, 2.0]])},
        weights | {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        weights | {"a": torch.tensor([2.0, 1.0])},
        weights | {"b": torch.tensor([1.0])},
        {"b": weights["a"], "n": weights["n"], "e": weights["e"]},
    ]
    assert len({weights_digest(w) for w in [weights, *others]}) == 1 + len(others)
