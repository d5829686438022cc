"""The section ``secure_aggregation`` of a study."""

from pydantic import Field

from foundation.configuration.section import Section


class SecureAggregationConfig(Section):
    """The server learns the sum of the sites' updates and no single one."""

    largest_value: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Largest number (absolute) in an update that can be encoded; a site with a larger one does not "
        "send its update. The smaller, the finer the encoding.",
    )
    largest_count: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Images from which on sites count alike: a site is weighted by its images, at most so many. "
        "Private studies weight all sites alike.",
    )
