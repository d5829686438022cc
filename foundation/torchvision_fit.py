"""Makes torchvision importable where its compiled part does not fit the installed torch.

pip pairs torch and torchvision by version (each torchvision asks for one torch), but not by build: torch's CPU build
may stand beside torchvision's CUDA build, as package indexes have no other. Its compiled part then cannot be loaded,
and ``import torchvision`` fails at the shape rules of two operators of that part ("operator torchvision::nms does not
exist"). Nothing here and nothing in timm's encoders uses these (box suppression), so declaring their names is enough:
calling one still fails, importing does not.

As ``python -m foundation.torchvision_fit`` this is a step of the installation (Makefile): where plain ``import timm``
fails for that reason, it puts a copy of this file into the environment, which declares the names whenever torchvision
is imported. Only the standard library is imported above, as every Python of the environment then reads this file.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, cast

BOX_OPERATORS = ("nms", "qnms")
_NAME = "_fedpretext_torchvision_fit"
_CHECK = "import timm, torchvision"


def fit() -> None:
    """Declare torchvision's box operators, unless its compiled part has them or torchvision is there already."""
    if "torchvision" in sys.modules or _compiled_part_loads():
        return
    import torch

    for name in BOX_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _compiled_part_loads() -> bool:
    """Whether torchvision's compiled part can be loaded, or there is none to load (a build without, no torchvision)."""
    found = importlib.util.find_spec("torchvision")
    parts = [] if found is None or found.origin is None else list(Path(found.origin).parent.glob("_C.*"))
    if not parts:
        return True
    import torch

    try:
        cast(Any, torch.ops).load_library(str(parts[0]))
    except OSError:
        return False
    return True


class _Finder:
    """Among Python's finders: finds nothing, but is asked for torchvision first."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Finder]
            fit()


def _failure() -> str:
    """The last line of what ``import timm, torchvision`` says in a Python of its own; empty when it works."""
    tried = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True, cwd=sys.prefix)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


def install() -> None:
    """Check the pair and mend it in this environment where need be, with a line that says so.

    SystemExit where the import fails for another reason, or after mending.
    """
    failure = _failure()
    if "operator torchvision::" in failure:
        folder = Path(sysconfig.get_path("purelib"))
        (folder / f"{_NAME}.py").write_text(Path(__file__).read_text())
        (folder / f"{_NAME}.pth").write_text(f"import {_NAME}\n")
        print("torchvision's compiled part is for another build of torch: its box operators are declared by name only")
        failure = _failure()
    if failure:
        raise SystemExit(f"error: `{_CHECK}` fails here ({failure}): install the torchvision that fits the torch")


if __name__ == _NAME:
    sys.meta_path.insert(0, _Finder)  # read at Python's start, from the .pth file
elif __name__ == "__main__":
    install()
