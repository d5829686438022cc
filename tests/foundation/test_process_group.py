"""A program's options from keywords."""

from pathlib import Path

from foundation.process_group import options


def test_options_of_a_program() -> None:
    given = options(root_certificates=Path("/kit/ca.crt"), port=9092, insecure=True)
    assert given == ["--root-certificates", "/kit/ca.crt", "--port", "9092", "--insecure"]
