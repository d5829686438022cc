"""From a method's name to its class, and methods of one's own beside the installed ones."""

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from foundation.configuration.by_name import imported
from foundation.errors import StudyError, look_up
from ssl_methods.table import METHODS, MethodFacts

if TYPE_CHECKING:
    from ssl_methods.method import Method

INSTALLED = frozenset(METHODS)
"""Names that every site of this version knows; others are of this process alone."""
_OWN: dict[str, type["Method"]] = {}
_Method = TypeVar("_Method", bound="Method")


def register_method(method: type[_Method]) -> type[_Method]:
    """Make a method of one's own known in this process, by the name in its ``Config``; a class decorator.

    For simulations in this process: a site and the command line know what is installed, and refuse a study with any
    other name. To register a class of the same name again replaces it. StudyError where it is not declared in full, or
    an installed method has the name.
    """
    declared = ["Config", *(fact.name for fact in fields(MethodFacts) if fact.name != "path")]
    lacking = [name for name in declared if not hasattr(method, name)]
    if lacking:
        raise StudyError(f"{method.__name__}: does not declare {', '.join(lacking)}; see ssl_methods.method.Method")
    name = method.Config.model_fields["name"].default
    if not name or name in INSTALLED:
        raise StudyError(
            f"{method.Config.__name__}.name is {name!r}: give it a default of its own that no installed method has, "
            'such as name: Literal["mine"] = "mine"'
        )
    facts = {fact: getattr(method, fact) for fact in declared[1:]}
    METHODS[name], _OWN[name] = MethodFacts(f"{method.__module__}.{method.__qualname__}", **facts), method
    return method


def method_type(name: str) -> type["Method"]:
    """The class of the method ``name``, imported; StudyError where there is none."""
    facts = look_up(METHODS, name, "method")
    found: type[Method] = _OWN.get(name) or imported(facts.path)
    return found
