"""Errors for people: a wrong name is answered with those there are and the nearest one."""

import pytest

from foundation import errors
from foundation.errors import FedpretextError, StudyError, look_up, nearest


def test_look_up_finds() -> None:
    assert look_up({"mae": 1, "simclr": 2}, "simclr", "method") == 2


def test_look_up_lists_what_there_is_and_the_nearest() -> None:
    with pytest.raises(StudyError) as caught:
        look_up({"simclr": 2, "mae": 1}, "simcrl", "method")
    assert str(caught.value) == "method 'simcrl' is not known; there are: mae, simclr; did you mean 'simclr'?"


def test_no_guess_where_nothing_is_near() -> None:
    assert nearest("zzz", ["mae", "simclr"]) == ""
    with pytest.raises(StudyError, match=r"^method 'zzz' is not known; there are: mae, simclr$"):
        look_up({"mae": 1, "simclr": 2}, "zzz", "method")


def test_nearest_of_several() -> None:
    assert nearest("mask_ratoi", ["decoder_width", "mask_ratio", "norm_pixels"]) == "; did you mean 'mask_ratio'?"


def test_one_root() -> None:
    """The command line catches one class and shows one line."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 6
    assert all(issubclass(kind, FedpretextError) for kind in kinds)
