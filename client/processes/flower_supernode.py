"""Flower's SuperNode as a program that ends when its work does, however that ends.

Flower's own goes on as an empty shell after an error that it does not expect: its HTTP server has a thread that nobody
stops then, and a heartbeat that failed is not missed. A site would look alive, and never be asked again.
"""

import os
import sys
import threading
import traceback
from importlib.metadata import entry_points


def main() -> None:
    """Run flower-supernode with this program's arguments."""
    (program,) = entry_points(group="console_scripts", name="flower-supernode")
    threading.excepthook = _thread_failed
    code = 1
    try:
        program.load()()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    traceback.print_exception(failed.exc_value)
    _end(1)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
