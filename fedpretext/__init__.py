"""Federated self-supervised pretraining of medical image encoders: ``import fedpretext as fp`` for a notebook.

Each name is imported where it is first used, as torch takes seconds.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.advise import advise
    from evaluation.export.load import load_encoder
    from evaluation.judge import evaluate
    from federation.algorithms import ALGORITHMS
    from federation.study import load_study
    from simulation.simulate import pretrain, simulate
    from ssl_methods import METHODS
    from ssl_methods.encoders.table import ENCODERS

    __version__: str

_ROOMS = {
    "simulate": "simulation.simulate",
    "pretrain": "simulation.simulate",
    "evaluate": "evaluation.judge",
    "load_study": "federation.study",
    "load_encoder": "evaluation.export.load",
    "advise": "advisor.advise",
    "METHODS": "ssl_methods",
    "ALGORITHMS": "federation.algorithms",
    "ENCODERS": "ssl_methods.encoders.table",
}
__all__ = [
    "ALGORITHMS",
    "ENCODERS",
    "METHODS",
    "__version__",
    "advise",
    "evaluate",
    "load_encoder",
    "load_study",
    "pretrain",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("fedpretext")
    if name not in _ROOMS:
        raise AttributeError(f"module 'fedpretext' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
