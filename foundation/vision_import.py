"""timm, imported when it is first used, and importable whatever build of torchvision lies beside it.

``vision_import.timm``, ``.VisionTransformer`` and ``.Block`` import timm when they are first read: commands and studies
that build no network do without its second. timm imports torchvision, and two things are in the way of that:

- where torchvision's compiled part does not fit the installed torch (pip pairs torch's CPU build with torchvision's
  CUDA build), its import fails: foundation/torchvision_fit.py mends that;
- torchvision and timm import torch._dynamo, two seconds of CPU, for ``torch.compile`` alone. It is put off until
  something asks for it.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from foundation.torchvision_fit import fit

if TYPE_CHECKING:
    import timm
    from timm.models.vision_transformer import Block, VisionTransformer

_PLACES = {
    "timm": "timm",
    "Block": "timm.models.vision_transformer.Block",
    "VisionTransformer": "timm.models.vision_transformer.VisionTransformer",
}
__all__ = ["Block", "VisionTransformer", "timm"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    fit()
    with _compiler_put_off():
        importlib.import_module("timm.models.vision_transformer")
    for place, path in _PLACES.items():
        module, _, member = path.rpartition(".")
        globals()[place] = getattr(sys.modules[module], member) if module else sys.modules[path]
    return globals()[name]


@contextmanager
def _compiler_put_off() -> Iterator[None]:
    """Imports of torch._dynamo inside get what they need at once: a function that imports it when it is called."""
    import torch

    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    utils: Any = ModuleType(name)
    utils.is_compile_supported = _is_compile_supported
    compiler: Any = torch.compiler
    disable = compiler.disable
    sys.modules[name] = utils
    compiler.disable = cast(Any, torch)._disable_dynamo  # the same decorator, as torch's own optimisers put it off
    try:
        yield
    finally:
        compiler.disable = disable
        del sys.modules[name]


def _is_compile_supported(device: Any) -> Any:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device)
