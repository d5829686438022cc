"""What goes with what in a private study: everything else is refused at load, with the reason and the alternatives."""

from federation.algorithms.table import ALGORITHMS, Setting
from federation.federated_evaluation_config import FederatedEvaluationConfig
from federation.privacy.config import PatientPrivacyConfig
from federation.training_config import TrainingConfig
from foundation.errors import StudyError
from ssl_methods.encoders.table import EncoderConfig, has_batch_norm


def check_private(training: TrainingConfig, federated_evaluation: FederatedEvaluationConfig | None) -> None:
    """StudyError where a study's other sections would tell what no noise hides."""
    if training.steps is None:
        raise StudyError(
            "training.epochs: a private study does a fixed number of steps a round, as passes over a site's own "
            "images would tell how many it has: set training.epochs: null and training.steps"
        )
    if federated_evaluation is not None:
        raise StudyError(
            "federated_evaluation: sums over labels are outside what `privacy` promises: leave it "
            "out of a private study"
        )


def check_patient_level(training: TrainingConfig, privacy: PatientPrivacyConfig) -> None:
    """StudyError where the training is not one that privacy by patient can bound patient by patient."""
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
    if training.batch < privacy.images_per_patient:
        raise StudyError(
            f"privacy.images_per_patient {privacy.images_per_patient}: a patient's images are computed at once, "
            f"and training.batch is {training.batch}: raise it, or take fewer images of a patient"
        )
    if training.precision == "bf16":
        raise StudyError("training.precision bf16: privacy by patient is computed in float32; set auto or float32")


def check_no_statistics(encoder: EncoderConfig) -> None:
    """StudyError for an encoder whose running statistics would stay at their start, as no noise covers them."""
    if has_batch_norm(encoder):
        raise StudyError(
            f"encoder {encoder.name!r} has BatchNorm, and site-level privacy noises no running statistics, without "
            "which the encoder is worth nothing: set encoder.norm: group, or choose an encoder without BatchNorm"
        )


def check_algorithm(algorithm: str, setting: Setting) -> None:
    """StudyError for an algorithm that does not go with a setting that the study has."""
    reason = ALGORITHMS[algorithm].refuses.get(setting)
    if reason is not None:
        able = " or ".join(name for name, facts in ALGORITHMS.items() if setting not in facts.refuses)
        raise StudyError(f"algorithm {algorithm!r} {reason}: choose {able}")
