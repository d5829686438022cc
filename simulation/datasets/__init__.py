"""Public datasets by name. To add one: a file here, a line in ``DATASETS``, a test."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import look_up
from imaging.manifest import Manifest
from simulation.datasets.bccd import BCCD
from simulation.datasets.busi import BUSI
from simulation.datasets.chase_db1 import CHASE_DB1
from simulation.datasets.dataset import Dataset, NoOptions
from simulation.datasets.dsb2018 import DSB2018
from simulation.datasets.folder import FOLDER
from simulation.datasets.lgg_mri import LGG_MRI
from simulation.datasets.medmnist import MEDMNIST
from simulation.datasets.phantoms import PHANTOMS

if TYPE_CHECKING:
    from simulation.config import SimulationConfig  # which needs this table to check a dataset's options

DATASETS: dict[str, Dataset[Any]] = {
    "phantoms": PHANTOMS,
    "lgg_mri_128": LGG_MRI,
    "busi_224": BUSI,
    "bccd": BCCD,
    "dsb2018": DSB2018,
    "chase_db1": CHASE_DB1,
    "medmnist": MEDMNIST,
    "folder": FOLDER,
}

__all__ = ["DATASETS", "Dataset", "NoOptions", "dataset", "load_dataset"]


def dataset(name: str) -> Dataset[Any]:
    """The dataset ``name``; StudyError with the nearest name otherwise."""
    return look_up(DATASETS, name, "dataset")


def load_dataset(config: "SimulationConfig", workspace: Path, seed: int, *, drawn: bool = True) -> Manifest:
    """All pictures of the study's dataset; what is downloaded, or made where ``drawn``, goes below ``workspace``."""
    return dataset(config.dataset).load(config.root, workspace, seed, config.options, drawn=drawn)
