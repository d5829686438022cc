"""The section ``privacy`` of a study: whose presence the weights hide, and how well."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from foundation.configuration.section import Section

_Epsilon = Annotated[float, Field(gt=0, le=1000)]
_Delta = Annotated[float, Field(gt=0, lt=0.01)]


class PatientPrivacyConfig(Section):
    """Patient-level differential privacy: noise at the site, in every step (Abadi et al. 2016, with patients as units).

    Two data sets are neighbours when one is the other without one patient and all that patient's images. Every number
    here is public and the same for all sites, so that the study file alone says what is promised: how many patients a
    site really has changes neither noise nor promise.
    """

    unit: Literal["patient"] = "patient"
    epsilon: _Epsilon = Field(
        description="What the whole study may cost a patient, at `delta`; the noise follows from it. Under 1 is "
        "strong, above 10 a weak bound; attacks are measured beside it either way."
    )
    delta: _Delta = Field(
        default=1e-5,
        description="The probability that epsilon does not hold; at most 1 / (10 x patients), of the study's "
        "`patients` and of each site's own.",
    )
    patients: int = Field(
        ge=2,
        description="Patients that a site is taken to have; public. A site with more has larger steps, one with fewer "
        "smaller ones; take a round number near the smallest site's.",
    )
    patients_per_step: int = Field(
        ge=1,
        description="Patients that a step expects to see at a site of `patients`: each takes part by a throw of its "
        "own, with probability patients_per_step / patients. Large steps drown less in the noise.",
    )
    images_per_patient: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Images that a patient who takes part gives to a step, drawn anew each time (all, where there "
        "are fewer); the mean of their losses counts.",
    )
    clip: float = Field(
        default=1.0, gt=0, description="Longest gradient (L2 norm) of one patient; longer ones are shortened to it."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.patients_per_step > self.patients:
            raise ValueError(
                f"patients_per_step {self.patients_per_step}: at most `patients`, which is {self.patients}: a step "
                "cannot expect more patients than a site has"
            )
        if self.delta > 1 / (10 * self.patients):
            raise ValueError(
                f"delta {self.delta:g} with {self.patients} patients: at most 1 / (10 x patients), "
                f"{1 / (10 * self.patients):.1e}, or giving one patient's data away whole would be within the promise"
            )
        return self

    @property
    def rate(self) -> float:
        """The probability with which a patient takes part in a step."""
        return self.patients_per_step / self.patients


class SitePrivacyConfig(Section):
    """Site-level differential privacy: a site's whole update is shortened to ``clip``, and the sum is noised.

    Two federations are neighbours when one is the other without one site (McMahan et al. 2018, with sites as units).
    The server adds the noise, and is trusted to; with `secure_aggregation` the sites do, and nobody is.
    """

    unit: Literal["site"] = "site"
    epsilon: _Epsilon = Field(
        description="What the whole study may cost a site, at `delta`; the noise follows from it."
    )
    delta: _Delta = Field(
        default=1e-3, description="The probability that epsilon does not hold; at most 1 / (10 x sites)."
    )
    sites: int = Field(
        ge=2, description="Sites that take part, public: a round needs so many updates less those that may be missing."
    )
    clip: float = Field(default=1.0, gt=0, description="Longest update (L2 norm over all its parameters) of one site.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.delta > 1 / (10 * self.sites):
            raise ValueError(
                f"delta {self.delta:g} with {self.sites} sites: at most 1 / (10 x sites), {1 / (10 * self.sites):.1e}"
            )
        return self


AnyPrivacyConfig = Annotated[PatientPrivacyConfig | SitePrivacyConfig, Field(discriminator="unit")]
