"""Partners of images: who may be whose, how far apart, and what is said of a manifest that cannot tell."""

import datetime
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError
from imaging.config import Relation
from imaging.listing.partners import Partners

from ...tiers import examples

Row = dict[str, Any]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
FIRST_DAY = datetime.date(2024, 1, 1)


def row(patient: int, study: int | None, series: int | None, position: float | None, day: int | None) -> Row:
    """One image; names of studies and series say their patient, as their numbers are used again."""
    return {
        "patient": f"p{patient}",
        "study": None if study is None else f"t{study}",
        "series": None if series is None else f"s{series}",
        "position": position,
        "day": day,
        "date": None if day is None else (FIRST_DAY + datetime.timedelta(days=day)).isoformat(),
    }


few = st.integers(0, 2)
rows = st.builds(
    row,
    few,
    st.none() | few,
    st.none() | few,
    st.none() | st.sampled_from([-2.5, 0.0, 1.0, 4.0]),
    st.none() | st.sampled_from([0, 3, 400]),
)
tables = st.lists(rows, min_size=1, max_size=14)


def frame(given: list[Row]) -> pd.DataFrame:
    table = pd.DataFrame(given).drop(columns="day")
    table["image"] = [f"{number}.png" for number in range(len(table))]
    text = ["patient", "study", "series", "date"]
    return table.astype(dict.fromkeys(text, "string") | {"position": "Float64"})


def allowed(given: list[Row], relation: Relation, own: int) -> set[int]:
    """Slow reference: who may be the partner of image ``own``; itself where there is nobody."""
    me = given[own]
    others = [number for number in range(len(given)) if number != own and given[number]["patient"] == me["patient"]]

    def same(column: str) -> list[int]:
        return [number for number in others if me[column] is not None and given[number][column] == me[column]]

    def known(numbers: list[int], column: str) -> list[int]:
        return [n for n in numbers if me[column] is not None and given[n][column] is not None]

    if relation == "patient":
        found = others
    elif relation in ("study", "series"):
        found = same(relation)
    elif relation == "dated":
        found = [n for n in known(others, "day") if given[n]["day"] != me["day"]]
    elif relation == "placed":
        found = [n for n in known(same("series"), "position") if given[n]["position"] != me["position"]]
    else:  # neighbour: nobody else of the series lies between
        placed = known(same("series"), "position")
        line = sorted([*placed, own], key=lambda n: (given[n]["position"], n)) if placed else [own]
        place = line.index(own)
        found = [line[n] for n in (place - 1, place + 1) if 0 <= n < len(line)] if placed else []
    return set(found) or {own}


def gap(given: list[Row], relation: Relation, own: int, other: int) -> float:
    column = "day" if relation == "dated" else "position"
    start, end = given[own][column], given[other][column]
    if relation in ("patient", "study") or start is None or end is None:
        return 0.0
    return float(end - start)


@pytest.mark.parametrize("relation", RELATIONS)
@examples(40)  # of each relation
@given(given=tables, seed=st.integers(0, 999))
def test_partners_and_gaps_are_those_of_a_slow_reference(relation: Relation, given: list[Row], seed: int) -> None:
    partners = Partners(frame(given), relation)
    chosen = torch.arange(len(given)).repeat(4)
    drawn, gaps = partners.draw(chosen, torch.Generator().manual_seed(seed))
    assert gaps.dtype == torch.float32
    for own, other, distance in zip(chosen.tolist(), drawn.tolist(), gaps.tolist(), strict=True):
        assert other in allowed(given, relation, own)
        assert distance == gap(given, relation, own, other)
    alone = [allowed(given, relation, own) == {own} for own in range(len(given))]
    assert partners.share() == pytest.approx(1 - sum(alone) / len(alone))
    again, _ = partners.draw(chosen, torch.Generator().manual_seed(seed))
    assert torch.equal(again, drawn)


SERIES = [row(0, 0, 0, float(slice_), 10 * (slice_ // 2)) for slice_ in (3, 0, 4, 1, 2)]


@pytest.mark.parametrize("relation", RELATIONS)
def test_everybody_who_may_be_drawn_is_drawn_equally_often(relation: Relation) -> None:
    partners = Partners(frame(SERIES), relation)
    for own in range(5):
        drawn, _ = partners.draw(torch.full((2000,), own), torch.Generator().manual_seed(own))
        counts = torch.bincount(drawn, minlength=5) / 2000
        candidates = allowed(SERIES, relation, own)
        for other in range(5):
            assert counts[other] == pytest.approx(1 / len(candidates) if other in candidates else 0, abs=0.05)


def test_the_ends_of_a_series_have_one_neighbour() -> None:
    partners = Partners(frame(SERIES), "neighbour")
    drawn, gaps = partners.draw(torch.tensor([1, 2]).repeat(20), torch.Generator().manual_seed(0))
    assert drawn.tolist() == [3, 0] * 20  # positions 0 and 4: their neighbours lie at 1 and 3
    assert gaps.tolist() == [1.0, -1.0] * 20


def test_slices_stand_for_positions_that_are_not_given() -> None:
    table = frame(SERIES)
    as_slices = table.rename(columns={"position": "slice"}).astype({"slice": "Int64"})
    drawn = [
        Partners(each, "placed").draw(torch.arange(5), torch.Generator().manual_seed(3)) for each in (table, as_slices)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_a_row_without_a_place_is_its_own_partner() -> None:
    given = [row(0, 0, 0, None, None), row(0, 0, 0, 1.0, 5), row(0, 0, 0, 2.0, 9)]
    for relation in ("neighbour", "placed", "dated"):
        drawn, gaps = Partners(frame(given), relation).draw(torch.zeros(8, dtype=torch.long), torch.Generator())
        assert drawn.tolist() == [0] * 8 and gaps.tolist() == [0.0] * 8


def test_another_image_of_the_same_day_or_place_is_no_partner_in_time_or_space() -> None:
    given = [row(0, 0, 0, 7.0, 5), row(0, 0, 0, 7.0, 5)]
    for relation in ("placed", "dated"):
        assert Partners(frame(given), relation).share() == 0.0
    assert Partners(frame(given), "patient").share() == 1.0


@pytest.mark.parametrize(
    ("relation", "column"),
    [
        ("study", "study"),
        ("series", "series"),
        ("neighbour", "series"),
        ("neighbour", "position"),
        ("placed", "position"),
        ("dated", "date"),
    ],
)
def test_a_missing_column_is_named_in_one_line(relation: Relation, column: str) -> None:
    with pytest.raises(DataError) as caught:
        Partners(frame(SERIES).drop(columns=column), relation)
    assert str(caught.value) == (
        f"partners by {relation} need the column {column!r} in the site's manifest; add it, or choose partners by "
        "patient, or none"
    )


def test_a_mutant_that_forgets_the_sign_of_a_gap_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Partners.draw

    def unsigned(self: Partners, chosen: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn, gaps = right(self, chosen, generator)
        return drawn, gaps.abs()

    monkeypatch.setattr(Partners, "draw", unsigned)
    with pytest.raises(AssertionError):
        test_the_ends_of_a_series_have_one_neighbour()
