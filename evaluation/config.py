"""What a study says about evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from imaging.config import Section

ProtocolName = Literal["knn", "logistic", "finetune"]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Shots = Annotated[int, Field(ge=1)]


class FinetuneConfig(Section):
    """End-to-end fine-tuning (and, from weights that were not pretrained here, the supervised reference)."""

    epochs: int = Field(
        default=30, ge=1, description="Passes over the labelled training pictures; none is picked by its score."
    )
    learning_rate: float = Field(default=5e-4, gt=0.0, description="Peak AdamW rate of the new head.")
    layer_decay: float = Field(
        default=0.75, gt=0.0, le=1.0, description="Each layer below the head learns at this multiple of the rate above."
    )
    drop_path: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Stochastic depth of the last block, rising linearly."
    )
    weight_decay: float = Field(default=0.05, ge=0.0, description="AdamW weight decay of matrices; vectors have none.")
    warmup: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Share of the steps over which the rate rises linearly."
    )
    batch: int = Field(default=32, ge=1, description="Labelled pictures per optimiser step.")
    seeds: int = Field(default=1, ge=1, description="Repeats with other heads and orders; their scores are averaged.")


class EvaluationConfig(Section):
    """Which figures the results table has."""

    task: str = Field(default="classification", min_length=1, description="Name of the task in tables and report.")
    label: str = Field(default="label", min_length=1, description="Column of the manifest that holds the target.")
    positive: str | None = Field(
        default=None, description="The class whose score is shown where there are two; default: the last in order."
    )
    protocols: tuple[ProtocolName, ...] = Field(
        default=("knn", "logistic"), min_length=1, description="What is done with each encoder."
    )
    label_fractions: tuple[Fraction, ...] = Field(
        default=(1.0,), min_length=1, description="Shares of the training patients whose labels are used."
    )
    shots: tuple[Shots, ...] = Field(
        default=(), description="Few-shot settings: patients per class whose labels are used."
    )
    label_seeds: int = Field(default=3, ge=3, description="Draws of the labelled patients where not all are used.")
    calibration_bins: int = Field(default=10, ge=2, description="Bins of equal width for the calibration error.")
    seed: int = Field(default=0, ge=0, description="Seed of label draws and fine-tuning.")
    finetune: FinetuneConfig = Field(default=FinetuneConfig(), description="Settings of the finetune protocol.")


class RunEvaluation(EvaluationConfig):
    """The study's settings and what a run folder adds to them: facts of its data, which no study can choose."""

    dataset: str = Field(default="", description="Name of the data in tables and report.")
    unit: Literal["patient", "picture cluster"] = Field(
        default="patient", description="What a row's patient column stands for; clusters are said beside every figure."
    )
    pretrained_elsewhere: bool = Field(
        default=False,
        description="Hospitals made the encoder from pictures that are not here; these are the evaluator's own. The "
        "report says what cannot be known then.",
    )
