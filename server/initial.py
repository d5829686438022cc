"""Where a study starts: the server's first global weights. No site ever sees where they come from."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from federation.algorithms.algorithm import Weights
from federation.study import Study
from foundation.errors import RunError
from foundation.tensor_files import load_tensors, save_tensors
from ssl_methods import build_method
from ssl_methods.encoders.starting_weights import Fitted, start_from

INITIAL_NAME = "initial.safetensors"


def write_initial(folder: Path, study: Study, tensors: Mapping[str, Tensor], source: str) -> Fitted:
    """Fit ``tensors`` into the study's encoder and put the first global weights into the server's ``folder``.

    All else (projector, decoder, tensors that ``tensors`` lacks) is as the study's seed draws it.
    """
    method = build_method(study.method, study.encoder, study.image, study.seed)
    fitted = start_from(method, tensors, source)
    save_tensors(folder / INITIAL_NAME, method.shared_state())
    return fitted


def initial_weights(study: Study, folder: Path) -> Weights:
    """The weights of the first round: those in ``folder`` if there are any, else fresh ones of the study's seed.

    RunError when those in the folder are not of this study's model.
    """
    shared = build_method(study.method, study.encoder, study.image, study.seed).shared_state()
    fresh = {name: value.clone() for name, value in shared.items()}
    path = folder / INITIAL_NAME
    if not path.exists():
        return fresh
    given, _ = load_tensors(path)
    if {name: value.shape for name, value in given.items()} != {name: value.shape for name, value in fresh.items()}:
        raise RunError(f"{path}: holds other tensors than this study's model has; make it again, or remove it")
    return given
