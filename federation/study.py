"""The study file: the one place that decides what is trained. Composes the rooms' own sections."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from evaluation.config import EvaluationConfig
from federation.algorithms import AnyAlgorithmConfig
from foundation.errors import StudyError, nearest
from foundation.files import digest
from imaging.config import ImageConfig, Section
from ssl_methods import AnyMethodConfig, check_method
from ssl_methods.encoders import EncoderConfig

Model = TypeVar("Model", bound=BaseModel)
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
    batch: int = Field(default=32, ge=2, le=65536, description="Pictures a step; a smaller site takes all it has.")
    accumulate: int = Field(default=1, ge=1, le=1024, description="Batches whose gradients are summed for one step.")
    learning_rate: float = Field(
        default=5e-4,
        gt=0,
        description="Peak rate for 256 pictures a step; scaled by batch x accumulate / 256.",
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
    simulation: dict[str, Any] | None = Field(
        default=None,
        description="Dataset, root, partition and arms of a simulated federation; checked by simulation/.",
    )

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        check_method(self.method, self.encoder, self.image)
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


def load_study(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Study:
    """Read a study file and apply ``key.sub=value`` overrides (values in YAML); StudyError in one line."""
    raw = read_yaml(path)
    for override in overrides:
        _override(raw, override)
    return study_from(raw, str(path))


def study_from(raw: dict[str, Any], place: str) -> Study:
    """Check a raw study; ``place`` names it in errors."""
    return checked(Study, raw, place)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        raw = yaml.load(path.read_text(), _OneOfEachKey)  # a SafeLoader
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such study file; the ready ones are in configs/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as a text file; give the path of a YAML study file") from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise StudyError(f"{path}: is not valid YAML ({text})") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: holds {type(raw).__name__} instead of 'key: value' lines")
    return raw


class _OneOfEachKey(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself lets the second of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of ``node``; ConstructorError when it has a key twice."""
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"key {twice!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


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


def checked(model: type[Model], raw: Any, place: str) -> Model:
    """``raw`` as a ``model``; the first thing that is wrong as a StudyError of one line with the key and the remedy."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise StudyError(f"{place}: {_first(error, model)}") from error


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    # An unknown key is told before a missing one: the first is usually the misspelling that causes the second.
    details = error.errors()
    detail = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        known, path = _keys_beside(model, path)
        hint = nearest(path[-1], known) or (f"; known there: {', '.join(sorted(known))}" if known else "")
        return f"key {'.'.join(path)!r} is not known{hint}"
    key = ".".join(_keys_beside(model, path)[1])
    if detail["type"] == "missing":
        return f"key {key!r} is missing; add it"
    if detail["type"] == "union_tag_invalid":
        context = detail["ctx"]
        known = {tag.strip(" '") for tag in context["expected_tags"].split(",")}
        return f"{key}.name {context['tag']!r} is not known; there are: {', '.join(sorted(known))}" + nearest(
            context["tag"], known
        )
    message = detail["msg"].removeprefix("Value error, ")
    value = detail.get("input")
    shown = "" if isinstance(value, dict | list) else f" (got {value!r})"
    return f"{key}: {message}{shown}" if key else f"{message}{shown}"  # no key: a rule of the whole section


def _keys_beside(model: type[BaseModel], path: list[str]) -> tuple[set[str], list[str]]:
    """Field names of the section that holds the last key of ``path``, and the path as it stands in the file.

    Pydantic puts the chosen member of a union (``mae``) into its path. All sections that a union offers count.
    """
    sections: list[Any] = [model]
    shown: list[str] = []
    for part in path[:-1]:
        if part.isdigit():  # an entry of a list, whose sections are those found already
            shown.append(part)
            continue
        chosen = [s for s in sections if getattr(s.model_fields.get("name"), "default", None) == part]
        if not chosen:
            shown.append(part)
            inside = [s.model_fields[part].annotation for s in sections if part in s.model_fields]
            chosen = [found for annotation in inside for found in _models_in(annotation)]
        sections = chosen
    return {name for section in sections for name in section.model_fields}, [*shown, *path[-1:]]


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
