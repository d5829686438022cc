"""Nearest neighbours are those of a sort in float64, whatever float32 rounds; their votes and means are right."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsRegressor

from evaluation.protocols import knn
from evaluation.protocols.knn import knn_findings, knn_scores, knn_values, nearest, unit_rows
from foundation.randomness import numpy_generator


def sorted_out(query: np.ndarray, bank: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """All cosines by products that do not depend on a row's place, then a stable sort."""
    cosine = np.einsum("qd,nd->qn", unit_rows(query), unit_rows(bank))
    places = np.argsort(-cosine, axis=1, kind="stable")[:, :neighbours]
    return places, np.take_along_axis(cosine, places, axis=1)


def test_votes_against_the_oracle(shared: Path) -> None:
    oracle = np.load(shared / "oracles" / "oracle.npz")
    query, bank, labels, expected, scores = (
        oracle[f"knn_k20_t0.07/{name}"] for name in ("query", "bank", "labels", "expected", "scores")
    )
    # Of 200 images 20 are asked; the added ones, at a right angle to everything, are none of them.
    far = np.zeros((200 - len(bank), bank.shape[1]))
    known, of = np.concatenate([bank.astype(np.float64), far]), np.append(labels, np.full(len(far), 4))
    found = knn_scores(query.astype(np.float64), known, of, 5)
    np.testing.assert_allclose(found[:, :4], scores / scores.sum(1, keepdims=True), rtol=1e-4)
    assert not found[:, 4].any()
    found = found[:, :4]
    np.testing.assert_array_equal(np.argsort(-found, axis=1), expected)


def test_votes_by_hand() -> None:
    bank = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    known = np.concatenate([bank, np.full((17, 2), -1.0)])  # 2 of 20 are asked
    found = knn_scores(np.array([[5.0, 0.0]]), known, np.array([0, 1, 1] + [0] * 17), 2)
    vote = np.exp(np.array([1.0, np.sqrt(0.5)]) / 0.07)
    np.testing.assert_allclose(found, [vote / vote.sum()])
    assert knn_scores(np.array([[5.0, 0.0]]), bank, np.array([0, 1, 1]), 2).tolist() == [[1.0, 0.0]]


@given(
    seed=st.integers(0, 10_000), queries=st.integers(1, 9), bank=st.integers(1, 300), width=st.integers(1, 6),
    copies=st.integers(1, 4), share=st.floats(0.0, 1.0), spread=st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
)  # fmt: skip
def test_nearest_is_the_sort_in_float64(
    seed: int, queries: int, bank: int, width: int, copies: int, share: float, spread: float
) -> None:
    """Also with many copies of a row, and with features so alike that float32 cannot order them."""
    draw = numpy_generator(seed, "nearest")
    known = np.repeat(1.0 + spread * draw.standard_normal((bank, width)), copies, axis=0)[
        draw.permutation(bank * copies)
    ]
    asked = 1.0 + spread * draw.standard_normal((queries, width))
    neighbours = max(1, round(share * min(len(known), 40)))
    places, cosines = nearest(asked, known, neighbours)
    _, values = sorted_out(asked, known, neighbours)
    np.testing.assert_allclose(cosines, values, rtol=0, atol=1e-15)
    apart = np.take_along_axis(np.einsum("qd,nd->qn", unit_rows(asked), unit_rows(known)), places, axis=1)
    np.testing.assert_allclose(apart, values, rtol=0, atol=1e-15)
    assert all(len(set(row)) == neighbours for row in places.tolist())


def test_of_equally_near_images_the_earlier_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By both ways: few candidates, and so many that they are sorted out of the whole bank."""
    draw = numpy_generator(3, "copies")
    known = draw.standard_normal((50, 7))[draw.integers(0, 50, 2000)]
    asked = draw.standard_normal((300, 7))
    expected, _ = sorted_out(asked, known, 60)
    for crowd in (knn.CROWD, 0):
        monkeypatch.setattr(knn, "CROWD", crowd)
        np.testing.assert_array_equal(nearest(asked, known, 60)[0], expected)
    same = np.tile(known[:1], (2000, 1))  # a dead encoder
    np.testing.assert_array_equal(nearest(asked[:2], same, 5)[0], [[0, 1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(nearest(asked[:2], 0 * same, 5), np.stack([[[0, 1, 2, 3, 4]] * 2, np.zeros((2, 5))]))


def test_a_large_bank_is_grouped_and_still_exact() -> None:
    draw = numpy_generator(5, "bank")
    known, asked = draw.standard_normal((9000, 16)), draw.standard_normal((150, 16))
    places, _ = nearest(asked, known, 3)
    np.testing.assert_array_equal(places, sorted_out(asked, known, 3)[0])


def test_findings_are_shares_of_the_vote() -> None:
    draw = numpy_generator(1, "findings")
    known, asked = draw.standard_normal((90, 5)), draw.standard_normal((11, 5))
    labels = draw.integers(0, 2, (90, 3))
    scores = knn_findings(asked, known, labels)
    for k in range(3):
        np.testing.assert_allclose(scores[:, k], knn_scores(asked, known, labels[:, k], 2)[:, 1], atol=1e-14)


def test_values_against_scikit_learn() -> None:
    """A tenth of 90 images are 9 neighbours."""
    draw = numpy_generator(1, "values")
    known, asked, values = draw.standard_normal((90, 5)), draw.standard_normal((11, 5)), draw.normal(40, 9, 90)
    model = KNeighborsRegressor(9, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07))
    np.testing.assert_allclose(knn_values(asked, known, values), model.fit(known, values).predict(asked), rtol=1e-9)
