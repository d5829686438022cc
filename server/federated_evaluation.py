"""After the last round: a probe of the sites' labels, which stay there, and its figures at each site.

Asked again after a crash, sites answer the same, so that nothing is kept before the end but the answers' sum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluation.federated.figures import FIGURES, PROTOCOL, SiteEstimate, SiteFigures, rows
from evaluation.federated.logistic import Moments, minimise, outputs_of, standard_of, summed
from evaluation.federated.score_histogram import Histogram, pooled_area
from evaluation.protocols.logistic import Standard
from evaluation.statistics.intervals import FloatArray
from evaluation.statistics.results_schema import RESULTS, Role, Row
from federation.algorithms.algorithm import Weights
from federation.federated_evaluation import EvaluationRequest, Statistics, Step, answer_like
from federation.federated_evaluation_config import FederatedEvaluationConfig
from federation.records import ENCODER, Failure, SiteInfo, all_finite, same_form, weights_digest
from federation.study import Study
from foundation.errors import FedpretextError, QuorumError, RunError
from foundation.files import read_json, write_json
from foundation.messages import logger
from ssl_methods import build_method
from ssl_methods.encoders.outputs import feature_dim

RECORD_NAME, TABLE_NAME = "federated-evaluation.json", "federated.csv"
_STANDING_ASIDE = ("labels-not-permitted", "labels-too-few")


class Enquirer(Protocol):
    """The way to the sites' labelled images."""

    def sites(self) -> list[SiteInfo]:
        """All sites of the study, once enough of them are there."""
        ...

    def enquire(
        self, asked: EvaluationRequest, sites: Sequence[str], patience_s: float
    ) -> Mapping[str, Statistics | Failure]:
        """Ask these sites; the answer of each."""
        ...


class _LeftOutError(FedpretextError):
    """A site has dropped out of the sum; the probe begins anew without it."""


@dataclass
class _Probe:
    """One encoder's probe: who takes part, who does not and why, and how often was asked."""

    study: Study
    config: FederatedEvaluationConfig
    channel: Enquirer
    encoder: str
    width: int
    taking_part: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    def fit(self, encoder: Mapping[str, Tensor]) -> tuple[FloatArray, Standard]:
        """Weights ``[D + 1, O]`` at the minimum over all sites that take part to the end; QuorumError with too few."""
        named = sorted(self.taking_part)
        reported = self._ask("moments", dict(encoder))
        while True:
            self._check_quorum(len(named))
            shared = standard_of({site: _moments(reported[site]) for site in self.taking_part})
            shape = (self.width + 1, outputs_of(len(self.config.classes)))
            most = max(1, self.config.steps - 2)  # the last two questions are for the figures
            try:
                return minimise(partial(self._gradient, shared), shape, self.config.strength, most), shared
            except _LeftOutError as dropped:
                logger.warning(f"federated evaluation: restarted without site {dropped}")

    def _gradient(self, shared: Standard, weights: FloatArray) -> tuple[float, FloatArray]:
        before = len(self.taking_part)
        reported = self._ask("gradient", _probe(weights, shared))
        self.asked += 1
        if len(self.taking_part) < before:
            raise _LeftOutError(", ".join(sorted(self.left_out)))
        return summed({site: (float(t["value"]), t["gradient"].numpy()) for site, t in reported.items()})

    def figures(self, weights: FloatArray, shared: Standard) -> list[dict[str, Any]]:
        """Rows of the results table."""
        own = self._ask("figures", _probe(weights, shared), stay=True)
        sites = {site: _figures(tensors) for site, tensors in own.items()}
        pooled, histograms = None, list[str]()
        if self.config.histogram:
            reported = self._ask("histogram", _probe(weights, shared), stay=True)
            histograms = sorted(reported)
            pooled = (
                pooled_area({site: _histogram(tensors) for site, tensors in reported.items()}) if reported else None
            )
        return rows(sites, pooled, histograms)

    def _ask(self, step: Step, tensors: dict[str, Tensor], *, stay: bool = False) -> dict[str, dict[str, Tensor]]:
        """The answers by site; who gives none is left out, or, with ``stay``, only has none."""
        asked = EvaluationRequest(self.study.training_hash(), step, self.encoder, tensors)
        patience = 60 * self.study.rounds.deadline_minutes
        answers = self.channel.enquire(asked, self.taking_part, patience)
        like = answer_like(step, self.width, len(self.config.classes))
        good: dict[str, dict[str, Tensor]] = {}
        for site, answer in sorted(answers.items()):
            fault = answer.category if isinstance(answer, Failure) else fault_of(answer.tensors, like)
            if fault or isinstance(answer, Failure):
                self.left_out[site] = f"{step}: {fault}" if stay else fault
            else:
                good[site] = answer.tensors
        if not stay:
            self.taking_part = sorted(good)
        return good

    def _check_quorum(self, sites: int) -> None:
        """Of the sites that could take part, the study's quorum has to."""
        aside = sum(reason in _STANDING_ASIDE for reason in self.left_out.values())
        needed = max(1, math.ceil(self.study.rounds.quorum * (sites - aside) - 1e-9))
        if len(self.taking_part) < needed:
            why = "; ".join(f"{site}: {reason}" for site, reason in sorted(self.left_out.items()))
            raise QuorumError(
                f"{len(self.taking_part)} of {needed} sites take part in the federated evaluation ({why}); mend those "
                "sites, or leave federated_evaluation out"
            )


def evaluate_federated(study: Study, folder: Path, channel: Enquirer, encoders: Mapping[str, Weights]) -> None:
    """Write ``federated-evaluation.json`` into ``folder``: rows of the results table for each of the named encoders.

    encoders: shared weights by the name of the arm. An evaluation that was written for the same weights is left as it
    is. What goes wrong is written down in place of rows; it does not take the weights away that the study was for.
    """
    config = study.federated_evaluation
    if config is None:
        return
    own = {arm: {n: v for n, v in weights.items() if n.startswith(ENCODER)} for arm, weights in encoders.items()}
    digests = {arm: weights_digest(tensors) for arm, tensors in own.items()}
    path = folder / RECORD_NAME
    if path.exists() and read_json(path).get("encoders") == digests:
        return
    names = sorted(info.site for info in channel.sites())
    width = feature_dim(build_method(study.method, study.encoder, study.image, study.seed).encoder)
    found: dict[str, Any] = {"encoders": digests, "seed": study.seed, "probe": config.model_dump(mode="json")}
    found |= {"task": study.evaluation.task, "arms": {}}
    for arm, tensors in own.items():
        probe = _Probe(study, config, channel, digests[arm], width, list(names))
        found["arms"][arm] = _evaluated(probe, tensors)
    write_json(path, found)


def _evaluated(probe: _Probe, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    table: list[dict[str, Any]] = []
    why = ""
    try:
        table = probe.figures(*probe.fit(tensors))
    except (QuorumError, RunError) as error:
        why = str(error)
        logger.warning(f"no federated evaluation: {why}")
    plain = [{key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()} for row in table]
    facts = {"sites": probe.taking_part, "left_out": probe.left_out, "gradients": probe.asked}
    return {**facts, "not_evaluated": why, "rows": plain}


def collect(run: Path) -> Path | None:
    """Write ``evaluation/federated.csv`` of a run: the rows of all of its federations, as a results table.

    None, and nothing written, where no federation was asked about labels.
    """
    found = sorted(run.glob(f"arms/*/fold-*/seed-*/{RECORD_NAME}"))
    if not found:
        return None
    table: list[Row] = []
    for path in found:
        record, fold = read_json(path), path.parent.parent.name.removeprefix("fold-")
        several = len({each.parent.parent for each in found}) > 1
        fixed = {"task": record["task"], "dataset": "labels at the sites", "protocol": PROTOCOL, "label_fraction": "1"}
        for arm, evaluated in record["arms"].items():
            for row in evaluated["rows"]:
                note = "; ".join(part for part in (f"fold {fold}" if several else "", row["note"]) if part)
                named = {"encoder": arm, "role": Role(arm), "seed": str(record["seed"])}
                table.append({**fixed, **named, **row, "note": note})
    place = run / "evaluation" / TABLE_NAME
    RESULTS.write(place, RESULTS.frame(table))
    return place


def fault_of(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str:
    """What is wrong with an answer as such; empty where nothing is."""
    if not same_form(tensors, like):
        return "answer of another form"
    if not all(map(all_finite, tensors.values())):
        return "answer with values that are not finite"
    below_zero = [name for name in ("count", "patients", "deviations", "positive", "negative") if name in tensors]
    return "answer with a negative count" if any(bool((tensors[name] < 0).any()) for name in below_zero) else ""


def _probe(weights: FloatArray, shared: Standard) -> dict[str, Tensor]:
    parts = {"centre": shared.centre, "spread": shared.spread, "weights": weights}
    return {name: torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64)) for name, part in parts.items()}


def _moments(tensors: Mapping[str, Tensor]) -> Moments:
    return Moments(int(tensors["count"]), tensors["mean"].numpy(), tensors["deviations"].numpy())


def _figures(tensors: Mapping[str, Tensor]) -> SiteFigures:
    table = tensors["figures"].tolist()
    estimates = {name: SiteEstimate(row[0], row[1], int(row[2])) for name, row in zip(FIGURES, table, strict=True)}
    return SiteFigures(int(tensors["patients"]), int(tensors["fewest"]), estimates)


def _histogram(tensors: Mapping[str, Tensor]) -> Histogram:
    return Histogram(*(tensors[name].numpy() for name in ("positive", "negative", "starts")))
