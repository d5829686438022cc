"""A site's part in the federated evaluation: its labelled images, and what is told of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.labels.held_out import NO_CLASS, codes_of
from evaluation.federated.figures import FIGURES, site_figures
from evaluation.federated.logistic import SiteShare, probabilities
from evaluation.federated.score_histogram import histogram
from evaluation.protocols.logistic import Standard
from evaluation.statistics.intervals import FloatArray, IntArray, Scored
from federation.federated_evaluation import EvaluationRequest, Step, probe_like
from federation.federated_evaluation_config import FederatedEvaluationConfig
from federation.records import all_finite, same_form
from federation.study import Study
from foundation.errors import FedpretextError, RunError, StudyError
from foundation.files import digest, write_text
from foundation.vault import LockedError, Vault
from imaging.store import TensorStore
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import features

MOST_ENCODERS = 2
"""The federated one, and the one that training started from. An encoder of a server's own making could tell more."""
_IMAGES_AT_ONCE = 128


class TooFewLabelsError(FedpretextError):
    """So few patients have a label, or one of the classes, that nothing is told of them."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Labelled images of one role: features ``[N, D]``, class codes ``[N]``, codes of their patients ``[N]``."""

    features: FloatArray
    labels: IntArray
    patients: IntArray

    def patients_of(self, label: int | None = None) -> int:
        """How many patients have an image of this class, or any."""
        chosen = self.patients if label is None else self.patients[self.labels == label]
        return len(np.unique(chosen))

    def without_rare(self, fewest: int) -> "LabelledFeatures":
        """The images of classes that at least ``fewest`` patients have."""
        common = [label for label in np.unique(self.labels) if self.patients_of(int(label)) >= fewest]
        keep = np.isin(self.labels, common)
        return LabelledFeatures(self.features[keep], self.labels[keep], self.patients[keep])


class LabelledImages:
    """Features of a site's labelled images by one encoder, kept in the study's state, and sums over them.

    fewest: classes of fewer training patients take no part, and nothing is told of fewer test patients of a class.
    """

    def __init__(
        self, study: Study, config: FederatedEvaluationConfig, folder: Path, vault: Vault, fewest: int
    ) -> None:
        self._study, self._config, self._fewest = study, config, fewest
        self._folder, self._vault = folder / "evaluation", vault.at("evaluation")
        self._read: dict[str, dict[str, LabelledFeatures]] = {}

    def compute(
        self, encoder: str, stores: dict[str, TensorStore | None], build: Callable[[], nn.Module], device: torch.device
    ) -> None:
        """Keep features of the labelled images of the stores "train" and "test", unless they are kept already.

        TooFewLabelsError where fewer training patients than may be told of have a label.
        """
        codes = {role: None if store is None else codes_of(store.table, self._config) for role, store in stores.items()}
        self._check_enough(stores["train"], codes["train"])
        key = digest(*(_key(store, codes[role]) for role, store in sorted(stores.items())))
        if self._kept(encoder) == key:
            return
        others = [path for path in self._folder.glob("*.safetensors") if path != self._path(encoder)]
        if len(others) >= MOST_ENCODERS:
            raise StudyError(
                f"was asked about labels for more than {MOST_ENCODERS} encoders; nothing is sent about another"
            )
        model = build().to(device).eval()
        tensors: dict[str, Tensor] = {}
        for role, store in stores.items():
            tensors |= self._part(role, store, codes[role], model, device)
        self._vault.save_tensors(self._path(encoder), tensors, {"images": key})
        self._read.clear()

    def _check_enough(self, store: TensorStore | None, codes: IntArray | None) -> None:
        if store is None or codes is None:
            raise TooFewLabelsError("this site has no images to train a probe on")
        labelled = len(np.unique(store.patients[codes != NO_CLASS]))
        if labelled < max(1, self._fewest):
            raise TooFewLabelsError(
                f"{labelled} patients that are trained on have a {self._config.label!r}, and policy.smallest_count is "
                f"{self._fewest}: label more, or leave this site out of the evaluation"
            )

    def _part(
        self, role: str, store: TensorStore | None, codes: IntArray | None, model: nn.Module, device: torch.device
    ) -> dict[str, Tensor]:
        if store is None or codes is None:
            nothing = torch.zeros(0, dtype=torch.int64)
            return {f"{role}/features": torch.zeros(0, 0), f"{role}/labels": nothing, f"{role}/patients": nothing}
        places = np.flatnonzero(codes != NO_CLASS)
        return {
            f"{role}/features": _features(self._study, store, places, model, device),
            f"{role}/labels": torch.from_numpy(codes[places]),
            f"{role}/patients": torch.from_numpy(store.patients[places]),
        }

    def answer(self, question: EvaluationRequest) -> dict[str, Tensor]:
        """The tensors of ``federation.federated_evaluation.answer_like``.

        StudyError for a probe of another form, or more questions than the study has; TooFewLabelsError.
        """
        parts = self._load(question.encoder)
        train = parts["train"]
        if train.patients_of() < max(1, self._fewest):
            raise TooFewLabelsError("no class has as many patients here as policy.smallest_count says; nothing is sent")
        share = SiteShare(train.features, train.labels, len(self._config.classes))
        if question.step == "moments":
            found = share.moments()
            return {"count": _vector(found.count), "mean": _vector(found.mean), "deviations": _vector(found.deviations)}
        weights, standard = self._probe(question, train.features.shape[1])
        self._count(question)
        if question.step == "gradient":
            value, gradient = share.value_and_gradient(weights, standard)
            return {"value": _vector(value), "gradient": torch.from_numpy(gradient)}
        return self._told_of_test(question.step, parts["test"], weights, standard)

    def _told_of_test(
        self, step: Step, test: LabelledFeatures, weights: FloatArray, standard: Standard
    ) -> dict[str, Tensor]:
        """Figures or a histogram of the test patients, of whom there have to be enough of every class that occurs."""
        present = [int(label) for label in np.unique(test.labels)]
        if not present or min(map(test.patients_of, present)) < self._fewest:
            raise TooFewLabelsError(
                f"a class has fewer test patients here than policy.smallest_count ({self._fewest}); no metric is sent"
            )
        scores = probabilities(test.features, weights, standard)
        if step == "histogram":
            counts = histogram(test.labels, scores, self._fewest)
            if counts is None:
                raise TooFewLabelsError("a histogram of so few images tells of single ones; it is not given")
            return {name: torch.from_numpy(getattr(counts, name)) for name in ("positive", "negative", "starts")}
        names = test.patients.astype(np.str_)
        own = site_figures(Scored(test.labels, scores, names, np.full(len(names), "site")))
        table = [[own.figures[n].value, own.figures[n].variance, own.figures[n].units] for n in FIGURES]
        figures = torch.tensor(table, dtype=torch.float64)
        return {"patients": _vector(own.patients), "fewest": _vector(own.fewest), "figures": figures}

    def _probe(self, question: EvaluationRequest, width: int) -> tuple[FloatArray, Standard]:
        like, given = probe_like(width, len(self._config.classes)), question.tensors
        fits = same_form(like, given) and all(map(all_finite, given.values()))
        if not fits or bool((given["spread"] <= 0).any()):
            raise StudyError("was sent a probe that is not of the form that the study has")
        centre, spread, weights = (given[name].numpy() for name in ("centre", "spread", "weights"))
        return weights, Standard(centre, spread)

    def _count(self, question: EvaluationRequest) -> None:
        """Remember what was asked, as each answer tells more; what a restarted server asks again is free."""
        path = self._path(question.encoder).with_suffix(".asked")
        asked = path.read_text().splitlines() if path.exists() else []
        parts = [question.tensors[name].numpy().tobytes() for name in sorted(question.tensors)]
        own = digest(question.step, *parts)
        if own in asked:
            return
        if len(asked) >= self._config.steps:
            raise StudyError(f"was asked more than federated_evaluation.steps ({self._config.steps}) questions")
        write_text(path, "\n".join([*asked, own, ""]))

    def _path(self, encoder: str) -> Path:
        return self._folder / f"{encoder[:16]}.safetensors"

    def _kept(self, encoder: str) -> str | None:
        """Which images the kept features are of; None without any."""
        path = self._path(encoder)
        try:
            return self._vault.load_tensors(path)[1].get("images") if path.exists() else None
        except LockedError:
            raise
        except RunError:
            return None  # damaged: computed anew

    def _load(self, encoder: str) -> dict[str, LabelledFeatures]:
        if encoder not in self._read:
            tensors, _ = self._vault.load_tensors(self._path(encoder))
            parts = {
                role: LabelledFeatures(
                    tensors[f"{role}/features"].double().numpy(),
                    tensors[f"{role}/labels"].numpy(),
                    tensors[f"{role}/patients"].numpy(),
                )
                for role in ("train", "test")
            }
            self._read = {encoder: parts | {"train": parts["train"].without_rare(self._fewest)}}
        return self._read[encoder]


def _key(store: TensorStore | None, codes: IntArray | None) -> str:
    if store is None or codes is None:
        return ""
    return digest(store.folder.name, store.slots.tobytes(), codes.tobytes())


@torch.no_grad()
def _features(
    study: Study, store: TensorStore, places: NDArray[np.int64], model: nn.Module, device: torch.device
) -> Tensor:
    """float32 ``[N, D]`` of the images at ``places``, as evaluation/features.py computes them."""
    augmentation, step = Augmentation(study.image), study.image.at_once(_IMAGES_AT_ONCE)
    parts = [
        features(model, augmentation.plain(store.batch(places[start : start + step]).to(device))).float().cpu()
        for start in range(0, len(places), step)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, 0)


def _vector(value: float | FloatArray) -> Tensor:
    return torch.from_numpy(np.atleast_1d(np.asarray(value, dtype=np.float64)))
