"""Pretext tasks, one file a paper.

Adding one: its file, its name and section in ssl_methods/table.py, one test.
"""

from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from foundation.errors import StudyError, look_up, nearest
from foundation.randomness import seeded_torch
from foundation.yaml_files import checked
from imaging.config import ImageConfig
from ssl_methods.combine import Combine, CombineConfig
from ssl_methods.encoders import EncoderConfig, build_encoder, require_dimensions, require_kind
from ssl_methods.method import Method, MethodConfig
from ssl_methods.table import SINGLE_METHODS, SingleMethodConfig

METHODS: dict[str, type[Method]] = {**SINGLE_METHODS, "combine": Combine}
INSTALLED = frozenset(METHODS)
"""Names that every site of this version knows; others are of this process alone (``register_method``)."""
_Method = TypeVar("_Method", bound=Method)


def _section(value: Any, installed: ValidatorFunctionWrapHandler) -> Any:
    """A section ``method``, by its name: of a registered method or of an installed one."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name in METHODS and name not in INSTALLED:
        return checked(METHODS[name].Config, value, "method")
    return installed(value)


AnyMethodConfig = Annotated[
    SerializeAsAny[SingleMethodConfig | CombineConfig], Field(discriminator="name"), WrapValidator(_section)
]


def register_method(method: type[_Method]) -> type[_Method]:
    """Make a method of one's own known in this process, by the name in its ``Config``; a class decorator.

    For simulations in this process: a site and the command line know what is installed, and refuse a study with any
    other name. To register a class of the same name again replaces it. StudyError where it is not declared in full, or
    an installed method has the name.
    """
    lacking = [name for name in _DECLARED if not hasattr(method, name)]
    if lacking:
        raise StudyError(f"{method.__name__}: does not declare {', '.join(lacking)}; see ssl_methods.method.Method")
    field = method.Config.model_fields.get("name")
    name = None if field is None else field.default
    if not isinstance(name, str) or name in INSTALLED:
        raise StudyError(
            f"{method.Config.__name__}.name is {name!r}: give it a default of its own that no installed method has, "
            'such as name: Literal["mine"] = "mine"'
        )
    METHODS[name] = method
    return method


_DECLARED = ("Config", "summary", "paper", "family", "per_sample", "encoders", "parts")


def method_class(config: MethodConfig) -> type[Method]:
    """The class that a method's section asks for."""
    return look_up(METHODS, cast(Any, config).name, "method").declared_for(config)


def check_method(config: MethodConfig, encoder: EncoderConfig, image: ImageConfig) -> None:
    """StudyError when the method does not take such an encoder or picture or shares a part it has not got."""
    if isinstance(config, CombineConfig):
        for member in config.methods:
            check_method(member.method, encoder, image)
    method, name = method_class(config), cast(Any, config).name
    require_kind(encoder.name, name, method.encoders)
    require_dimensions(encoder.name, image)
    if image.dimensions not in method.dimensions:
        volumes = [other for other, known in METHODS.items() if image.dimensions in known.dimensions]
        raise StudyError(
            f"method {name!r} does not take {image.dimensions}-D pictures: choose {' or '.join(volumes)}, "
            f"or {'leave image.depth out' if image.dimensions == 3 else 'set image.depth'}"
        )
    if config.focus == "attention" and not method.attends:
        able = [other for other, known in METHODS.items() if known.attends]
        raise StudyError(
            f"method.focus attention needs a masked method with a teacher, which {name!r} is not: choose "
            f"{' or '.join(able)}, or focus entropy"
        )
    if config.share is None:
        return
    offered = [part for part, role in method.parts.items() if role != "derived" and part not in method.never_shared]
    for part in config.share:
        if part not in offered:
            raise StudyError(
                f"method.share {part!r} is no part of {name!r}; there are: {', '.join(offered)}{nearest(part, offered)}"
            )
    if "encoder" not in config.share:
        raise StudyError("method.share leaves out 'encoder', which is what the sites train together: add it")


def build_method(config: MethodConfig, encoder: EncoderConfig, image: ImageConfig, seed: int) -> Method:
    """The method with fresh weights, the same for the same seed; StudyError when the pieces do not fit."""
    check_method(config, encoder, image)
    with seeded_torch(seed, "initialisation"):
        return method_class(config)(config, build_encoder(encoder, image), image)


__all__ = [
    "INSTALLED",
    "METHODS",
    "AnyMethodConfig",
    "Method",
    "MethodConfig",
    "build_method",
    "check_method",
    "method_class",
    "register_method",
]
