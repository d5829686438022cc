"""The methods that the advisor chooses from, and what each is by the words in which findings speak."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

from pydantic import TypeAdapter

from ssl_methods import METHODS, AnyMethodConfig, MethodConfig, method_class
from ssl_methods.method import Method

_SECTION: TypeAdapter[Any] = TypeAdapter(AnyMethodConfig)
Trait = Literal["joint embedding", "masked", "spatial prediction", "restoring", "innate", "combined"]


@dataclass(frozen=True)
class Candidate:
    """A method with the settings it is suggested with.

    passes: through the encoder for each picture, as benchmarks/throughput.py counts them on a ViT. needs: what the
    pictures must come with.
    """

    method: str
    traits: frozenset[Trait]
    passes: float
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""

    @property
    def name(self) -> str:
        """The method's name, with its members where it is a sum."""
        return self.method if self.members == (self.method,) else f"{self.method} ({' + '.join(self.members)})"

    @property
    def members(self) -> tuple[str, ...]:
        """The methods that are trained: one, or those of a sum."""
        return tuple(member["method"]["name"] for member in self.options.get("methods", ())) or (self.method,)

    @property
    def section(self) -> dict[str, Any]:
        """The study's section ``method:``, without defaults."""
        return {"name": self.method, **self.options}

    @cached_property
    def config(self) -> MethodConfig:
        """The section, checked."""
        return cast(MethodConfig, _SECTION.validate_python(self.section))

    @cached_property
    def declared(self) -> type[Method]:
        """The class whose declarations hold: dimensions, encoders, per-sample, fewest patients."""
        return method_class(self.config)

    @property
    def family(self) -> str:
        """One of the five families."""
        return METHODS[self.method].family


def _of(method: str, passes: float, *traits: Trait, needs: str = "") -> Candidate:
    return Candidate(method, frozenset(traits), passes, needs=needs)


def _sum(passes: float, traits: tuple[Trait, ...], *members: str) -> Candidate:
    options = {"methods": [{"weight": 1.0, "method": {"name": name}} for name in members]}
    return Candidate("combine", frozenset((*traits, "combined")), passes, options)


CANDIDATES: tuple[Candidate, ...] = (
    _of("mae", 1.0, "masked"),
    _of("simclr", 2.0, "joint embedding"),
    _of("ijepa", 1.33, "spatial prediction"),
    _of("vicreg", 2.0, "joint embedding"),
    _of("dino", 3.8, "joint embedding"),
    _of("ibot", 3.8, "joint embedding", "masked", "combined"),
    _of("swin_unetr", 3.0, "joint embedding", "masked", "combined"),
    _of("simmim", 1.0, "masked"),
    _of("barlow_twins", 2.0, "joint embedding"),
    _of("simsiam", 2.0, "joint embedding"),
    _of("byol", 2.67, "joint embedding"),
    _of("moco_v2", 1.33, "joint embedding"),
    _of("moco_v3", 2.67, "joint embedding"),
    _of("swav", 2.84, "joint embedding"),
    _sum(3.0, ("masked", "joint embedding"), "mae", "simclr"),
    _sum(2.33, ("masked", "spatial prediction"), "mae", "ijepa"),
    _of("models_genesis", 1.0, "restoring"),
    _of("slice_order", 2.0, "innate", needs="the columns series and position, and several pictures of each patient"),
    _of("rotation", 4.0, "innate"),
    _of("relative_patch", 0.56, "innate"),
    _of("jigsaw", 0.56, "innate"),
    _of("autoencoder", 1.0, "restoring"),
)
"""Of methods that weigh the same, the first is taken: those with the fewest moving parts stand first."""
