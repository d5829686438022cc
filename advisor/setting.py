"""What the advisor is told: images, question, labels, sites and what must hold."""

from dataclasses import dataclass
from typing import get_args

from evaluation.config import TaskKind
from foundation.errors import StudyError, look_up
from imaging.config import Modality

DENSE = ("segmentation", "detection")
FEW_LABELS = 100
"""Below this many labelled images labels are called few. Ours: no source gives a number."""
FEW_PATIENTS = 16
"""Below this many patients a site has few negatives for a contrastive loss. Ours: no source gives a number."""


@dataclass(frozen=True)
class Setting:
    """A planned study. ``labels``: labelled images in all. ``patients``: of the smallest site.

    images: of each patient. accelerator: whether a GPU trains, which decides the sizes of a study file only.
    """

    modality: Modality
    task: TaskKind
    labels: int
    sites: int
    patients: int
    images: int = 1
    volumes: bool = False
    privacy: bool = False
    pretrained_weights: bool = False
    different_sites: bool = False
    accelerator: bool = False

    def __post_init__(self) -> None:
        for key, kind in {"modality": Modality, "task": TaskKind}.items():
            look_up(dict.fromkeys(get_args(kind)), getattr(self, key), key)
        counts = {"sites": self.sites, "patients per site": self.patients, "images per patient": self.images}
        for name, count in {"labels": self.labels, **counts}.items():
            least = 0 if name == "labels" else 1
            if count < least:
                raise StudyError(f"{name} {count}: give {least} or more")
        if self.at_a_site < 2:
            raise StudyError(
                "1 patient a site with 1 image: pretraining needs 2 images at every site; give more patients, or "
                "more images of each"
            )

    @property
    def dimensions(self) -> int:
        """3 for volumes."""
        return 3 if self.volumes else 2

    @property
    def at_a_site(self) -> int:
        """Images of a site."""
        return self.patients * self.images

    @property
    def total(self) -> int:
        """Images of all sites."""
        return self.sites * self.at_a_site

    @property
    def dense(self) -> bool:
        """Whether the answer is a place in the image."""
        return self.task in DENSE

    @property
    def few_labels(self) -> bool:
        """Whether there are some, and fewer than ``FEW_LABELS``."""
        return 0 < self.labels < FEW_LABELS

    @property
    def few_patients(self) -> bool:
        """Whether the smallest site has fewer than ``FEW_PATIENTS``."""
        return self.patients < FEW_PATIENTS

    @property
    def several_images(self) -> bool:
        """Whether each patient has more than one."""
        return self.images > 1

    def line(self) -> str:
        """The setting in words."""
        also = {
            "patient-level privacy": self.privacy,
            "natural-image weights at hand": self.pretrained_weights,
            "strongly different sites": self.different_sites,
        }
        kind = "volumes" if self.volumes else "2-D images"
        sites = f"{self.sites} {'site' if self.sites == 1 else 'sites'}"
        each = f"{self.patients} {'patient' if self.patients == 1 else 'patients'} with {self.images} each"
        named = [f"{self.modality}, {self.task}, {kind}", f"{self.labels} labels", f"{sites} of {each}"]
        return "; ".join([*named, *(name for name, there in also.items() if there)])
