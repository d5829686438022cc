"""Where a passphrase comes from: a file (a mounted secret, say), or a person who is asked."""

import getpass
from pathlib import Path

from foundation.errors import FedpretextError

ASK = "ask"


def passphrase(source: str | None, what: str, new: bool = False) -> bytes | None:
    """The passphrase for ``what``: None without a source, from a person for "ask" (twice when new), else of a file."""
    if source is None:
        return None
    if source != ASK:
        try:
            found = Path(source).read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise FedpretextError(
                f"{source}: the passphrase of {what} cannot be read ({error.strerror}); give a file, or: {ASK}"
            ) from error
    else:
        found = getpass.getpass(f"Passphrase of {what}: ").encode()
        if new and found != getpass.getpass("The same again: ").encode():
            raise FedpretextError("the two passphrases differ; nothing was written, start again")
    if not found:
        raise FedpretextError(f"the passphrase of {what} is empty; give one, or leave the option out")
    return found
