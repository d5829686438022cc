"""Pretext tasks, one file a paper.

Adding one: its file, its name in ``METHODS`` and in ``AnyMethodConfig``, one test.
"""

from typing import Annotated, Any, cast

from pydantic import Field

from foundation.errors import StudyError, look_up, nearest
from foundation.randomness import seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders import EncoderConfig, build_encoder, require_kind
from ssl_methods.ijepa import IJEPA, IJEPAConfig
from ssl_methods.mae import MAE, MAEConfig
from ssl_methods.method import Method, MethodConfig
from ssl_methods.simclr import SimCLR, SimCLRConfig

METHODS: dict[str, type[Method]] = {"simclr": SimCLR, "mae": MAE, "ijepa": IJEPA}
AnyMethodConfig = Annotated[SimCLRConfig | MAEConfig | IJEPAConfig, Field(discriminator="name")]


def method_class(config: MethodConfig) -> type[Method]:
    """The class that a method's section asks for."""
    return look_up(METHODS, cast(Any, config).name, "method")


def check_method(config: MethodConfig, encoder: EncoderConfig) -> None:
    """StudyError when the method does not take this kind of encoder or shares a part it has not got."""
    method, name = method_class(config), cast(Any, config).name
    require_kind(encoder.name, name, method.encoders)
    if config.share is None:
        return
    offered = [part for part, role in method.parts.items() if role != "derived"]
    for part in config.share:
        if part not in offered:
            raise StudyError(
                f"method.share {part!r} is no part of {name!r}; there are: {', '.join(offered)}{nearest(part, offered)}"
            )
    if "encoder" not in config.share:
        raise StudyError("method.share leaves out 'encoder', which is what the sites train together: add it")


def build_method(config: MethodConfig, encoder: EncoderConfig, image: ImageConfig, seed: int) -> Method:
    """The method with fresh weights, the same for the same seed; StudyError when the pieces do not fit."""
    check_method(config, encoder)
    with seeded_torch(seed, "initialisation"):
        return method_class(config)(config, build_encoder(encoder, image), image)


__all__ = [
    "METHODS",
    "AnyMethodConfig",
    "Method",
    "MethodConfig",
    "build_method",
    "check_method",
    "method_class",
]
