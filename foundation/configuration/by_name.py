"""Sections of a study of which there are many, told apart by ``name``: only the one that is named is imported."""

import importlib
from collections.abc import Callable, Collection
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


def imported(path: str) -> Any:
    """What a table names as ``module.Class``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class ByName:
    """Annotation of a field that holds one of many models: ``Annotated[Base, ByName(names, model_of)]``.

    It stands for pydantic's union with ``name`` as discriminator, and gives the same errors, but ``model_of(name)`` is
    called only for the one of ``names()`` that a value has.
    """

    def __init__(self, names: Callable[[], Collection[str]], model_of: Callable[[str], type[BaseModel]]) -> None:
        self._names, self._model_of = names, model_of

    def model(self, value: Any) -> type[BaseModel] | None:
        """The model that ``value`` asks for, if it names one."""
        name = value.get("name") if isinstance(value, dict) else None
        return self._model_of(name) if isinstance(name, str) and name in self._names() else None

    def __get_pydantic_core_schema__(self, base: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> BaseModel:
            if isinstance(value, base):
                return value
            model = self.model(value)
            if model is not None:
                return model.model_validate(value)
            if not isinstance(value, dict):
                raise PydanticKnownError("model_attributes_type")
            if "name" not in value:
                raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
            known = ", ".join(f"'{name}'" for name in self._names())
            wrong = {"discriminator": "'name'", "tag": str(value["name"]), "expected_tags": known}
            raise PydanticKnownError("union_tag_invalid", wrong)

        # Without a serialiser pydantic writes a value by its own class, not by the base that the annotation names.
        return core_schema.no_info_plain_validator_function(validate)
