"""kNN and the logistic probe on 100,000 x 384 features, against the libraries' brute force.

    python -m benchmarks.probes [--rows 100000] [--queries 2000] [--classes 2 4] [--repetitions 3]

Features have correlated columns and a spectrum that falls, as an encoder's; classes overlap. kNN: 20 neighbours of each
query among all rows. Ours starts from float64 features and ends in the votes, so that it also normalises; the libraries
are given float32 rows of length 1, and are asked for the neighbours alone. faiss is compared where it is installed.

Probe: 45 strengths from 1e-6 to 1e5 and, at each, probabilities of the validation images (a tenth as many). Ours
also standardises and decomposes the features, and stops at a gradient of 1e-6. scikit-learn's goes from each strength
to the next with the last one's weights, and stops at its default of 1e-4. Its Newton solver is compared for two classes
only: for more it takes several times as long.

All in one process, in turns, CPU seconds of one thread.
"""

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.measure import interleaved, judged, median_ratio, table, write_result
from evaluation.protocols.knn import NEIGHBOURS, knn_scores, nearest, unit_rows
from evaluation.protocols.logistic import STRENGTHS, Standard, log_loss, path
from evaluation.statistics.intervals import FloatArray, IntArray
from foundation.messages import logger
from foundation.randomness import numpy_generator

WIDTH = 384
TARGET = 2.0
OURS = "ours"
Work = Mapping[str, Callable[[], Any]]


def features(rows: int) -> FloatArray:
    """``[rows, 384]`` of correlated columns."""
    draw = numpy_generator(0, "benchmark", "features")
    spectrum = np.exp(-np.arange(WIDTH) / 60)[:, None]
    mixed = draw.standard_normal((rows, WIDTH)) @ (draw.standard_normal((WIDTH, WIDTH)) * spectrum)
    return np.asarray(mixed + 0.3 * draw.standard_normal((rows, WIDTH)) + 1.0)


def classes_of(rows: FloatArray, classes: int) -> IntArray:
    """``[rows]`` drawn from a softmax that is linear in the features."""
    draw = numpy_generator(0, "benchmark", "classes", classes)
    logits = Standard.of(rows)(rows) @ (draw.standard_normal((WIDTH, classes)) / np.sqrt(WIDTH))
    return np.asarray((logits + draw.gumbel(size=logits.shape)).argmax(1), dtype=np.int64)


def neighbour_searches(query: FloatArray, bank: FloatArray, labels: IntArray) -> Work:
    """Ways to find the neighbours; all but ours return their places ``[Q, 20]``."""
    from scipy.spatial.distance import cdist
    from sklearn.neighbors import NearestNeighbors

    asked, known = (unit_rows(rows).astype(np.float32) for rows in (query, bank))
    blocks = [asked[start : start + 256] for start in range(0, len(asked), 256)]
    columns = torch.from_numpy(known).T

    def by_torch() -> NDArray[Any]:
        return np.concatenate([(torch.from_numpy(block) @ columns).topk(NEIGHBOURS)[1].numpy() for block in blocks])

    def by_scipy() -> NDArray[Any]:
        far = (cdist(block, known, "cosine") for block in blocks)
        return np.concatenate([np.argpartition(each, NEIGHBOURS, axis=1)[:, :NEIGHBOURS] for each in far])

    def by_scikit_learn(metric: str) -> Callable[[], NDArray[Any]]:
        search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute", metric=metric).fit(known)
        return lambda: np.asarray(search.kneighbors(asked, return_distance=False))

    searches: dict[str, Callable[[], Any]] = {
        OURS: lambda: knn_scores(query, bank, labels, 4),
        "torch, product and topk": by_torch,
        "scikit-learn, brute, cosine": by_scikit_learn("cosine"),
        "scikit-learn, brute, Euclidean": by_scikit_learn("euclidean"),
        "SciPy, cdist and argpartition": by_scipy,
    }
    if find_spec("faiss"):
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(WIDTH)
        index.add(known)
        searches["faiss, IndexFlatIP"] = lambda: index.search(asked, NEIGHBOURS)[1]
    return searches


def probes(
    train: tuple[FloatArray, IntArray], validation: tuple[FloatArray, IntArray], classes: int
) -> Mapping[str, Callable[[], float]]:
    """Ways to fit all strengths; each returns its least log loss on validation images."""
    from sklearn.linear_model import LogisticRegression

    standard = Standard.of(train[0])
    shown, known = standard(train[0]), standard(validation[0])

    def ours() -> float:
        standard = Standard.of(train[0])
        fits = path(standard(train[0]), train[1], classes, STRENGTHS)
        chosen = standard(validation[0])
        return min(log_loss(validation[1], fit.probabilities(chosen)) for fit in fits)

    def scikit_learn(solver: str) -> float:
        model, losses = LogisticRegression(solver=solver, warm_start=True, max_iter=1000), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that ends at the most iterations is theirs
            for strength in STRENGTHS:
                model.set_params(C=strength).fit(shown, train[1])
                losses.append(log_loss(validation[1], model.predict_proba(known)))
        return min(losses)

    solvers = ["lbfgs", *(["newton-cholesky"] if classes == 2 else [])]
    return {OURS: ours} | {f"scikit-learn, {solver}": lambda solver=solver: scikit_learn(solver) for solver in solvers}


def check_neighbours(query: FloatArray, bank: FloatArray, searches: Work) -> None:
    """Every library finds our neighbours, but for a few that float32 cannot tell apart."""
    own, _ = nearest(query, bank, NEIGHBOURS)
    for name, search in searches.items():
        if name != OURS:
            found = search()
            same = np.mean([len(set(a) & set(b)) for a, b in zip(own.tolist(), found.tolist(), strict=True)])
            if same < 0.999 * NEIGHBOURS:
                raise SystemExit(f"{name} finds other neighbours: only {same:.2f} of {NEIGHBOURS} are ours")


def compared(
    alternatives: Work, repetitions: int, more: Mapping[str, str] | None = None
) -> tuple[list[list[str]], float]:
    """Rows of the table, and how many times as long as the fastest library's ours takes."""
    seconds = interleaved(alternatives, repetitions, time.process_time)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    fastest = min((name for name in medians if name != OURS), key=lambda name: medians[name])
    for name, taken in medians.items():
        logger.info(f"{name}: {taken:.1f} s")
    rows = [
        [
            name,
            f"{medians[name]:.2f}",
            f"{median_ratio(seconds[OURS], seconds[name]):.2f}",
            *([more[name]] if more else []),
        ]
        for name in medians
    ]
    return rows, median_ratio(seconds[OURS], seconds[fastest])


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        print(measured(arguments.rows, arguments.queries, arguments.classes, arguments.repetitions))


def measured(rows: int, queries: int, classes: list[int], repetitions: int) -> str:
    """Both comparisons, judged and written."""
    whole = features(rows + max(queries, rows // 10))
    bank, query, validation = whole[:rows], whole[rows : rows + queries], slice(rows, rows + rows // 10)
    searches = neighbour_searches(query, bank, classes_of(whole, 4)[:rows])
    check_neighbours(query, bank, searches)
    found, ratio = compared(searches, repetitions)
    lines = [f"{rows:,} x {WIDTH} features; medians of {repetitions} repetitions in turns.", ""]
    lines += [f"kNN, {queries:,} queries:", "", *table(["", "CPU s", "ours takes so many times as long"], found), ""]
    judgements = [judged("kNN, ours / fastest library's", ratio, TARGET)]
    for count in classes:
        labels = classes_of(whole, count)
        fits = probes((bank, labels[:rows]), (whole[validation], labels[validation]), count)
        losses: dict[str, str] = {}

        def kept(name: str, fit: Callable[[], float], losses: dict[str, str] = losses) -> None:
            losses[name] = f"{fit():.5f}"

        work = {name: lambda name=name, fit=fit: kept(name, fit) for name, fit in fits.items()}
        found, ratio = compared(work, repetitions, losses)
        header = ["", "CPU s", "ours takes so many times as long", "least log loss on validation"]
        lines += [f"Probe, {count} classes, {len(STRENGTHS)} strengths:", "", *table(header, found), ""]
        judgements.append(judged(f"probe of {count} classes, ours / fastest library's", ratio, TARGET))
    return write_result("probes", "kNN and logistic probe against brute force", __doc__, [*lines, *judgements])


if __name__ == "__main__":
    main()
