"""YAML files that a person writes: read without running anything, and checked against a model; one line when wrong."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from foundation.configuration.by_name import ByName
from foundation.errors import StudyError, nearest

Model = TypeVar("Model", bound=BaseModel)


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


def checked(model: type[Model], raw: Any, place: str) -> Model:
    """``raw`` as a ``model``; the first thing that is wrong as a StudyError of one line with the key and the remedy."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise StudyError(f"{place}: {_first(error, model, raw)}") from error


def _first(error: ValidationError, model: type[BaseModel], raw: Any) -> str:
    # An unknown key is told before a missing one: the first is usually the misspelling that causes the second.
    details = error.errors()
    detail = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        known, path = _keys_beside(model, path, raw)
        hint = nearest(path[-1], known) or (f"; known there: {', '.join(sorted(known))}" if known else "")
        return f"key {'.'.join(path)!r} is not known{hint}"
    key = ".".join(_keys_beside(model, path, raw)[1])
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


def _keys_beside(model: type[BaseModel], path: list[str], raw: Any) -> tuple[set[str], list[str]]:
    """Field names of the section that holds the last key of ``path``, and the path as it stands in the file.

    Pydantic puts the chosen member of a union into its path. All sections that a union offers count, of ``ByName``
    that which ``raw`` names.
    """
    sections: list[Any] = [model]
    shown: list[str] = []
    for part in path[:-1]:
        if part.isdigit():  # an entry of a list, whose sections are those found already
            shown.append(part)
            raw = raw[int(part)] if isinstance(raw, list | tuple) and int(part) < len(raw) else None
            continue
        chosen = [s for s in sections if getattr(s.model_fields.get("name"), "default", None) == part]
        if not chosen:
            shown.append(part)
            raw = raw.get(part) if isinstance(raw, dict) else None
            inside = [s.model_fields[part] for s in sections if part in s.model_fields]
            chosen = [found for field in inside for found in _models_of(field, raw)]
        sections = chosen
    return {name for section in sections for name in section.model_fields}, [*shown, *path[-1:]]


def _models_of(field: FieldInfo, raw: Any) -> list[Any]:
    """The models that ``raw`` may be of, in that field."""
    named = [rule.model(raw) for rule in field.metadata if isinstance(rule, ByName)]
    return [model for model in named if model is not None] or _models_in(field.annotation)


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
