"""Counts, times, sizes and other people's words, as a person reads them in a terminal."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def counted(number: int, one: str, many: str = "") -> str:
    """``1 image``, ``1,234 images``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def span(seconds: float) -> str:
    """A length of time: ``45 s``, ``3 min``, ``2 h 10 min``, ``3 d 4 h``; below zero (a clock that was set) ``0 s``."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    large, small, units = (_DAY, _HOUR, ("d", "h")) if whole >= _DAY else (_HOUR, _MINUTE, ("h", "min"))
    rest = whole % large // small
    return f"{whole // large} {units[0]}" + (f" {rest} {units[1]}" if rest else "")


def mebibytes(count: int) -> str:
    """A number of bytes in MiB, without the unit."""
    return f"{count / 2**20:,.1f}"


def one_line(text: str) -> str:
    """A text, perhaps another party's, without what could break a line or move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def words(text: str) -> tuple[str, ...]:
    """The words of a text: a long list of names, written without quotes and commas."""
    return tuple(text.split())
