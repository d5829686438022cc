"""The server's part in the evaluation at the sites, with scripted sites: who drops out never stops the study."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.federated.figures import FIGURES, site_figures
from evaluation.federated.logistic import SiteShare, probabilities
from evaluation.federated.score_histogram import histogram
from evaluation.protocols.logistic import Standard
from evaluation.statistics.intervals import Scored
from evaluation.statistics.results_schema import RESULTS
from federation.federated_evaluation import EvaluationRequest, Statistics
from federation.records import Failure, SiteInfo
from federation.study import Study, study_from
from foundation.files import read_json
from server.federated_evaluation import RECORD_NAME, collect, evaluate_federated, fault_of
from ssl_methods import build_method

WIDTH = 24
Answer = Mapping[str, Tensor] | str


class Hospitals:
    """Sites that know the mathematics; ``bend(site, asked, honest answer)`` is what they answer."""

    def __init__(
        self, study: Study, bend: Callable[[str, EvaluationRequest, Mapping[str, Tensor]], Answer] | None = None
    ) -> None:
        self.study, self.bend = study, bend or (lambda site, asked, honest: honest)
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        draw = np.random.default_rng(0)
        self.parts = {}
        for number, site in enumerate("ABC"):
            labels = np.arange(40) % 2
            self.parts[site] = draw.normal(size=(40, WIDTH)) + labels[:, None] * (0.2 + 0.1 * number), labels

    def sites(self) -> list[SiteInfo]:
        return [SiteInfo(site, self.study.training_hash(), 40) for site in "CBA"]

    def enquire(
        self, asked: EvaluationRequest, sites: Sequence[str], patience_s: float
    ) -> dict[str, Statistics | Failure]:
        self.asked.append((asked.step, tuple(sites)))
        assert patience_s == 300
        found: dict[str, Statistics | Failure] = {}
        for site in sites:
            answer = self.bend(site, asked, self.honest(site, asked))
            if isinstance(answer, str):
                found[site] = Failure("", 0, site, answer)
            else:
                found[site] = Statistics(asked.study_hash, site, asked.step, asked.encoder, dict(answer))
        return found

    def honest(self, site: str, asked: EvaluationRequest) -> dict[str, Tensor]:
        features, labels = self.parts[site]
        share = SiteShare(features[:24], labels[:24], 2)
        if asked.step == "moments":
            found = share.moments()
            return {"count": vector(found.count), "mean": vector(found.mean), "deviations": vector(found.deviations)}
        weights = asked.tensors["weights"].numpy()
        standard = Standard(asked.tensors["centre"].numpy(), asked.tensors["spread"].numpy())
        if asked.step == "gradient":
            value, gradient = share.value_and_gradient(weights, standard)
            return {"value": vector(value), "gradient": torch.from_numpy(gradient)}
        scores = probabilities(features[24:], weights, standard)
        if asked.step == "histogram":
            counts = histogram(labels[24:], scores, 1)
            return {name: torch.from_numpy(value) for name, value in vars(counts).items()}
        reported = site_figures(Scored(labels[24:], scores, np.arange(16).astype(str), np.full(16, site)))
        table = [[f.value, f.variance, float(f.units)] for f in reported.figures.values()]
        figures = torch.tensor(table, dtype=torch.float64)
        return {"patients": vector(reported.patients), "fewest": vector(reported.fewest), "figures": figures}


def vector(value: Any) -> Tensor:
    return torch.from_numpy(np.atleast_1d(np.asarray(value, dtype=np.float64)))


@pytest.fixture
def study(raw_study: dict[str, Any]) -> Study:
    section = {"classes": ["0", "1"], "histogram": True}
    return study_from(raw_study | {"federated_evaluation": section}, "test")


@pytest.fixture
def weights(study: Study) -> dict[str, Tensor]:
    return build_method(study.method, study.encoder, study.image, study.seed).shared_state()


class Evaluated:
    """What one evaluation left in a run folder."""

    def __init__(self, folder: Path, study: Study, weights: dict[str, Tensor], sites: Hospitals) -> None:
        place = folder / "arms" / "federated" / "fold-0" / "seed-0"
        place.mkdir(parents=True, exist_ok=True)
        evaluate_federated(study, place, sites, {"federated": weights})
        self.record = read_json(place / RECORD_NAME)
        self.arm = self.record["arms"]["federated"]

    def value(self, site: str, statistic: str = "estimate") -> float:
        asked = ("AUROC", site, statistic)
        (row,) = (row for row in self.arm["rows"] if (row["metric"], row["site"], row["statistic"]) == asked)
        return float(row["value"])


def test_all_take_part(tmp_path: Path, study: Study, weights: dict[str, Tensor]) -> None:
    sites = Hospitals(study)
    done = Evaluated(tmp_path, study, weights, sites)
    assert (done.arm["sites"], done.arm["left_out"], done.arm["not_evaluated"]) == (["A", "B", "C"], {}, "")
    steps = [step for step, _ in sites.asked]
    assert steps == ["moments", *["gradient"] * done.arm["gradients"], "figures", "histogram"]
    values = [done.value(site) for site in "ABC"]
    assert done.value("all", "site mean") == pytest.approx(sum(values) / 3)
    table = RESULTS.read(collect(tmp_path) or Path())
    assert tuple(table) == RESULTS.columns
    assert set(table["role"]) == {"federated"}
    assert len(table) == len(done.arm["rows"]) == len(FIGURES) * 4 + 2


def test_the_same_weights_are_not_evaluated_again(tmp_path: Path, study: Study, weights: dict[str, Tensor]) -> None:
    first = Evaluated(tmp_path, study, weights, Hospitals(study))
    again = Hospitals(study)
    assert Evaluated(tmp_path, study, weights, again).record == first.record
    assert again.asked == []
    other = {name: value * 2 for name, value in weights.items()}
    Evaluated(tmp_path, study, other, again)
    assert again.asked != []


def test_a_site_that_drops_out_is_left_out_from_the_beginning(
    tmp_path: Path, study: Study, weights: dict[str, Tensor]
) -> None:
    """Its sums are in no figure: the same as if it had never taken part."""
    count = {"B": 0}

    def bend(site: str, asked: EvaluationRequest, honest: Mapping[str, Tensor]) -> Answer:
        if asked.step == "gradient" and site in count:
            count[site] += 1
            if count[site] == 3:
                return "no answer before the deadline"
        return honest

    done = Evaluated(tmp_path / "dropped", study, weights, Hospitals(study, bend))
    never = Hospitals(study, lambda site, asked, honest: "labels-not-permitted" if site == "B" else honest)
    expected = Evaluated(tmp_path / "never", study, weights, never)
    assert done.arm["left_out"] == {"B": "no answer before the deadline"}
    assert done.arm["rows"] == expected.arm["rows"]
    assert done.arm["gradients"] == expected.arm["gradients"] + 3


@pytest.mark.parametrize(("reason", "evaluated"), [("labels-not-permitted", True), ("out-of-memory", False)])
def test_quorum_is_of_the_sites_that_could(
    tmp_path: Path, study: Study, weights: dict[str, Tensor], reason: str, evaluated: bool
) -> None:
    """Two of three sites: if their policy says no, the third is all there are; if they failed, half is not there."""
    sites = Hospitals(study, lambda site, asked, honest: honest if site == "A" else reason)
    done = Evaluated(tmp_path, study, weights, sites)
    assert bool(done.arm["rows"]) is evaluated
    assert done.arm["left_out"] == {"B": reason, "C": reason}
    if not evaluated:
        assert done.arm["not_evaluated"] == (
            "1 of 2 sites take part in the federated evaluation (B: out-of-memory; C: out-of-memory); mend those "
            "sites, or leave federated_evaluation out"
        )


def test_nobody_permits_it(tmp_path: Path, study: Study, weights: dict[str, Tensor]) -> None:
    done = Evaluated(tmp_path, study, weights, Hospitals(study, lambda *_: "labels-not-permitted"))
    assert done.arm["rows"] == []
    assert done.arm["not_evaluated"].startswith("0 of 1 sites take part")


def test_figures_withheld_by_one_site(tmp_path: Path, study: Study, weights: dict[str, Tensor]) -> None:
    """It has too few test patients: its labels are in the probe, and it has no figure."""
    sites = Hospitals(
        study, lambda site, asked, honest: "labels-too-few" if (site, asked.step) == ("C", "figures") else honest
    )
    done = Evaluated(tmp_path, study, weights, sites)
    assert done.arm["sites"] == ["A", "B", "C"]
    assert done.arm["left_out"] == {"C": "figures: labels-too-few"}
    assert {row["site"] for row in done.arm["rows"]} == {"A", "B", "all"}
    pooled = next(row for row in done.arm["rows"] if row["statistic"] == "from histograms")
    assert pooled["note"].startswith("from histograms of 3 sites")
    assert pooled["n"] == 32


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"mean": torch.zeros(3).double()}, "answer of another form"),
        ({"more": torch.zeros(1)}, "answer of another form"),
        ({"count": torch.zeros(1)}, "answer of another form"),
        ({"mean": torch.full((WIDTH,), float("nan")).double()}, "answer with values that are not finite"),
        ({"count": torch.full((1,), -2.0).double()}, "answer with a negative count"),
    ],
)
def test_an_answer_that_cannot_be_used(
    tmp_path: Path, study: Study, weights: dict[str, Tensor], change: dict[str, Tensor], fault: str
) -> None:
    def bend(site: str, asked: EvaluationRequest, honest: Mapping[str, Tensor]) -> Answer:
        return {**honest, **change} if (site, asked.step) == ("B", "moments") else honest

    done = Evaluated(tmp_path, study, weights, Hospitals(study, bend))
    assert done.arm["left_out"] == {"B": fault}
    assert done.arm["sites"] == ["A", "C"]


def test_too_few_steps_are_written_down(tmp_path: Path, study: Study, weights: dict[str, Tensor]) -> None:
    config = study.federated_evaluation
    assert config is not None
    short = study.model_copy(update={"federated_evaluation": config.model_copy(update={"steps": 5})})
    done = Evaluated(tmp_path, short, weights, Hospitals(short))
    assert done.arm["gradients"] == 3
    assert done.arm["not_evaluated"].startswith("the probe has not converged after 3 gradients of each site; raise")


def test_a_study_without_it_asks_nobody(tmp_path: Path, raw_study: dict[str, Any], weights: dict[str, Tensor]) -> None:
    plain = study_from(raw_study, "test")
    sites = Hospitals(plain)
    evaluate_federated(plain, tmp_path, sites, {"federated": weights})
    assert sites.asked == []
    assert list(tmp_path.iterdir()) == []
    assert fault_of({}, {}) == ""
