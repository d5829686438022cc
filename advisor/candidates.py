"""The methods that the advisor chooses from: all there are, and two sums."""

from functools import cached_property
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter

from advisor.evidence import DATA
from ssl_methods import METHODS, AnyMethodConfig, MethodConfig, method_class
from ssl_methods.method import Method

_SECTION: TypeAdapter[Any] = TypeAdapter(AnyMethodConfig)
TWO_VIEWS = 2.0
"""Passes through the encoder for each image of a method that compares two views."""


class Candidate(BaseModel):
    """A method, or a sum of ``members``. passes: as benchmarks/throughput.py counts. needs: what images come with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    members: tuple[str, ...] = ()
    passes: float = TWO_VIEWS
    needs: str = ""

    @property
    def name(self) -> str:
        """The method's name, with its members where it is a sum."""
        return f"{self.method} ({' + '.join(self.members)})" if self.members else self.method

    @property
    def section(self) -> dict[str, Any]:
        """The study's section ``method:``, without defaults."""
        members = [{"weight": 1.0, "method": {"name": name}} for name in self.members]
        return {"name": self.method, **({"methods": members} if members else {})}

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
        """As ``fedpretext methods`` has it."""
        return METHODS[self.method].family

    @cached_property
    def groups(self) -> frozenset[str]:
        """All names by which a finding may mean it."""
        other = {"with negatives": self.declared.fewest_patients > 1, "more than two passes": self.passes > TWO_VIEWS}
        return frozenset({self.name, self.family, *(group for group, is_in in other.items() if is_in)})


_KNOWN = tuple(Candidate.model_validate(each) for each in DATA["candidates"])
CANDIDATES = (*_KNOWN, *(Candidate(method=name) for name in METHODS if name not in {each.method for each in _KNOWN}))
