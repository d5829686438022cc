"""What a private study asks of a site's images."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from federation.local_work import local_work
from federation.privacy.config import PatientPrivacyConfig
from foundation.errors import DataError

if TYPE_CHECKING:
    from federation.study import Study


def check_patients(study: "Study", patients: int | None) -> None:
    """DataError where the study's promise to patients cannot be kept here; ``patients`` None: nobody knows how many.

    The bound on delta is of the study's own ``patients`` at load, and here of this site's.
    """
    privacy = study.privacy
    if not isinstance(privacy, PatientPrivacyConfig):
        return
    if patients is None:
        raise DataError(
            f"study {study.name} promises privacy to each patient, and this site's images do not say whose they are: "
            "list them in a manifest with a `patient` column, or leave the site out"
        )
    if privacy.delta > 1 / (10 * patients):
        raise DataError(
            f"this site has {patients} patients, and privacy.delta {privacy.delta:g} is above 1 / (10 x patients), "
            f"{1 / (10 * patients):.2g}: ask the study lead for a smaller delta, or leave the site out"
        )


def fewer_patients(study: "Study", patients: int) -> str:
    """What to tell a site that has fewer patients than the study takes it to have; "" where it has enough."""
    privacy = study.privacy
    if not isinstance(privacy, PatientPrivacyConfig) or patients >= privacy.patients:
        return ""
    return (
        f"this site has {patients} patients, and the study takes it to have {privacy.patients}: its steps are "
        f"{patients / privacy.patients:.0%} of the size that the noise is made for; what is promised to them holds"
    )


def expected_step(study: "Study", images: Collection[int]) -> float | None:
    """Images that a step expects of patients who have ``images`` each; None where steps are not of patients."""
    privacy = study.privacy
    if not isinstance(privacy, PatientPrivacyConfig):
        return None
    return privacy.rate * sum(min(privacy.images_per_patient, count) for count in images)


def work_of_round(study: "Study", images: Collection[int]) -> tuple[int, float]:
    """Steps of a round at a site whose patients have ``images`` each, and images seen, repeats counted.

    In a study that is private by patient the images are what the draws of patients are expected to give.
    """
    work, expected = local_work(study.training, sum(images)), expected_step(study, images)
    return work.steps, work.images if expected is None else work.steps * expected
