"""The hashes by which a study is known, over its resolved form in canonical JSON, without torch or any method."""

import json
from collections.abc import Mapping
from typing import Any

from foundation.files import digest

_UNTRAINED = ("simulation", "evaluation", "title", "demonstration")


def hash_of(value: Any) -> str:
    """SHA-256 of a value in canonical JSON."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")))


def training_hash_of(resolved: Mapping[str, Any]) -> str:
    """SHA-256 over what sites train; ``resolved``: the study with every default written out, as JSON or YAML has it."""
    return hash_of({key: value for key, value in resolved.items() if key not in _UNTRAINED})
