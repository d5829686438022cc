"""What goes with what in a private study: everything else is refused at load, with the reason and the alternatives."""

from typing import TYPE_CHECKING

from federation.privacy.config import PatientPrivacyConfig
from foundation.errors import StudyError

if TYPE_CHECKING:
    from federation.study import Study

_MEANS = ("fedavg", "fedprox")
"""Algorithms whose server half needs nothing but the mean of the updates."""


def check_privacy(study: "Study") -> None:
    """StudyError where the study's privacy or secure aggregation does not hold with its other sections."""
    if study.privacy is not None:
        _check_private(study)
    if isinstance(study.privacy, PatientPrivacyConfig):
        _check_patients(study, study.privacy)
    elif study.privacy is not None or study.secure_aggregation is not None:
        _check_mean(study)


def _check_private(study: "Study") -> None:
    training = study.training
    if training.steps is None:
        raise StudyError(
            "training.epochs: a private study does a fixed number of steps a round, as passes over a site's own "
            "pictures would tell how many it has: set training.epochs: null and training.steps"
        )
    if study.federated_evaluation is not None:
        raise StudyError(
            "federated_evaluation: sums over labels are outside what `privacy` promises: leave it "
            "out of a private study"
        )


def _check_patients(study: "Study", privacy: PatientPrivacyConfig) -> None:
    from ssl_methods.per_sample import check_per_sample  # builds the encoder: timm, which other studies load without

    training = study.training
    check_per_sample(study.method, study.encoder, study.image)
    for key, wanted, reason in (
        ("accumulate", 1, "a step has privacy.patients_per_step patients, in pieces of training.batch"),
        ("clip", None, "gradients are shortened patient by patient, by privacy.clip"),
        ("compile", False, "each patient's gradient is looked at"),
    ):
        if getattr(training, key) != wanted:
            raise StudyError(
                f"training.{key} {getattr(training, key)}: with privacy by patient {reason}; set it to "
                f"{'null' if wanted is None else str(wanted).lower()}"
            )
    if training.batch < privacy.pictures_per_patient:
        raise StudyError(
            f"privacy.pictures_per_patient {privacy.pictures_per_patient}: a patient's pictures are computed at once, "
            f"and training.batch is {training.batch}: raise it, or take fewer pictures of a patient"
        )
    if training.precision == "bf16":
        raise StudyError("training.precision bf16: privacy by patient is computed in float32; set auto or float32")


def _check_mean(study: "Study") -> None:
    if study.algorithm.name not in _MEANS:
        what = "secure aggregation shows" if study.secure_aggregation is not None else "site-level privacy noises"
        raise StudyError(
            f"algorithm {study.algorithm.name!r} looks at single updates, and {what} only their sum: choose "
            f"{' or '.join(_MEANS)}"
        )
