"""The study file: the one place that decides what is trained. Composes the rooms' own sections."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from evaluation.config import EvaluationConfig
from federation.algorithms import AnyAlgorithmConfig
from federation.federated_evaluation import FederatedEvaluationConfig
from federation.privacy.config import AnyPrivacyConfig
from federation.privacy.rules import check_privacy
from federation.secure_aggregation.config import SecureAggregationConfig
from foundation.errors import StudyError
from foundation.files import AnyPath, digest
from foundation.yaml_files import checked, read_yaml
from imaging.config import ImageConfig, Section
from ssl_methods import AnyMethodConfig, check_method
from ssl_methods.encoders import EncoderConfig

_Decay = Annotated[float, Field(ge=0, lt=1)]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class TrainingConfig(Section):
    """How a site trains between two exchanges: AdamW with warm-up and cosine over study progress."""

    epochs: float | None = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Passes over a site's own pictures a round; null where `steps` is set.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimiser steps a round, equal for all sites; null where `epochs` is set.",
    )
    batch: int = Field(
        default=32,
        ge=2,
        le=65536,
        description="Pictures a step; a smaller site takes all it has. With privacy by patient pictures computed at "
        "once, as a step has those of the patients drawn.",
    )
    accumulate: int = Field(default=1, ge=1, le=1024, description="Batches whose gradients are summed for one step.")
    learning_rate: float = Field(
        default=5e-4,
        gt=0,
        description="Peak rate for 256 pictures a step; scaled by batch x accumulate / 256, or with privacy by patient "
        "by patients_per_step x pictures_per_patient / 256.",
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Decoupled; never on biases, norms or embeddings.")
    final_weight_decay: float | None = Field(
        default=None,
        ge=0,
        description="Weight decay at the study's end, reached by a half cosine (DINO: .04 to .4); null: constant.",
    )
    betas: tuple[_Decay, _Decay] = Field(default=(0.9, 0.95), description="AdamW's moments; MAE's choice.")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the study over which the rate rises.")
    clip: float | None = Field(default=None, gt=0, description="Largest gradient norm; null for no clipping.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast on CUDA, where it pays, float32 elsewhere."
    )
    optimiser_state: Literal["keep", "reset"] = Field(
        default="keep",
        description="Whether AdamW's moments stay at the site from round to round or start anew.",
    )
    compile: bool = Field(default=False, description="torch.compile the loss: faster after a minute of compilation.")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads a site; part of the study: it changes sums.")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("epochs and steps: exactly one of them is set, the other is null")
        return self


class RoundsConfig(Section):
    """How often weights are exchanged, and what the server does about sites that do not answer."""

    count: int = Field(ge=1, le=100_000, description="Exchanges of weights in the study.")
    quorum: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the sites whose accepted updates make a round; else it is retried.",
    )
    deadline_minutes: float = Field(default=720.0, gt=0, description="After this a round goes on without the missing.")
    attempts: int = Field(default=3, ge=1, le=1000, description="Times a round is tried before the study stops.")
    norm_factor: float = Field(
        default=10.0, gt=1, description="An update this many times longer than the median, for its steps, is left out."
    )
    norm_bound: float = Field(
        default=1e4,
        gt=0,
        description="An update longer than this (L2 norm) is left out whatever the others are.",
    )
    keep_checkpoints: int = Field(default=2, ge=2, description="Checkpoints kept; older ones are deleted.")


class Study(Section):
    """One study. `simulation` is the only section with paths, and a client refuses to act on it."""

    name: _Name = Field(description="Lower-case letters, digits and dashes; names the run folder.")
    title: str = Field(default="", description="One line for the report.")
    demonstration: bool = Field(default=False, description="The report says on page one that this is a demonstration.")
    seed: int = Field(default=0, ge=0, description="Seed of all training randomness.")
    image: ImageConfig
    encoder: EncoderConfig
    method: AnyMethodConfig
    training: TrainingConfig = TrainingConfig()
    algorithm: AnyAlgorithmConfig
    rounds: RoundsConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    federated_evaluation: FederatedEvaluationConfig | None = Field(
        default=None,
        description="A probe of labels that stay at the sites, after the last round; null: no site is asked for any.",
    )
    privacy: AnyPrivacyConfig | None = Field(
        default=None,
        description="What the weights may tell of one patient, or of one site; null: weights leak, and nothing is "
        "promised.",
    )
    secure_aggregation: SecureAggregationConfig | None = Field(
        default=None,
        description="Sums without single updates; null: the server sees each site's update.",
    )
    simulation: dict[str, Any] | None = Field(
        default=None,
        description="Dataset, root, partition and arms of a simulated federation; checked by simulation/.",
    )

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        check_method(self.method, self.encoder, self.image)
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> Self:
        check_privacy(self)
        return self

    def training_hash(self) -> str:
        """SHA-256 over what sites train, in canonical JSON: what a site approves and every message names."""
        return _hash(self.model_dump(mode="json", exclude={"simulation", "evaluation", "title", "demonstration"}))

    def whole_hash(self) -> str:
        """SHA-256 over all of the study but the places of data and starting weights on this machine.

        The starting weights count by their content, ``simulation.weights_sha256``.
        """
        whole = self.model_dump(mode="json")
        if whole["simulation"]:
            places = ("root", "weights")
            whole["simulation"] = {key: value for key, value in whole["simulation"].items() if key not in places}
        return _hash(whole)

    def to_yaml(self) -> str:
        """The resolved study, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _hash(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")))


def load_study(path: AnyPath, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply ``key.sub=value`` overrides (values in YAML); StudyError in one line."""
    raw = read_yaml(Path(path))
    for override in overrides:
        _override(raw, override)
    return study_from(raw, str(path))


def study_from(raw: dict[str, Any], place: str) -> Study:
    """Check a raw study; ``place`` names it in errors."""
    return checked(Study, raw, place)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise StudyError(f"--set {override!r}: write key=value, for example --set rounds.count=5")
    *parents, last = key.split(".")
    place: Any = raw
    for parent in parents:
        entry = _entry(place, parent, override)
        if isinstance(place, dict) and place.get(entry) is None:
            place[entry] = {}
        place = place[entry]
        if not isinstance(place, dict | list):
            raise StudyError(f"--set {override!r}: {parent!r} is a value, not a section")
    try:
        place[_entry(place, last, override)] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"--set {override!r}: the value is not valid YAML") from error


def _entry(place: dict[str, Any] | list[Any], key: str, override: str) -> Any:
    """``key`` as a section takes it, or as the number, from 0, that a list takes."""
    if isinstance(place, dict):
        return key
    if key.isdigit() and int(key) < len(place):
        return int(key)
    raise StudyError(f"--set {override!r}: {key!r} is none of a list's {len(place)} entries, counted from 0")
