"""The sections ``training`` and ``rounds`` of a study."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from foundation.configuration.section import Section

_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(Section):
    """How a site trains between two exchanges: AdamW with warm-up and cosine over study progress.

    A study's section always holds a learning rate and betas: what is null there is filled in when the study is read.
    """

    epochs: float | None = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Passes over a site's own images a round; null where `steps` is set.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimiser steps a round, equal for all sites; null where `epochs` is set.",
    )
    batch: int = Field(
        default=32,
        ge=2,
        le=65536,
        description="Images a step; a smaller site takes all it has. With privacy by patient images computed at "
        "once, as a step has those of the patients drawn.",
    )
    accumulate: int = Field(default=1, ge=1, le=1024, description="Batches whose gradients are summed for one step.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Peak rate for 256 images a step; scaled by batch x accumulate / 256, or with privacy by patient "
        "by patients_per_step x images_per_patient / 256. null: the method's own (`fedpretext methods`), which suits "
        "steps of 16 to 128; for larger ones give the paper's.",
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Decoupled; never on biases, norms or embeddings.")
    final_weight_decay: float | None = Field(
        default=None,
        ge=0,
        description="Weight decay at the study's end, reached by a half cosine (DINO: .04 to .4); null: constant.",
    )
    betas: tuple[_Decay, _Decay] | None = Field(
        default=None, description="AdamW's moments; null: the method's own (`fedpretext methods`)."
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the study over which the rate rises.")
    clip: float | None = Field(default=None, gt=0, description="Largest gradient norm; null for no clipping.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast on CUDA, where it pays, float32 elsewhere."
    )
    optimiser_state: Literal["keep", "reset"] = Field(
        default="keep",
        description="Whether AdamW's moments stay at the site from round to round or start anew.",
    )
    compile: bool = Field(default=False, description="torch.compile the loss: faster after a minute of compilation.")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads a site; part of the study: it changes sums.")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("epochs and steps: exactly one of them is set, the other is null")
        return self


class RoundsConfig(Section):
    """How often weights are exchanged, and what the server does about sites that do not answer."""

    count: int = Field(ge=1, le=100_000, description="Exchanges of weights in the study.")
    quorum: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the sites whose accepted updates make a round; else it is retried.",
    )
    deadline_minutes: float = Field(default=720.0, gt=0, description="After this a round goes on without the missing.")
    attempts: int = Field(default=3, ge=1, le=1000, description="Times a round is tried before the study stops.")
    norm_factor: float = Field(
        default=10.0, gt=1, description="An update this many times longer than the median, for its steps, is left out."
    )
    norm_bound: float = Field(
        default=1e4,
        gt=0,
        description="An update longer than this (L2 norm) is left out whatever the others are.",
    )
    keep_checkpoints: int = Field(default=2, ge=2, description="Checkpoints kept; older ones are deleted.")
