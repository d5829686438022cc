"""Starting weights of a simulated study: found on this machine, kept in the run folder, never in a site's."""

from pathlib import Path

from torch import Tensor

from federation.records import weights_digest
from federation.study import Study
from foundation.errors import StudyError
from foundation.files import read_json, write_json
from foundation.messages import logger
from foundation.tensor_files import load_tensors, save_tensors
from simulation.config import SimulationConfig
from ssl_methods import build_method
from ssl_methods.encoders.starting_weights import Fitted, file_digest, read_weights, start_from, timm_weights

WEIGHTS_NAME = "weights.safetensors"


def identified(config: SimulationConfig, study: Study) -> SimulationConfig:
    """The section with the SHA-256 of its starting weights, so that a run is known by what it started from.

    StudyError when the section states one and the weights have another.
    """
    if config.weights is None:
        return config
    if config.weights == "timm":
        found = weights_digest(timm_weights(study.encoder.name))
    else:
        found = file_digest(config.weights)
    if config.weights_sha256 not in (None, found):
        raise StudyError(
            f"simulation.weights {config.weights}: its SHA-256 is {found[:16]}..., but simulation.weights_sha256 is "
            f"{str(config.weights_sha256)[:16]}...; give the file that was meant, or leave weights_sha256 out"
        )
    return config.model_copy(update={"weights_sha256": found})


def source_of(config: SimulationConfig) -> str:
    """The starting weights in words: a file's name without its folder."""
    return config.weights.name if isinstance(config.weights, Path) else str(config.weights)


def inspect_weights(config: SimulationConfig, study: Study) -> tuple[dict[str, Tensor], Fitted]:
    """The tensors of the section's weights, and how they fit the study's encoder; errors as ``fit_weights``."""
    assert config.weights is not None
    tensors = timm_weights(study.encoder.name) if config.weights == "timm" else read_weights(config.weights)
    method = build_method(study.method, study.encoder, study.image, study.seed)
    return tensors, start_from(method, tensors, source_of(config))


def keep_weights(folder: Path, config: SimulationConfig, study: Study) -> None:
    """Copy the starting weights into the run folder and say how they fit; nothing where that is done already.

    All arms and every resume read the copy. The line stands in ``run.json`` too, for the report.
    """
    if config.weights is None or (folder / WEIGHTS_NAME).exists():
        return
    tensors, fitted = inspect_weights(config, study)
    line = fitted.line(source_of(config))
    logger.info(line)
    write_json(folder / "run.json", read_json(folder / "run.json") | {"starting_weights": line})
    save_tensors(folder / WEIGHTS_NAME, tensors)


def kept_weights(folder: Path) -> dict[str, Tensor]:
    """The run folder's copy; RunError when it is missing or damaged."""
    return load_tensors(folder / WEIGHTS_NAME)[0]
