"""The study file: the one place that decides what is trained. Composes the rooms' own sections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from evaluation.config import EvaluationConfig
from federation.algorithms import AnyAlgorithmConfig, build_algorithm
from federation.federated_evaluation_config import FederatedEvaluationConfig
from federation.privacy.config import AnyPrivacyConfig, PatientPrivacyConfig
from federation.privacy.rules import check_algorithm, check_no_statistics, check_patient_level, check_private
from federation.secure_aggregation.config import SecureAggregationConfig
from federation.study_hash import hash_of, training_hash_of
from federation.training_config import RoundsConfig, TrainingConfig
from foundation.configuration.overrides import override
from foundation.configuration.section import Section
from foundation.configuration.yaml_files import checked, read_yaml
from foundation.files import AnyPath
from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, check_method, usual_training
from ssl_methods.encoders.table import EncoderConfig

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Study(Section):
    """One study. `simulation` is the only section with paths, and a client refuses to act on it."""

    name: _Name = Field(description="Lower-case letters, digits and dashes; names the run folder.")
    title: str = Field(default="", description="One line for the report.")
    demonstration: bool = Field(default=False, description="The report says on page one that this is a demonstration.")
    seed: int = Field(default=0, ge=0, description="Seed of all training randomness.")
    image: ImageConfig
    encoder: EncoderConfig
    method: AnyMethodConfig
    training: TrainingConfig = Field(default=TrainingConfig(), validate_default=True)
    algorithm: AnyAlgorithmConfig
    rounds: RoundsConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    federated_evaluation: FederatedEvaluationConfig | None = Field(
        default=None,
        description="A probe of labels that stay at the sites, after the last round; null: no site is asked for any.",
    )
    privacy: AnyPrivacyConfig | None = Field(
        default=None,
        description="What the weights may tell of one patient, or of one site; null: weights leak, and nothing is "
        "promised.",
    )
    secure_aggregation: SecureAggregationConfig | None = Field(
        default=None,
        description="Sums without single updates; null: the server sees each site's update.",
    )
    simulation: dict[str, Any] | None = Field(
        default=None,
        description="Dataset, root, partition and arms of a simulated federation; checked by simulation/.",
    )

    @field_validator("training")
    @classmethod
    def _filled_in(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        """What is null there is the method's, so that it is approved and hashed as a number."""
        usual = usual_training(info.data["method"]) if "method" in info.data else {}
        return training.model_copy(
            update={name: value for name, value in usual.items() if getattr(training, name) is None}
        )

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        check_method(self.method, self.encoder, self.image)
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        build_algorithm(self.algorithm).check(self.training, self.method)
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> Self:
        if self.privacy is not None:
            check_private(self.training, self.federated_evaluation)
        if isinstance(self.privacy, PatientPrivacyConfig):
            # Builds the encoder: other studies load without timm.
            from ssl_methods.per_sample.rules import check_per_sample

            check_per_sample(self.method, self.encoder, self.image)
            check_patient_level(self.training, self.privacy)
            check_algorithm(self.algorithm.name, "privacy by patient")
        elif self.privacy is not None:
            check_algorithm(self.algorithm.name, "privacy by site")
            check_no_statistics(self.encoder)
        if self.secure_aggregation is not None:
            check_algorithm(self.algorithm.name, "secure sums")
        return self

    def training_hash(self) -> str:
        """SHA-256 over what sites train, in canonical JSON: what a site approves and every message names."""
        return training_hash_of(self.model_dump(mode="json"))

    def whole_hash(self) -> str:
        """SHA-256 over all of the study but the places of data and starting weights on this machine.

        The starting weights count by their content, ``simulation.weights_sha256``.
        """
        whole = self.model_dump(mode="json")
        if whole["simulation"]:
            places = ("root", "weights")
            whole["simulation"] = {key: value for key, value in whole["simulation"].items() if key not in places}
        return hash_of(whole)

    def facts(self) -> dict[str, Any]:
        """What a run's record says of the study."""
        named = {"name": self.name, "title": self.title or self.name, "demonstration": self.demonstration}
        return named | {"study_hash": self.whole_hash(), "training_hash": self.training_hash(), "seed": self.seed}

    def to_yaml(self) -> str:
        """The resolved study, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def load_study(path: AnyPath, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply ``key.sub=value`` overrides (values in YAML); StudyError in one line."""
    raw = read_yaml(Path(path))
    for setting in overrides:
        override(raw, setting)
    return study_from(raw, str(path))


def study_from(raw: dict[str, Any], place: str) -> Study:
    """Check a raw study; ``place`` names it in errors."""
    return checked(Study, raw, place)
