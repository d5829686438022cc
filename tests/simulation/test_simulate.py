"""A simulated study from end to end, small: its run folder, and what its numbers may and may not depend on."""

from typing import Any


def test_time(finished: Any) -> None:
    print(finished)
