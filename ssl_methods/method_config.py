"""What every method's section of a study has, without torch: each method's own is beside its class."""

from typing import Literal

from pydantic import Field

from foundation.configuration.section import Section
from imaging.config import Relation

Focus = Literal["none", "entropy", "attention"]


class MethodConfig(Section):
    """What every method's section has."""

    name: str = Field(default="", description="The method; `fedpretext methods` lists them.")
    share: tuple[str, ...] | None = Field(
        default=None, description="Parts sent to the server; default: what the method declares as shared."
    )
    focus: Focus = Field(
        default="none",
        description="What crops and masks look at: none; entropy: of 8 places of a crop one is taken that keeps at "
        "least .9 of the local entropy that the best keeps, masks leave at least the usual share of the most varied "
        "patches visible (blocks as far as they allow), and empty background need not be predicted; attention: masks "
        "look at the teacher's attention instead, crops at nothing (ijepa and ibot).",
    )

    @property
    def partner(self) -> Relation | None:
        """Which second image a site gives for each one (``Batch.partners``); None: none."""
        return None

    def members(self) -> dict[str, "MethodConfig"]:
        """What a sum consists of, by what its members are called; nothing for a method that stands by itself."""
        return {}


class TwoViewConfig(MethodConfig):
    """What every method has that compares two views."""

    positives: Literal["view", "patient", "study", "series", "neighbour"] = Field(
        default="view",
        description="Where the second view comes from: the same image, another one of the patient, study or series, "
        "or the slice before or after; all but view harm where the task's label varies within the group.",
    )

    @property
    def partner(self) -> Relation | None:
        """The relation that ``positives`` names."""
        return None if self.positives == "view" else self.positives
