"""What every section of a configuration file is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a study file: unknown keys are errors, values do not change after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
