"""The section ``simulation:`` of a study: the only place with paths. A client refuses to act on it."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from foundation.configuration.section import Section
from foundation.errors import StudyError
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig
from simulation.datasets import DATASETS, dataset
from simulation.sites.partition import BySite, PartitionConfig

BudgetRule = Literal["passes", "images"]


class SimulationConfig(Section):
    """Which images stand for the hospitals, and how they are divided."""

    dataset: str = Field(default="phantoms", description=f"One of {', '.join(DATASETS)}.")
    root: Path | None = Field(default=None, description="Where the dataset lies on this machine, if it needs a place.")
    options: dict[str, Any] = Field(default={}, description="The dataset's own options.")
    partition: PartitionConfig = Field(default=BySite(), description="How patients become sites.")
    splits: SplitConfig = Field(default=SplitConfig(), description="Who trains, validates and is tested.")
    arms: tuple[Literal["local-only", "centralised"], ...] = Field(
        default=("local-only", "centralised"),
        description="Reference arms: local-only, one of every tested site; centralised, all images in one place.",
    )
    budget: BudgetRule = Field(
        default="passes",
        description="How long these references train. passes: each of their images is seen as often as in the "
        "federated arm (the same epochs); images: each sees as many images as all sites of the federated arm "
        "together, so that a small site sees its own over and over.",
    )
    weights: Literal["timm"] | Path | None = Field(
        default=None,
        description="Starting weights of every pretrained arm: a .safetensors or .pth file on this machine, or timm "
        "for timm's own (downloaded); null: random ones. The server sends them; no site reads the file.",
    )
    weights_sha256: str | None = Field(
        default=None, description="SHA-256 of the starting weights; filled in by a run, checked where it is given."
    )
    seeds: int = Field(default=1, ge=1, le=100, description="Pretraining seeds of the first fold's arms.")
    runtime: Literal["in-process", "ray"] = Field(
        default="in-process",
        description="in-process: one process, no port; ray: Flower's simulation on many GPUs.",
    )

    @model_validator(mode="after")
    def _known_dataset_and_options(self) -> Self:
        try:
            dataset(self.dataset).check_options(self.options)
        except StudyError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _a_root_is_read(self) -> Self:
        if self.root is not None and self.dataset in DATASETS and dataset(self.dataset).foresee is not None:
            raise ValueError(
                f"root {self.root}: dataset {self.dataset!r} draws its images and reads no folder; leave root out, or "
                "name the dataset that lies there, such as folder"
            )
        return self

    def load_dataset(self, workspace: Path, seed: int, *, drawn: bool = True) -> Manifest:
        """All images of the study's dataset; what is downloaded, or ``drawn``, goes below ``workspace``."""
        return dataset(self.dataset).load(self.root, workspace, seed, self.options, drawn=drawn)
