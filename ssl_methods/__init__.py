"""Pretext tasks, one file a paper.

Adding one: its file, its entry in ssl_methods/table.py, one test.
"""

from typing import TYPE_CHECKING, Annotated, Any

from foundation.configuration.by_name import ByName
from foundation.errors import StudyError, nearest
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig, require_dimensions, require_kind, require_norm
from ssl_methods.lookup import INSTALLED, method_type, register_method
from ssl_methods.method_config import MethodConfig
from ssl_methods.table import METHODS

if TYPE_CHECKING:
    from ssl_methods.method import Method

AnyMethodConfig = Annotated[MethodConfig, ByName(lambda: METHODS, lambda name: method_type(name).Config)]


def method_class(config: MethodConfig) -> type["Method"]:
    """The class that a method's section asks for, with what it declares under these settings."""
    return method_type(config.name).declared_for(config)


def usual_training(config: MethodConfig) -> dict[str, Any]:
    """``learning_rate`` and ``betas`` of AdamW where a study names none; of a sum the least that a member has."""
    facts = [METHODS[member.name] for member in config.members().values()] or [METHODS[config.name]]
    first, second = zip(*(each.betas for each in facts), strict=True)
    return {"learning_rate": min(each.learning_rate for each in facts), "betas": (min(first), min(second))}


def check_method(config: MethodConfig, encoder: EncoderConfig, image: ImageConfig) -> None:
    """StudyError when the method does not take such an encoder or image or shares a part it has not got."""
    for member in config.members().values():
        check_method(member, encoder, image)
    method, name = method_class(config), config.name
    require_kind(encoder.name, name, method.encoders)
    require_dimensions(encoder.name, image)
    require_norm(encoder)
    if image.dimensions not in method.dimensions:
        volumes = [other for other, known in METHODS.items() if image.dimensions in known.dimensions]
        raise StudyError(
            f"method {name!r} does not take {image.dimensions}-D images: choose {' or '.join(volumes)}, "
            f"or {'leave image.depth out' if image.dimensions == 3 else 'set image.depth'}"
        )
    if config.focus == "attention" and not method.has_attention_teacher:
        able = [other for other, known in METHODS.items() if known.has_attention_teacher]
        raise StudyError(
            f"method.focus attention needs a masked method with a teacher, which {name!r} is not: choose "
            f"{' or '.join(able)}, or focus entropy"
        )
    if config.share is None:
        return
    offered = [part for part, role in method.parts.items() if role != "derived" and part not in method.private_parts]
    for part in config.share:
        if part not in offered:
            raise StudyError(
                f"method.share {part!r} is no part of {name!r}; there are: {', '.join(offered)}{nearest(part, offered)}"
            )
    if "encoder" not in config.share:
        raise StudyError("method.share leaves out 'encoder', which is what the sites train together: add it")


def build_method(config: MethodConfig, encoder: EncoderConfig, image: ImageConfig, seed: int) -> "Method":
    """The method with fresh weights, the same for the same seed; StudyError when the pieces do not fit."""
    from foundation.randomness import seeded_torch
    from ssl_methods.encoders.timm_encoders import build_encoder

    check_method(config, encoder, image)
    with seeded_torch(seed, "initialisation"):
        return method_class(config)(config, build_encoder(encoder, image), image)


__all__ = [
    "INSTALLED",
    "METHODS",
    "AnyMethodConfig",
    "MethodConfig",
    "build_method",
    "check_method",
    "method_class",
    "method_type",
    "register_method",
    "usual_training",
]
