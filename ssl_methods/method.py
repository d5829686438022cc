"""What every pretext task is to the rest of the house."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from imaging.augment import Augmentation
from imaging.config import ImageConfig, Section

Family = Literal["contrastive", "non-contrastive", "predictive", "reconstruction", "hybrid"]
Role = Literal["shared", "local", "derived"]
Views = dict[str, Tensor]
"""Named tensors of one batch, first dimension B: what ``Method.loss`` reads."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one local step.

    pictures: ``[B, C, H, W]`` float32 in [0, 1], on the training device.
    patients, series: ``[B]`` int64 codes, equal exactly where the patient (series) is the same.
    """

    pictures: Tensor
    patients: Tensor
    series: Tensor


class MethodConfig(Section):
    """What every method's section has."""

    share: tuple[str, ...] | None = Field(
        default=None, description="Parts sent to the server; default: what the method declares as shared."
    )


class Method(nn.Module, ABC):
    """One pretext task over one encoder.

    A subclass names its top-level submodules (and buffers) in ``parts``: a part's name is the first component of its
    ``state_dict`` keys. ``encoder`` is a plain timm model and always shared. A part that is ``derived`` is rebuilt from
    other parts and neither sent nor stored; a part that is ``local`` is stored at the site and never sent.
    """

    Config: ClassVar[type[MethodConfig]]
    summary: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[Family]
    per_sample: ClassVar[bool]
    """True when one picture's gradient does not depend on the other pictures of the batch."""
    encoders: ClassVar[tuple[Literal["vit", "convolutional"], ...]]
    parts: ClassVar[dict[str, Role]]
    fewest_patients: ClassVar[int] = 1
    """Patients a site needs for the loss to mean something."""
    encoder: nn.Module

    def __init__(self, config: Any, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.image = image
        self.encoder = encoder
        self.augmentation = Augmentation(image)

    @abstractmethod
    def make_views(self, batch: Batch, generator: Any) -> Views:
        """Draw every random choice of this step (crops, intensities, masks) from ``generator``; no gradient."""

    @abstractmethod
    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and scalars worth recording (detached)."""

    def after_step(self, progress: float, pictures: int) -> None:
        """Called after each step of ``pictures`` pictures, at study progress in [0, 1]: momentum encoder, queue."""

    def start_local_parts(self) -> None:
        """Called where a site has no state of its own yet: make local parts from the shared ones as received."""

    def role_of(self, key: str) -> Role:
        """The role of the tensor ``key`` of ``state_dict()`` under this study's ``share``."""
        part = key.split(".", 1)[0]
        role = self.parts[part]
        if role == "derived" or self.config.share is None:
            return role
        return "shared" if part in self.config.share else "local"

    def shared_state(self) -> dict[str, Tensor]:
        """The tensors that go to the server, by their ``state_dict`` names."""
        return {key: value for key, value in self.state_dict().items() if self.role_of(key) == "shared"}

    def local_state(self) -> dict[str, Tensor]:
        """The tensors that stay at the site between rounds."""
        return {key: value for key, value in self.state_dict().items() if self.role_of(key) == "local"}
