"""What ``--set key.sub=value`` changes in a file's raw content before it is checked."""

from typing import Any

import yaml

from foundation.errors import StudyError


def override(raw: dict[str, Any], setting: str) -> None:
    """Change a raw study as ``key.sub=value`` says, the value in YAML; StudyError in one line."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise StudyError(f"--set {setting!r}: write key=value, for example --set rounds.count=5")
    *parents, last = key.split(".")
    place: Any = raw
    for parent in parents:
        entry = _entry(place, parent, setting)
        if isinstance(place, dict) and place.get(entry) is None:
            place[entry] = {}
        place = place[entry]
        if not isinstance(place, dict | list):
            raise StudyError(f"--set {setting!r}: {parent!r} is a value, not a section")
    try:
        place[_entry(place, last, setting)] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"--set {setting!r}: the value is not valid YAML") from error


def _entry(place: dict[str, Any] | list[Any], key: str, setting: str) -> Any:
    """``key`` as a section takes it, or as the number, from 0, that a list takes."""
    if isinstance(place, dict):
        return key
    if key.isdigit() and int(key) < len(place):
        return int(key)
    raise StudyError(f"--set {setting!r}: {key!r} is none of a list's {len(place)} entries, counted from 0")
