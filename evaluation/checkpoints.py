"""What may be given to ``fedpretext evaluate``: runs, arms of runs, exported folders, timm's names, weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.arm_table import DESCRIPTION_NAME, WEIGHTS_NAME
from evaluation.export.timm_folder import read_folder
from evaluation.started_from import UNTRAINED
from foundation.errors import RunError, StudyError
from foundation.files import read_json
from foundation.randomness import seeded_torch
from foundation.tensor_files import load_tensors
from imaging.config import ImageConfig
from ssl_methods.encoders.starting_weights import fit_weights, read_weights, timm_weights
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

PRETRAINED = "pretrained"
RANDOM = "random"
_COST = ("images", "optimiser_steps", "sequential_steps", "passes", "seconds", "method")


@dataclass(frozen=True)
class Candidate:
    """An encoder to be judged.

    fold: of the split it was trained in, None: trained in none of them. source: what was given; facts: what it cost.
    """

    name: str
    title: str
    kind: str
    encoder: EncoderConfig
    image: ImageConfig
    weights: Mapping[str, Tensor]
    fold: int | None
    seed: int
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_candidates(given: str, image: ImageConfig | None) -> list[Candidate]:
    """The encoders that ``given`` names; ``image``: the task's, for those that do not say how they see an image.

    ``given`` is a run folder (its federated encoders, and those that they started from), an arm's folder in one, a
    folder that ``fedpretext export`` wrote, ``NAME=FILE`` (weights for a timm model) or ``NAME`` (timm's own weights).
    RunError or StudyError where there is nothing to judge.
    """
    place = Path(given)
    if (place / "arms").is_dir():
        return _of_run(place)
    if place.is_dir() and any(place.glob(f"fold-*/seed-*/{DESCRIPTION_NAME}")):
        return [_of_arm(path, _title(path, place.parent.parent), PRETRAINED) for path in _described(place)]
    if (place / "config.json").is_file():
        encoder, own, weights = read_folder(place)
        return [_foreign(place.resolve().name, given, encoder, own, read_weights(weights))]
    if place.exists():
        raise RunError(
            f"{given}: is no run folder, no arm of one and no exported encoder; for a file of weights write NAME=FILE, "
            "NAME being timm's name of the model"
        )
    name, equals, file = given.partition("=")
    if image is None:
        raise StudyError(f"{given}: does not say how it sees an image; give the task file an `image` section")
    if "/" in given and not equals:
        raise RunError(f"{given}: there is no such run folder; give the folder that simulate or server printed")
    tensors = read_weights(Path(file)) if equals else timm_weights(name)
    return [_foreign(name, given, EncoderConfig(name=name), image, tensors)]


def untrained(like: Candidate, name: str) -> Candidate:
    """A randomly initialised encoder of the same kind, which every pretrained one is held against."""
    with seeded_torch(like.seed, "encoder"):
        model = build_encoder(like.encoder, like.image)
    return Candidate(
        name=name,
        title="Random initialisation: no pretraining",
        kind=RANDOM,
        encoder=like.encoder,
        image=like.image,
        weights=model.state_dict(),
        fold=None,
        seed=like.seed,
        source="drawn for this evaluation",
        facts={"images": 0, "optimiser_steps": 0, "sequential_steps": 0, "passes": 0.0, "seconds": 0.0},
    )


def _foreign(
    name: str, given: str, encoder: EncoderConfig, image: ImageConfig, tensors: dict[str, Tensor]
) -> Candidate:
    with seeded_torch(0, "encoder"):
        model = build_encoder(encoder, image)
    fit_weights(model, tensors, given)
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    weights = model.state_dict()
    return Candidate(own, f"{name}: weights from elsewhere", PRETRAINED, encoder, image, weights, None, 0, given)


def _of_run(run: Path) -> list[Candidate]:
    """The federated arm of a run, and the untrained ones beside it."""
    found = []
    for path in _described(run / "arms"):
        kind = str(read_json(path).get("kind", ""))
        if kind in ("federated", *UNTRAINED):
            title = str(read_json(path).get("title", "")) if kind in UNTRAINED else _title(path, run)
            found.append(_of_arm(path, title, kind))
    if not any(one.kind == "federated" for one in found):
        raise RunError(
            f"{run}: has no federated encoder yet; let its run end (simulate --resume, or fedpretext status)"
        )
    return found


def _described(place: Path) -> list[Path]:
    return sorted(place.glob(f"**/fold-*/seed-*/{DESCRIPTION_NAME}"))


def _title(path: Path, run: Path) -> str:
    """The run's title, else the arm's."""
    facts = run / "run.json"
    own = str(read_json(path).get("title", ""))
    titled = read_json(facts).get("title", "") if facts.is_file() else ""
    return f"{titled}: {own}" if titled else own


def _of_arm(path: Path, title: str, kind: str) -> Candidate:
    value = read_json(path)
    try:
        run = path.parents[4]
        name = run.resolve().name if kind == "federated" else str(value["arm"])
        return Candidate(
            name=name if kind != PRETRAINED else f"{run.resolve().name}-{value['arm']}",
            title=title,
            kind=kind,
            encoder=EncoderConfig.model_validate(value["encoder"]),
            image=ImageConfig.model_validate(value["image"]),
            weights=load_tensors(path.with_name(WEIGHTS_NAME))[0],
            fold=int(value["fold"]),
            seed=int(value["seed"]),
            source=str(run),
            facts={key: value.get(key) for key in _COST},
        )
    except (KeyError, TypeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise RunError(f"{path}: does not describe an encoder ({what}); resume the run") from error
