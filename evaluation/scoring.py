"""Encoders to scores of held pictures: computed once per encoder and setting, kept in the run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from evaluation.config import DEFAULT_PROTOCOLS
from evaluation.diagnostics import alignment
from evaluation.floors import FLOORS, Roles, Seen
from evaluation.inputs import Encoder, Inputs, View
from evaluation.intervals import FloatArray, IntArray
from evaluation.labels import Budget, Drawn, draw
from evaluation.logistic import logistic_scores
from evaluation.predictions import kept_columns
from evaluation.protocols import PROTOCOLS, RoleSamples
from evaluation.trial import Trial
from foundation.files import digest, write_with
from foundation.machine import choose_device
from foundation.randomness import stream_seed, torch_generator
from imaging.augment import Augmentation
from imaging.splits import HELD
from ssl_methods.encoder_outputs import features

VERSION = "2"
"""Raise it when scores change, so that kept ones are made anew."""
PICTURES_AT_ONCE = 128
SUPERVISED = "supervised"
UNTRAINED = ("random", "natural")
"""Kinds of encoders that were not pretrained here."""


@dataclass(frozen=True)
class Labels:
    """Which training pictures' labels are used in each draw, and the budgets that cannot be drawn."""

    draws: dict[tuple[int, str, int], IntArray]
    """(fold, budget name, draw) to places in ``Pictures``."""
    skipped: dict[str, str]

    def of(self, fold: int) -> list[tuple[str, int, IntArray]]:
        """(budget name, draw, places) of a fold."""
        return [(name, repeat, places) for (f, name, repeat), places in self.draws.items() if f == fold]


def draw_labels(inputs: Inputs) -> Labels:
    """Every draw of every budget, the same for all encoders; one that fails in a fold or draw is skipped whole."""
    config, pictures = inputs.config, inputs.pictures
    budgets = [Budget(fraction=f) for f in config.label_fractions] + [Budget(shots=k) for k in config.shots]
    draws: dict[tuple[int, str, int], IntArray] = {}
    skipped: dict[str, str] = {}
    for budget in budgets:
        found: dict[tuple[int, str, int], IntArray] = {}
        for fold in sorted(pictures.roles):
            places = pictures.where(fold, "train")
            for repeat in range(1 if budget.whole else config.label_seeds):
                drawn = _draw(inputs, budget, places, repeat, fold)
                if drawn.skipped:
                    skipped.setdefault(budget.name, drawn.skipped)
                found[fold, budget.name, repeat] = places[drawn.keep]
        if budget.name not in skipped:
            draws |= found
    return Labels(draws, skipped)


def _draw(inputs: Inputs, budget: Budget, places: IntArray, repeat: int, fold: int) -> Drawn:
    """Of a classification every class has to be there; of the other kinds only patients are counted."""
    pictures, told_apart = inputs.pictures, inputs.config.kind == "classification"
    codes = pictures.y[places] if told_apart else np.zeros(len(places), dtype=np.int64)
    classes = pictures.classes if told_apart else ("",)
    return draw(budget, pictures.patient[places], codes, classes, inputs.config.seed, repeat, fold)


def features_of(inputs: Inputs, encoder: Encoder) -> FloatArray:
    """``[N, D]`` features of all labelled pictures, float64; kept as float32 in evaluation/features/."""
    view = inputs.view(encoder.image)
    key = digest(encoder.key, view.key)[:16]
    path = inputs.run / "evaluation" / "features" / f"{encoder.arm}-{encoder.fold}-{encoder.seed}-{key}.npy"
    if not path.exists():
        found = _extract(view, encoder)
        write_with(path, lambda temporary: _save_array(temporary, found))
    return np.asarray(np.load(path), dtype=np.float64)


def _save_array(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as handle:
        np.save(handle, array)


@torch.no_grad()
def _extract(view: View, encoder: Encoder) -> NDArray[np.float32]:
    device = choose_device("auto")
    model = encoder.build().to(device)
    augmentation = Augmentation(view.image)
    parts = []
    for chosen in _blocks(np.arange(len(view.places)), view):
        shown = augmentation.plain(view.read(chosen).to(device))
        parts.append(features(model, shown).float().cpu().numpy())
    return np.concatenate(parts)


def _blocks(places: IntArray, view: View) -> list[IntArray]:
    """The places, as many at once as memory bears."""
    step = view.image.at_once(PICTURES_AT_ONCE)
    return [places[start : start + step] for start in range(0, len(places), step)]


VIEWED = 256
"""Pictures of which two views are compared: more would not move the mean."""


@torch.no_grad()
def alignment_of(inputs: Inputs, encoder: Encoder) -> float:
    """``diagnostics.alignment`` of two strong views of held pictures, evenly spread; the same for every encoder."""
    view, device = inputs.view(encoder.image), choose_device("auto")
    held = inputs.pictures.where(encoder.fold, *HELD)
    held = held[:: max(1, -(-len(held) // VIEWED))]
    model, augmentation = encoder.build().to(device), Augmentation(view.image)
    generator = torch_generator(inputs.config.seed, "alignment", encoder.fold)
    pairs: list[list[NDArray[np.float32]]] = [[], []]
    for block in _blocks(held, view):
        shown = view.read(block).to(device)
        for own in pairs:
            own.append(features(model, augmentation.strong(shown, generator)).float().cpu().numpy())
    first, second = (np.concatenate(own).astype(np.float64) for own in pairs)
    return alignment(first, second)


def base_of(inputs: Inputs, encoder: Encoder) -> str:
    """The arm that its training started from: as it says, else natural weights where there are any, else random ones.

    An encoder that was not pretrained here is its own base.
    """
    if encoder.kind in UNTRAINED:
        return encoder.arm
    if encoder.base:
        return encoder.base
    untrained = {str(other.kind): other.arm for other in inputs.encoders if other.kind in UNTRAINED}
    return untrained.get("natural", untrained.get("random", ""))


def bases(inputs: Inputs) -> list[str]:
    """Arms that some other arm's training started from; where nothing was pretrained, all that there are."""
    trained = [encoder for encoder in inputs.encoders if encoder.kind not in UNTRAINED]
    return sorted({base_of(inputs, encoder) for encoder in trained or inputs.encoders} - {""})


def shown_as(inputs: Inputs, encoder: Encoder, name: str) -> str:
    """The encoder's name in the tables: what pretraining started from, trained on the labels alone, is "supervised"."""
    return supervised_arms(inputs).get(encoder.arm, encoder.arm) if PROTOCOLS[name].trains_encoder else encoder.arm


def supervised_arms(inputs: Inputs) -> dict[str, str]:
    """By the arm that it starts from, the name in the tables of supervised training without pretraining."""
    started_from = bases(inputs)
    return {arm: SUPERVISED if len(started_from) == 1 else f"{SUPERVISED}-{arm}" for arm in started_from}


def score_encoder(inputs: Inputs, labels: Labels, encoder: Encoder, name: str) -> pd.DataFrame:
    """Scores of one encoder under one protocol, a row a held picture and label draw; kept in the run folder."""
    config, protocol = inputs.config, PROTOCOLS[name]
    sections = ("finetune", "attention", "segmentation", "detection", "kind", "aggregate")
    settings = "" if name in ("knn", "logistic", "svm", "ridge") else config.model_dump_json(include=set(sections))
    key = (encoder.key, str(encoder.fold), settings, config.aggregate, _draws_key(labels, encoder.fold))
    arm = shown_as(inputs, encoder, name)

    def compute() -> pd.DataFrame:
        parts = _Parts(inputs, encoder.image, features_of(inputs, encoder) if protocol.reads == "features" else None)
        pictures = inputs.pictures
        held = pictures.where(encoder.fold, *HELD)
        validation = parts.of(pictures.where(encoder.fold, "validation"))
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

    return _kept(inputs, f"{arm}-{encoder.fold}-{encoder.seed}-{name}", (*key, str(config.seed)), compute)


def classes_of(inputs: Inputs) -> int:
    """K, the columns of a prediction: the classes, of a segmentation also the background, of a regression one."""
    return len(inputs.pictures.classes) + int(inputs.config.kind in ("segmentation", "regression"))


@dataclass(frozen=True)
class _Parts:
    """Pictures of a role, as features where there are any, else as they are."""

    inputs: Inputs
    image: Any
    features: FloatArray | None

    @property
    def target(self) -> Any:
        return self.inputs.target(self.image)

    def of(self, places: IntArray, known: bool = True) -> RoleSamples:
        x = self.inputs.view(self.image).read(places).numpy() if self.features is None else self.features[places]
        return RoleSamples(x, chosen(self.target, places) if known else None, self.inputs.pictures.patient[places])


def chosen(target: Any, places: IntArray) -> Any:
    """What is asked of the pictures at ``places``."""
    return [target[place] for place in places] if isinstance(target, list) else target[places]


def frame_of(
    inputs: Inputs, fold: int, places: IntArray, predictions: Any, target: Any, *, by_patient: bool = False
) -> pd.DataFrame:
    """A row a held picture (or patient): fold, image, patient, site, role, and what its kind of task keeps of it."""
    pictures = inputs.pictures
    if by_patient:
        first = np.sort(np.unique(pictures.patient[places], return_index=True)[1])
        places = places[first]
    plain = {
        "fold": fold,
        "image": pictures.image[places],
        "patient": pictures.patient[places],
        "site": pictures.site[places],
        "role": pictures.roles[fold][places],
    }
    kept = kept_columns(inputs.config.kind, predictions, chosen(target, places), pictures.classes)
    frame = pd.DataFrame({**plain, **kept})
    how = inputs.config.aggregate
    return frame if by_patient or how == "none" else _by_patient(frame, how)


def _by_patient(frame: pd.DataFrame, how: str) -> pd.DataFrame:
    """A row a patient: the mean or the largest of each class's scores, made to sum to 1."""
    scores = [str(name) for name in frame if str(name).startswith("score_")]
    grouped = frame.groupby("patient", sort=False)
    first = grouped.first().reset_index()
    first[scores] = grouped[scores].agg(how).to_numpy()
    first[scores] = first[scores].div(first[scores].sum(axis=1), axis=0)
    return first[list(frame.columns)].assign(image=first["patient"])


def score_leakage(inputs: Inputs, encoder: Encoder) -> pd.DataFrame:
    """Scores of a probe that predicts the site of an unseen patient's picture from the features.

    Trained, chosen and tested on the same patients as the logistic probe; sites without patients in one of the three
    roles stay out. Empty with fewer than two sites.
    """
    pictures, fold = inputs.pictures, encoder.fold
    parts = [pictures.where(fold, role) for role in ("train", "validation", "test")]
    sites = sorted(set.intersection(*(set(pictures.site[part].tolist()) for part in parts)))

    def compute() -> pd.DataFrame:
        table, code = features_of(inputs, encoder), {site: k for k, site in enumerate(sites)}
        train, picked, held = (np.array([p for p in part if pictures.site[p] in code], np.int64) for part in parts)
        y = np.array([code.get(str(site), -1) for site in pictures.site], dtype=np.int64)
        scores = logistic_scores((table[train], y[train]), (table[picked], y[picked]), table[held], len(sites))
        plain = {"fold": fold, "image": pictures.image[held], "patient": pictures.patient[held], "role": "test"}
        plain |= {"site": pictures.site[held], "label": pictures.site[held]}
        frame = pd.DataFrame(plain | {f"score_{name}": scores[:, k] for k, name in enumerate(sites)})
        return frame.assign(
            encoder=encoder.arm, protocol="site leakage", label_fraction="1", label_seed=0, seed=encoder.seed
        )

    if len(sites) < 2:
        return pd.DataFrame()
    return _kept(inputs, f"{encoder.arm}-{fold}-{encoder.seed}-leakage", (encoder.key, str(fold)), compute)


def score_floors(inputs: Inputs, labels: Labels) -> pd.DataFrame:
    """Scores of what needs no encoder in every fold, under the name of the protocol they stand beside."""
    config, pictures = inputs.config, inputs.pictures
    protocol = DEFAULT_PROTOCOLS[config.kind][-1]

    def compute() -> pd.DataFrame:
        target, frames = inputs.target(inputs.image), []
        seen = Seen(inputs.view().read, target, classes_of(inputs), len(pictures.rows))
        for (fold, budget, repeat), places in labels.draws.items():
            held, validation = pictures.where(fold, *HELD), pictures.where(fold, "validation")
            seed = stream_seed(config.seed, "floor", fold, budget, repeat)
            for name, floor in FLOORS[config.kind].items():
                found = floor(seen, Roles(places, validation, held), seed)
                frame = frame_of(inputs, fold, held, found, target)
                frames.append(frame.assign(encoder=name, label_fraction=budget, label_seed=repeat))
        return pd.concat(frames, ignore_index=True).assign(protocol=protocol, seed=0)

    draws = [_draws_key(labels, fold) for fold in sorted(pictures.roles)]
    return _kept(inputs, "floors", (*draws, config.aggregate, str(config.seed)), compute)


def _draws_key(labels: Labels, fold: int) -> str:
    return digest(*(f"{name}:{repeat}:{places.tolist()}" for name, repeat, places in labels.of(fold)))


def _kept(inputs: Inputs, name: str, key: tuple[str, ...], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame kept under this key, or a computed one that is then kept."""
    code = digest(VERSION, name, *key, inputs.key())[:16]
    path = inputs.run / "evaluation" / "scores" / f"{name}-{code}.parquet"
    if not path.exists():
        frame = compute()
        write_with(path, lambda temporary: frame.to_parquet(temporary, index=False))
    return pd.read_parquet(path)
