"""Makes torchvision importable where its compiled part does not fit the installed torch.

pip pairs torch and torchvision by version (each torchvision asks for one torch), but not by build: torch's CPU build
may stand beside torchvision's CUDA build, as a package index may have no other. The compiled part then cannot be loaded
and ``import torchvision`` fails at the shape rules of two of its operators ("operator torchvision::nms does not
exist"). Nothing here and nothing in timm's encoders uses these (box suppression), so declaring their names is enough:
calling one still fails, importing does not.

``python -m foundation.torchvision_fit`` is a step of the installation (Makefile): where plain ``import timm`` fails for
that reason, it puts a copy of this file into the environment, which declares the names whenever torchvision is
imported. Every Python of that environment then reads this file as it starts: it imports nothing before it must.
"""

import sys

BOX_OPERATORS = ("nms", "qnms")
_NAME = "_fedpretext_torchvision_fit"
_CHECK = "import timm, torchvision"


def fit() -> None:
    """Declare torchvision's box operators, unless its compiled part has them or torchvision is imported already."""
    if "torchvision" in sys.modules or _compiled_part_loads():
        return
    import torch

    for name in BOX_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _compiled_part_loads() -> bool:
    """Whether torchvision's compiled part can be loaded; also where there is none to load."""
    from importlib.util import find_spec
    from pathlib import Path
    from typing import Any, cast

    found = find_spec("torchvision")
    parts = [] if found is None or found.origin is None else list(Path(found.origin).parent.glob("_C.*"))
    if not parts:
        return True
    import torch

    try:
        cast(Any, torch.ops).load_library(str(parts[0]))
    except OSError:
        return False
    return True


class Finder:
    """Among Python's finders: finds nothing, but is asked for torchvision first."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Fit torchvision before anybody finds it."""
        if name == "torchvision":
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not cls]
            fit()


def failure() -> str:
    """The last line of what ``import timm, torchvision`` says in a Python of its own; empty when it works."""
    import subprocess

    # -I: neither this folder nor PYTHONPATH may lend it a module
    tried = subprocess.run([sys.executable, "-I", "-c", _CHECK], capture_output=True, text=True)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


def install() -> None:
    """Check the pair and mend it in this environment where need be, with a line that says so.

    SystemExit where the import fails for another reason, or after mending.
    """
    import sysconfig
    from pathlib import Path

    said = failure()
    if "operator torchvision::" in said:
        folder = Path(sysconfig.get_path("purelib"))
        (folder / f"{_NAME}.py").write_text(Path(__file__).read_text())
        (folder / f"{_NAME}.pth").write_text(f"import {_NAME}\n")
        print("torchvision's compiled part is for another build of torch: its box operators are declared by name only")
        said = failure()
    if said:
        raise SystemExit(f"error: `{_CHECK}` fails here ({said}): install the torchvision that fits the torch")


if __name__ == _NAME:
    sys.meta_path.insert(0, Finder)  # by the .pth file, as Python starts
elif __name__ == "__main__":
    install()
