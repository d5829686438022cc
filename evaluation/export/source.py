"""Which encoder of a run is handed on, its weights, and what the run says of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from evaluation.arm_table import DESCRIPTION_NAME, WEIGHTS_NAME
from foundation.errors import RunError, nearest
from foundation.files import read_json
from foundation.randomness import seeded_torch
from foundation.tensor_files import load_tensors
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder


@dataclass(frozen=True)
class Source:
    """An encoder of a run. ``facts``: its ``encoder.json``, as it stands there."""

    run: Path
    config: EncoderConfig
    image: ImageConfig
    weights: Path
    facts: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What kind of arm it is of: federated, local-only, centralised, random, pretrained-init, ..."""
        return str(self.facts.get("kind", ""))

    @property
    def title(self) -> str:
        """The arm's title; that of a site on its own does not name the site, as it goes where the weights go."""
        title = str(self.facts.get("title", self.kind))
        return f"One site, local-only{title.partition(' local-only')[2]}" if self.kind == "local-only" else title

    @property
    def volumes(self) -> bool:
        """Whether it takes volumes: a network of MONAI's, not of timm's."""
        return self.image.dimensions == 3

    def build(self) -> nn.Module:
        """The network with its weights, on the CPU, in evaluation mode. RunError where they do not fit."""
        tensors, _ = load_tensors(self.weights)
        with seeded_torch(0, "export"):
            encoder = build_encoder(self.config.model_copy(update={"drop_path": 0.0}), self.image)
        try:
            encoder.load_state_dict(tensors)
        except RuntimeError as error:
            raise RunError(
                f"{self.weights}: does not fit {self.config.name} as {DESCRIPTION_NAME} describes it; resume the run"
            ) from error
        return encoder.eval()


def find_encoder(run: Path, arm: str = "federated", fold: int = 0, seed: int | None = None) -> Source:
    """The encoder of an arm, a fold and a training seed; default: the lowest seed that there is.

    RunError where there is no such run, arm, fold or seed, or the arm is not finished.
    """
    if not run.is_dir():
        raise RunError(f"{run}: there is no such run folder; give the folder that simulate or server printed")
    described = sorted((run / "arms").glob(f"*/fold-*/seed-*/{DESCRIPTION_NAME}"))
    if not described:
        raise RunError(
            f"{run}: holds no trained encoder under arms/; finish it first (simulate --resume {run}, or its server)"
        )
    own = [path for path in described if path.parents[2].name == arm]
    if not own:
        raise RunError(_absent(run, f"arm {arm!r}", {path.parents[2].name for path in described}, arm))
    folds = [path for path in own if path.parents[1].name == f"fold-{fold}"]
    if not folds:
        raise RunError(_absent(run, f"fold {fold} of {arm!r}", {path.parents[1].name[5:] for path in own}))
    seeds = {int(path.parent.name.removeprefix("seed-")): path for path in folds}
    chosen = min(seeds) if seed is None else seed
    if chosen not in seeds:
        raise RunError(_absent(run, f"seed {chosen} of {arm!r}, fold {fold}", map(str, sorted(seeds))))
    return read_source(run, seeds[chosen])


def _absent(run: Path, what: str, there: Iterable[str], named: str = "") -> str:
    known = sorted(there)
    return f"{run}: has no {what}; there are: {', '.join(known)}{nearest(named, known) if named else ''}"


def read_source(run: Path, described: Path) -> Source:
    """The encoder of an ``encoder.json`` of the run. RunError where it or its weights are missing or damaged."""
    weights = described.with_name(WEIGHTS_NAME)
    if not weights.is_file():
        raise RunError(f"{weights}: is missing beside its {DESCRIPTION_NAME}; resume the run to make it again")
    facts = read_json(described)
    try:
        return Source(
            run=run,
            config=EncoderConfig.model_validate(facts["encoder"]),
            image=ImageConfig.model_validate(facts["image"]),
            weights=weights,
            facts=facts,
        )
    except (KeyError, TypeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise RunError(f"{described}: does not describe an encoder ({what}); resume the run") from error
