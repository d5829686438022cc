"""Encoders to scores of held pictures: computed once per encoder and setting, kept in the run folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from evaluation.finetune import Trial
from evaluation.floors import majority_scores, pixel_scores, small_pixels
from evaluation.inputs import HELD, Encoder, Inputs, Pictures, read_batch
from evaluation.intervals import FloatArray, IntArray
from evaluation.labels import Budget, Drawn, draw
from evaluation.logistic import logistic_scores
from evaluation.protocols import PROTOCOLS, Labelled
from foundation.files import digest, write_with
from foundation.machine import choose_device
from foundation.randomness import stream_seed
from imaging.augment import Augmentation
from imaging.config import ImageConfig
from ssl_methods.encoder_outputs import features

VERSION = "1"
"""Raise it when scores change, so that kept ones are made anew."""
PICTURES_AT_ONCE = 128
PIXELS = "pixels"
MAJORITY = "majority"
SUPERVISED = "supervised"


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
    pictures = inputs.pictures
    patients, labels = pictures.patient[places], pictures.y[places]
    return draw(budget, patients, labels, pictures.classes, inputs.config.seed, repeat, fold)


def features_of(inputs: Inputs, encoder: Encoder) -> FloatArray:
    """``[N, D]`` features of all labelled pictures, float64; kept as float32 in evaluation/features/."""
    pictures = inputs.pictures
    key = digest(encoder.key, pictures.store.folder.name, *map(str, pictures.rows), inputs.image.modality)[:16]
    path = inputs.run / "evaluation" / "features" / f"{encoder.arm}-{encoder.fold}-{encoder.seed}-{key}.npy"
    if not path.exists():
        found = _extract(inputs, encoder)
        write_with(path, lambda temporary: _save_array(temporary, found))
    return np.asarray(np.load(path), dtype=np.float64)


def _save_array(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as handle:
        np.save(handle, array)


@torch.no_grad()
def _extract(inputs: Inputs, encoder: Encoder) -> NDArray[np.float32]:
    device = choose_device("auto")
    model = encoder.build(inputs.image).to(device)
    augmentation = Augmentation(inputs.image)
    parts = []
    for places in _chunks(len(inputs.pictures.rows), inputs.image):
        shown = augmentation.plain(read_batch(inputs.pictures, places).to(device))
        parts.append(features(model, shown).float().cpu().numpy())
    return np.concatenate(parts)


def _chunks(count: int, image: ImageConfig) -> list[IntArray]:
    step = image.at_once(PICTURES_AT_ONCE)
    return [np.arange(start, min(start + step, count)) for start in range(0, count, step)]


def untrained_kind(inputs: Inputs) -> str:
    """The kind of encoder that pretraining started from: ``natural`` where starting weights were given, else random."""
    return "natural" if any(encoder.kind == "natural" for encoder in inputs.encoders) else "random"


def shown_as(inputs: Inputs, encoder: Encoder, name: str) -> str:
    """The encoder's name in the tables: what pretraining started from, trained on the labels alone, is "supervised"."""
    supervised = encoder.kind == untrained_kind(inputs) and PROTOCOLS[name].reads == "pictures"
    return SUPERVISED if supervised else encoder.arm


def score_encoder(inputs: Inputs, labels: Labels, encoder: Encoder, name: str) -> pd.DataFrame:
    """Scores of one encoder under one protocol, a row a held picture and label draw; kept in the run folder."""
    config, protocol = inputs.config, PROTOCOLS[name]
    settings = config.finetune.model_dump_json() if protocol.reads == "pictures" else ""
    key = (encoder.key, str(encoder.fold), settings, _draws_key(labels, encoder.fold), str(config.seed))
    arm = shown_as(inputs, encoder, name)

    def compute() -> pd.DataFrame:
        shown: Callable[[IntArray], NDArray[np.float64] | NDArray[np.float32]]
        if protocol.reads == "features":
            table = features_of(inputs, encoder)
            shown = lambda places: table[places]  # noqa: E731
        else:
            shown = lambda places: read_batch(inputs.pictures, places).numpy()  # noqa: E731
        pictures = inputs.pictures
        held, chosen = pictures.where(encoder.fold, *HELD), pictures.where(encoder.fold, "validation")
        validation = Labelled(shown(chosen), pictures.y[chosen])
        frames = []
        for budget, repeat, places in labels.of(encoder.fold):
            trial = Trial(
                classes=len(pictures.classes),
                image=inputs.image,
                finetune=config.finetune,
                encoder=lambda drop_path: encoder.build(inputs.image, drop_path),
                seed=stream_seed(config.seed, "trial", encoder.fold, encoder.seed, budget, repeat),
                device=choose_device("auto"),
            )
            scores = protocol.score(Labelled(shown(places), pictures.y[places]), validation, shown(held), trial)
            frames.append(score_frame(pictures, encoder.fold, held, pictures.label[held], scores, pictures.classes))
            frames[-1] = frames[-1].assign(label_fraction=budget, label_seed=repeat)
        return pd.concat(frames, ignore_index=True).assign(encoder=arm, protocol=name, seed=encoder.seed)

    return _kept(inputs, f"{arm}-{encoder.fold}-{encoder.seed}-{name}", key, compute)


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
        train, chosen, held = ([p for p in part if pictures.site[p] in code] for part in parts)
        y = np.array([code.get(str(site), -1) for site in pictures.site], dtype=np.int64)
        scores = logistic_scores((table[train], y[train]), (table[chosen], y[chosen]), table[held], len(sites))
        places = np.array(held, dtype=np.int64)
        frame = score_frame(pictures, fold, places, pictures.site[places], scores, sites)
        return frame.assign(
            encoder=encoder.arm, protocol="site leakage", label_fraction="1", label_seed=0, seed=encoder.seed
        )

    if len(sites) < 2:
        return pd.DataFrame()
    return _kept(inputs, f"{encoder.arm}-{fold}-{encoder.seed}-leakage", (encoder.key, str(fold)), compute)


def score_floors(inputs: Inputs, labels: Labels) -> pd.DataFrame:
    """Scores of the majority class and of raw pixels in every fold, under the name of the probe they stand beside."""
    pictures = inputs.pictures

    def compute() -> pd.DataFrame:
        chunks = _chunks(len(pictures.rows), inputs.image)
        pixels = np.concatenate([small_pixels(read_batch(pictures, places)) for places in chunks])
        frames, classes = [], pictures.classes
        for (fold, budget, repeat), places in labels.draws.items():
            held, chosen = pictures.where(fold, *HELD), pictures.where(fold, "validation")
            train, validation = (pixels[places], pictures.y[places]), (pixels[chosen], pictures.y[chosen])
            found = {
                PIXELS: pixel_scores(train, validation, pixels[held], len(classes)),
                MAJORITY: majority_scores(pictures.y[places], len(held), len(classes)),
            }
            for name, scores in found.items():
                frame = score_frame(pictures, fold, held, pictures.label[held], scores, classes)
                frames.append(frame.assign(encoder=name, label_fraction=budget, label_seed=repeat))
        return pd.concat(frames, ignore_index=True).assign(protocol="logistic", seed=0)

    draws = [_draws_key(labels, fold) for fold in sorted(pictures.roles)]
    return _kept(inputs, "floors", tuple(draws), compute)


def score_frame(
    pictures: Pictures, fold: int, places: IntArray, label: NDArray[np.str_], scores: FloatArray, classes: Sequence[str]
) -> pd.DataFrame:
    """A row a held picture: fold, image, patient, site, role, label, and score_<class> for each class."""
    plain = {
        "fold": fold,
        "image": pictures.image[places],
        "patient": pictures.patient[places],
        "site": pictures.site[places],
        "role": pictures.roles[fold][places],
        "label": label,
    }
    return pd.DataFrame(plain | {f"score_{name}": scores[:, k] for k, name in enumerate(classes)})


def _draws_key(labels: Labels, fold: int) -> str:
    return digest(*(f"{name}:{repeat}:{places.tolist()}" for name, repeat, places in labels.of(fold)))


def _kept(inputs: Inputs, name: str, key: tuple[str, ...], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame kept under this key, or a computed one that is then kept."""
    code = digest(VERSION, name, *key, inputs.pictures.key(), inputs.image.modality)[:16]
    path = inputs.run / "evaluation" / "scores" / f"{name}-{code}.parquet"
    if not path.exists():
        frame = compute()
        write_with(path, lambda temporary: frame.to_parquet(temporary, index=False))
    return pd.read_parquet(path)
