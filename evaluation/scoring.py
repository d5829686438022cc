"""Encoders to scores of held images: computed once per encoder and setting, kept in the run folder."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.config import DEFAULT_PROTOCOLS
from evaluation.features import features_of
from evaluation.inputs import Encoder, Inputs
from evaluation.protocols.baselines import Roles, Seen, baselines_of
from evaluation.protocols.logistic import logistic_scores
from evaluation.protocols.table import PROTOCOLS, RoleSamples
from evaluation.protocols.trial import Trial
from evaluation.score_frames import chosen, frame_of, kept_frame
from evaluation.started_from import shown_as
from evaluation.statistics.intervals import FloatArray, IntArray
from evaluation.tasks.label_draws import Labels
from foundation.machine import choose_device
from foundation.randomness import stream_seed
from imaging.listing.splits import HELD


def score_encoder(inputs: Inputs, labels: Labels, encoder: Encoder, name: str) -> pd.DataFrame:
    """Scores of one encoder under one protocol, a row a held image and label draw; kept in the run folder."""
    config, protocol = inputs.config, PROTOCOLS[name]
    sections = ("finetune", "attention", "segmentation", "detection", "kind", "aggregate")
    settings = "" if name in ("knn", "logistic", "svm", "ridge") else config.model_dump_json(include=set(sections))
    key = (encoder.key, str(encoder.fold), settings, config.aggregate, labels.key(encoder.fold))
    arm = shown_as(inputs, encoder, name)

    def compute() -> pd.DataFrame:
        parts = _Parts(inputs, encoder.image, features_of(inputs, encoder) if protocol.reads == "features" else None)
        images = inputs.images
        held = images.where(encoder.fold, *HELD)
        validation = parts.of(images.where(encoder.fold, "validation"))
        frames = []
        for budget, repeat, places in labels.of(encoder.fold):
            trial = Trial(
                classes=classes_of(inputs),
                image=encoder.image,
                config=config,
                encoder=encoder.build,
                seed=stream_seed(config.seed, "trial", encoder.fold, encoder.seed, budget, repeat),
                device=choose_device("auto"),
            )
            found = protocol.predict[config.kind](parts.of(places), validation, parts.of(held, known=False), trial)
            frame = frame_of(inputs, encoder.fold, held, found, parts.target, by_patient=protocol.by_patient)
            frames.append(frame.assign(label_fraction=budget, label_seed=repeat))
        return pd.concat(frames, ignore_index=True).assign(encoder=arm, protocol=name, seed=encoder.seed)

    return kept_frame(inputs, f"{arm}-{encoder.fold}-{encoder.seed}-{name}", (*key, str(config.seed)), compute)


def classes_of(inputs: Inputs) -> int:
    """K, the columns of a prediction: the classes, of a segmentation also the background, of a regression one."""
    return len(inputs.images.classes) + int(inputs.config.kind in ("segmentation", "regression"))


@dataclass(frozen=True)
class _Parts:
    """Images of a role, as features where there are any, else as they are."""

    inputs: Inputs
    image: Any
    features: FloatArray | None

    @property
    def target(self) -> Any:
        return self.inputs.target(self.image)

    def of(self, places: IntArray, known: bool = True) -> RoleSamples:
        x = self.inputs.view(self.image).read(places).numpy() if self.features is None else self.features[places]
        return RoleSamples(x, chosen(self.target, places) if known else None, self.inputs.images.patient[places])


def score_leakage(inputs: Inputs, encoder: Encoder) -> pd.DataFrame:
    """Scores of a probe that predicts the site of an unseen patient's image from the features.

    Trained, chosen and tested on the same patients as the logistic probe; sites without patients in one of the three
    roles stay out. Empty with fewer than two sites.
    """
    images, fold = inputs.images, encoder.fold
    parts = [images.where(fold, role) for role in ("train", "validation", "test")]
    sites = sorted(set.intersection(*(set(images.site[part].tolist()) for part in parts)))

    def compute() -> pd.DataFrame:
        table, code = features_of(inputs, encoder), {site: k for k, site in enumerate(sites)}
        train, picked, held = (np.array([p for p in part if images.site[p] in code], np.int64) for part in parts)
        y = np.array([code.get(str(site), -1) for site in images.site], dtype=np.int64)
        scores = logistic_scores((table[train], y[train]), (table[picked], y[picked]), table[held], len(sites))
        plain = {"fold": fold, "image": images.image[held], "patient": images.patient[held], "role": "test"}
        plain |= {"site": images.site[held], "label": images.site[held]}
        frame = pd.DataFrame(plain | {f"score_{name}": scores[:, k] for k, name in enumerate(sites)})
        return frame.assign(
            encoder=encoder.arm, protocol="site leakage", label_fraction="1", label_seed=0, seed=encoder.seed
        )

    if len(sites) < 2:
        return pd.DataFrame()
    return kept_frame(inputs, f"{encoder.arm}-{fold}-{encoder.seed}-leakage", (encoder.key, str(fold)), compute)


def score_baselines(inputs: Inputs, labels: Labels) -> pd.DataFrame:
    """Scores of what needs no encoder in every fold, under the name of the protocol they stand beside."""
    config, images = inputs.config, inputs.images
    protocol = DEFAULT_PROTOCOLS[config.kind][-1]

    def compute() -> pd.DataFrame:
        target, frames = inputs.target(inputs.image), []
        seen = Seen(inputs.view().read, target, classes_of(inputs), len(images.rows), images.position)
        for (fold, budget, repeat), places in labels.draws.items():
            held, validation = images.where(fold, *HELD), images.where(fold, "validation")
            seed = stream_seed(config.seed, "baseline", fold, budget, repeat)
            for name, baseline in baselines_of(config.kind, images.position is not None).items():
                found = baseline(seen, Roles(places, validation, held), seed)
                frame = frame_of(inputs, fold, held, found, target)
                frames.append(frame.assign(encoder=name, label_fraction=budget, label_seed=repeat))
        return pd.concat(frames, ignore_index=True).assign(protocol=protocol, seed=0)

    draws = [labels.key(fold) for fold in sorted(images.roles)]
    return kept_frame(inputs, "baselines", (*draws, config.aggregate, str(config.seed)), compute)
