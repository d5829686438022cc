"""The section ``federated_evaluation`` of a study (federation/federated_evaluation.py has what travels for it)."""

from typing import Annotated

from pydantic import Field, field_validator

from foundation.configuration.section import Section

ClassName = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=80)]


class FederatedEvaluationConfig(Section):
    """A logistic probe over all sites' labels, which stay where they are."""

    label: str = Field(
        default="label", min_length=1, description="Column of each site's manifest with the class; may have gaps."
    )
    classes: tuple[ClassName, ...] = Field(
        min_length=2, max_length=100, description="All classes there are, in order; of two the second is the positive."
    )
    test_share: float = Field(
        default=0.2,
        gt=0.0,
        lt=1.0,
        description="Share of a site's labelled patients on whom its figures are computed. They are drawn at the site, "
        "unless its manifest has a column `role`, and are never pretrained on.",
    )
    strength: float = Field(
        default=0.01,
        gt=0.0,
        description="C of the probe, the same for every encoder; about what a central probe picks on validation "
        "patients with some hundred images. Ten times as much takes three times as many gradients.",
    )
    steps: int = Field(
        default=500, ge=1, le=100_000, description="Questions about one encoder that a site answers at most."
    )
    histogram: bool = Field(
        default=False,
        description="Also ask for histograms of scores, from which the AUROC over all sites' images is computed.",
    )

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in classes:
            if classes.count(name) > 1:
                raise ValueError(f"class {name!r} is there twice; name each once")
        return classes
