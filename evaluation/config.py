"""What a study, or a task file, says about evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from foundation.configuration.section import Section

TaskKind = Literal["classification", "multilabel", "regression", "segmentation", "detection"]
_Labels = Literal["knn", "logistic", "svm", "ridge", "attention", "finetune", "finetune_last"]
_Outlines = Literal["linear_segmentation", "decoder_segmentation", "frozen_detection", "finetune_detection"]
ProtocolName = Literal[_Labels, _Outlines]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Shots = Annotated[int, Field(ge=1)]

PROTOCOLS_OF: dict[TaskKind, tuple[ProtocolName, ...]] = {
    "classification": ("knn", "logistic", "svm", "attention", "finetune", "finetune_last"),
    "multilabel": ("knn", "logistic", "finetune", "finetune_last"),
    "regression": ("knn", "ridge", "finetune", "finetune_last"),
    "segmentation": ("linear_segmentation", "decoder_segmentation"),
    "detection": ("frozen_detection", "finetune_detection"),
}
"""What can be done with an encoder for each kind of task."""

DEFAULT_PROTOCOLS: dict[str, tuple[ProtocolName, ...]] = {
    "classification": ("knn", "logistic"),
    "multilabel": ("knn", "logistic"),
    "regression": ("knn", "ridge"),
    "segmentation": ("linear_segmentation",),
    "detection": ("frozen_detection",),
}
"""What is done with each encoder where a task does not say."""


class FinetuneConfig(Section):
    """End-to-end fine-tuning (and, from weights that were not pretrained here, the supervised reference)."""

    epochs: int = Field(
        default=30, ge=1, description="Passes over the labelled training images; none is picked by its score."
    )
    learning_rate: float = Field(default=5e-4, gt=0.0, description="Peak AdamW rate of the new head.")
    layer_decay: float = Field(
        default=0.75, gt=0.0, le=1.0, description="Each layer below the head learns at this multiple of the rate above."
    )
    last_layers: int = Field(
        default=2, ge=1, description="finetune_last: how many layers below the head are trained; the others are frozen."
    )
    drop_path: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Stochastic depth of the last block, rising linearly."
    )
    weight_decay: float = Field(default=0.05, ge=0.0, description="AdamW weight decay of matrices; vectors have none.")
    warmup: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Share of the steps over which the rate rises linearly."
    )
    batch: int = Field(default=32, ge=1, description="Labelled images per optimiser step.")
    seeds: int = Field(default=1, ge=1, description="Repeats with other heads and orders; their scores are averaged.")


class AttentionConfig(Section):
    """Attention pooling of a patient's images (the protocol ``attention``)."""

    width: int = Field(default=128, ge=1, description="Hidden units of the gated attention.")
    epochs: int = Field(default=100, ge=1, description="Passes over the training patients; the number is fixed.")
    learning_rate: float = Field(default=1e-3, gt=0.0, description="Peak AdamW rate.")
    weight_decay: float = Field(default=1e-2, ge=0.0, description="AdamW weight decay.")


class SegmentationConfig(Section):
    """The heads of the segmentation protocols."""

    epochs: int = Field(default=30, ge=1, description="Passes over the training images that have a mask.")
    learning_rate: float = Field(default=1e-3, gt=0.0, description="Peak AdamW rate of the head.")
    layer_decay: float = Field(
        default=0.75, gt=0.0, le=1.0, description="decoder_segmentation: as finetune.layer_decay."
    )
    weight_decay: float = Field(default=0.05, ge=0.0, description="AdamW weight decay of matrices; vectors have none.")
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0, description="linear_segmentation: dropout before the 1x1 conv.")
    width: int = Field(
        default=16, ge=8, description="decoder_segmentation: channels of the finest decoder stage; UNETR's own is 16."
    )
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of the steps over which the rate rises.")
    batch: int = Field(default=8, ge=1, description="Images per optimiser step.")


class DetectionConfig(Section):
    """The centre-based head of the detection protocols."""

    epochs: int = Field(default=40, ge=1, description="Passes over the training images that have boxes.")
    learning_rate: float = Field(default=2e-3, gt=0.0, description="Peak AdamW rate of the head.")
    layer_decay: float = Field(default=0.75, gt=0.0, le=1.0, description="finetune_detection: as finetune.layer_decay.")
    weight_decay: float = Field(default=0.05, ge=0.0, description="AdamW weight decay of matrices; vectors have none.")
    width: int = Field(default=64, ge=8, description="Channels of the head.")
    most_boxes: int = Field(default=100, ge=1, description="Detections kept of each image, the surest first.")
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of the steps over which the rate rises.")
    batch: int = Field(default=16, ge=1, description="Images per optimiser step.")


class EvaluationConfig(Section):
    """Which figures the results table has."""

    task: str = Field(default="classification", min_length=1, description="Name of the task in tables and report.")
    kind: TaskKind = Field(default="classification", description="What is asked of an image.")
    label: str = Field(
        default="label",
        min_length=1,
        description="Column of the manifest that holds the target: a class; for multilabel findings joined by |, or "
        "none; for regression a number. Segmentation reads the column mask, detection the column boxes.",
    )
    positive: str | None = Field(
        default=None, description="The class whose score is shown where there are two; default: the last in order."
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="The classes that there may be; another one in the data is an error. Segmentation: the names of "
        "mask values 1, 2, ...; without them every value above 0 is one class.",
    )
    aggregate: Literal["none", "mean", "max"] = Field(
        default="none",
        description="Classification: how a patient's images become one score, where the label is the patient's.",
    )
    empty_mask: Literal["unlabelled", "background"] = Field(
        default="unlabelled", description="Segmentation: what an image without a mask is."
    )
    protocols: tuple[ProtocolName, ...] = Field(
        default=(), description="What is done with each encoder; default: those usual for the kind."
    )
    label_fractions: tuple[Fraction, ...] = Field(
        default=(1.0,), min_length=1, description="Shares of the training patients whose labels are used."
    )
    shots: tuple[Shots, ...] = Field(
        default=(), description="Few-shot settings of classification: patients per class whose labels are used."
    )
    label_seeds: int = Field(default=3, ge=3, description="Draws of the labelled patients where not all are used.")
    calibration_bins: int = Field(default=10, ge=2, description="Bins of equal width for the calibration error.")
    seed: int = Field(default=0, ge=0, description="Seed of label draws and of heads that are trained.")
    finetune: FinetuneConfig = Field(default=FinetuneConfig(), description="Settings of the finetune protocols.")
    attention: AttentionConfig = Field(default=AttentionConfig(), description="Settings of the attention protocol.")
    segmentation: SegmentationConfig = Field(
        default=SegmentationConfig(), description="Settings of the segmentation protocols."
    )
    detection: DetectionConfig = Field(default=DetectionConfig(), description="Settings of the detection protocols.")

    @model_validator(mode="before")
    @classmethod
    def _usual_protocols(cls, values: object) -> object:
        if isinstance(values, dict) and not values.get("protocols"):
            usual = DEFAULT_PROTOCOLS.get(str(values.get("kind", "classification")), ())
            return {**values, "protocols": usual}
        return values

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> Self:
        only = {
            "positive": self.positive is not None,
            "aggregate": self.aggregate != "none",
            "shots": bool(self.shots),
        }
        if self.kind != "classification":
            for name, given in only.items():
                if given:
                    raise ValueError(f"{name} does nothing for {self.kind}; leave it out")
        for protocol in self.protocols:
            if protocol not in PROTOCOLS_OF[self.kind]:
                raise ValueError(
                    f"protocol {protocol} does nothing for {self.kind}; there are: {', '.join(PROTOCOLS_OF[self.kind])}"
                )
        if self.kind != "segmentation" and self.empty_mask != "unlabelled":
            raise ValueError(f"empty_mask does nothing for {self.kind}; leave it out")
        if self.kind == "regression" and self.classes:
            raise ValueError("classes does nothing for regression; leave it out")
        if "attention" in self.protocols and self.aggregate == "none":
            raise ValueError(
                "protocol attention scores patients, not images: set aggregate to mean or max (for the others)"
            )
        return self


class RunEvaluation(EvaluationConfig):
    """The study's settings and what a run folder adds to them: facts of its data, which no study can choose."""

    dataset: str = Field(default="", description="Name of the data in tables and report.")
    unit: Literal["patient", "image cluster"] = Field(
        default="patient", description="What a row's patient column stands for; clusters are said beside every figure."
    )
    pretrained_elsewhere: bool = Field(
        default=False,
        description="Hospitals made the encoder from images that are not here; these are the evaluator's own. The "
        "report says what cannot be known then.",
    )
