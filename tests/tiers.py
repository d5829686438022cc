"""What of a test is left to a later tier, where the rest stays in the quick one (CONTRIBUTING.md has the tiers)."""

from functools import partial
from typing import Any

import pytest
from hypothesis import settings

slow = partial(pytest.param, marks=pytest.mark.slow)
soak = partial(pytest.param, marks=pytest.mark.soak)


def examples(thorough: int, **others: Any) -> settings:
    """How many examples of a property `make test-all` tries, where 100 would take long; others in proportion."""
    return settings(max_examples=max(1, thorough * settings().max_examples // 100), **others)
