"""The interface of every pretext task.

A step's random choices are drawn apart from what is made of them. ``Method.draw`` draws them on the CPU and knows no
more than how many images there are, so that they can be drawn ahead; they go to the device in one copy
(``foundation.transfer``). ``Method.views_from`` makes the views where the images are, and neither copies nor looks at
a value, which would make a GPU's host wait. What decides a shape, how many images of a batch are blurred say, is
therefore settled by ``draw``: the shapes of what it gives are known on both sides. To record what a method draws as it
goes along, and to copy that much from the second step on, would spare the second function; but the first step would
differ from the others, and what is drawn could hang on the images.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foundation.transfer import moved
from imaging.config import ImageConfig
from imaging.views.augment import Augmentation
from ssl_methods.method_config import MethodConfig
from ssl_methods.table import METHODS, Family, Kind, Role

Views = dict[str, Tensor]
"""Named tensors of one batch: what ``Method.loss`` reads. First dimension B, or ``[B, V, ...]`` for V crops."""

Draws = dict[str, Any]
"""A step's random choices: tensors by name, or further such tables."""


@dataclass(frozen=True)
class Batch:
    """Images of one local step.

    images: ``[B, C, H, W]`` (volumes ``[B, C, D, H, W]``) float32 in [0, 1], on the training device.
    patients, studies, series: ``[B]`` int64 codes, equal exactly where the patient (study, series) is the same.
    partners: as ``images``: of each image another one that ``MethodConfig.partner`` relates to it, or itself
    where it has none; None where the method asks for none. gaps: ``[B]`` float32, how much later each partner lies
    (imaging.listing.partners).
    """

    images: Tensor
    patients: Tensor
    studies: Tensor
    series: Tensor
    partners: Tensor | None = None
    gaps: Tensor | None = None


class Method(nn.Module, ABC):
    """One pretext task over one encoder.

    A subclass names its top-level submodules (and buffers) in ``parts``: a part's name is the first component of its
    ``state_dict`` keys. ``encoder`` is a plain timm model and always shared. A part that is ``derived`` is rebuilt from
    other parts and neither sent nor stored; a part that is ``local`` is stored at the site and never sent.
    Facts that can be known without this class are in the table: ``class MAE(Method, name="mae")`` has them from there.
    """

    Config: ClassVar[type[MethodConfig]]
    # What these say is with ``MethodFacts``.
    summary: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[Family]
    per_sample: ClassVar[bool]
    encoders: ClassVar[tuple[Kind, ...]]
    parts: ClassVar[Mapping[str, Role]]
    fewest_patients: ClassVar[int] = 1
    private_parts: ClassVar[frozenset[str]] = frozenset()
    has_attention_teacher: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 4e-3
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    dimensions: ClassVar[tuple[int, ...]] = (2,)
    encoder: nn.Module

    def __init_subclass__(cls, name: str | None = None, **keywords: Any) -> None:
        """Take the facts of ``METHODS[name]``; a class without a name states them itself or inherits them."""
        super().__init_subclass__(**keywords)
        if name is not None:
            for fact in fields(METHODS[name]):
                setattr(cls, fact.name, getattr(METHODS[name], fact.name))

    def __init__(self, config: Any, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.image = image
        self.encoder = encoder
        self.augmentation = Augmentation(image, focus=config.focus == "entropy")

    @classmethod
    def declared_for(cls, config: Any) -> type["Method"]:
        """The class whose declarations above hold under ``config``: this one, unless they depend on it."""
        return cls

    def make_views(self, batch: Batch, generator: torch.Generator) -> Views:
        """Draw every random choice of this step from ``generator``, which is a CPU's, and make the views of it."""
        device = batch.images.device
        return self.views_from(batch, moved(self.draw(len(batch.images), generator), device))

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Every random choice (crops, intensities, masks) of a step of ``count`` images, on the CPU."""

    @abstractmethod
    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """What ``loss`` reads of the batch under ``draws``, which are on its device; no gradient, no other chance."""

    @abstractmethod
    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and scalars worth recording (detached)."""

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: each image's own loss, whose mean is ``loss``. Every per-sample method has it.

        Everything that a layer sees of image b is in rows b * k to b * k + k - 1 of B * k
        (ssl_methods/per_sample/sample_gradients.py).
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss of single images")

    def is_batch_coupled(self) -> bool:
        """Whether images of a batch influence each other's gradients under these settings, over this encoder.

        Batch normalisation anywhere couples, whatever the loss does.
        """
        return not self.per_sample or self.batch_normalised()

    def batch_normalised(self) -> bool:
        """Whether a layer takes its statistics from the batch."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    def before_step(self, progress: float) -> None:
        """Called before each step's views, at study progress in [0, 1]: set a temperature, say.

        What ``loss`` reads must be a (non-persistent) buffer, not a number: a compiled loss would be compiled anew.
        """

    def rate(self, part: str, progress: float, scheduled: float, peak: float) -> float:
        """The learning rate of ``part`` where the study's schedule says ``scheduled`` of ``peak``; 0 freezes it."""
        return scheduled

    def output(self, pooled: Tensor) -> Tensor | None:
        """What the loss compares between images ``[B, P]``, from pooled features ``[B, D]``; None: it compares none.

        The collapse watch looks at it.
        """
        return None

    def after_step(self, progress: float, images: int) -> None:
        """Called after each step of ``images`` images, at study progress in [0, 1]: momentum encoder, queue."""

    def start_local_parts(self) -> None:
        """Called where a site has no state of its own yet: make local parts from the shared ones as received."""

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """What a person should see of ``views``: titled images ``[C, H, W]`` or volumes ``[C, D, H, W]``.

        In standardised units, as the encoder sees them; NaN where a method hides the image. By default every
        image among the views, by its name.
        """
        shown: list[tuple[str, Tensor]] = []
        axes = 1 + self.image.dimensions
        for name, tensor in views.items():
            title, channels = "view" if name == "images" else name.replace("_", " "), self.image.channels
            if tensor.is_floating_point() and tensor.ndim == axes + 1 and tensor.shape[1] == channels:
                shown.append((title, tensor[image]))
            elif tensor.is_floating_point() and tensor.ndim == axes + 2 and tensor.shape[2] == channels:
                shown += [(f"{title} {number}", crop) for number, crop in enumerate(tensor[image], start=1)]
        return shown

    def part_of(self, key: str) -> str:
        """The part that the tensor ``key`` of ``state_dict()`` belongs to."""
        return key.split(".", 1)[0]

    def role_of(self, key: str) -> Role:
        """The role of the tensor ``key`` of ``state_dict()`` under this study's ``share``."""
        part = self.part_of(key)
        role = self.parts[part]
        if role == "derived" or self.config.share is None:
            return role
        return "shared" if part in self.config.share else "local"

    def shared_state(self) -> dict[str, Tensor]:
        """The tensors that go to the server, contiguous, by their ``state_dict`` names."""
        return self._state_of("shared")

    def untrained(self) -> frozenset[str]:
        """Names of the parameters that no step moves: fixed positions, frozen blocks."""
        return frozenset(name for name, value in self.named_parameters() if not value.requires_grad)

    def local_state(self) -> dict[str, Tensor]:
        """The tensors that stay at the site between rounds, contiguous, by their ``state_dict`` names."""
        return self._state_of("local")

    def _state_of(self, role: Role) -> dict[str, Tensor]:
        # Contiguous, or a sum over a weight would depend on whether it came from a file or from the model.
        return {key: value.contiguous() for key, value in self.state_dict().items() if self.role_of(key) == role}


def second_images(batch: Batch) -> Tensor:
    """What the second view is made of: the partners where the study asks for some, else the images themselves."""
    return batch.images if batch.partners is None else batch.partners


class TwoViewMethod(Method):
    """A method that compares the projections of two views."""

    projector: nn.Module

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Those of both views."""
        return {name: self.augmentation.draw(count, generator) for name in ("first", "second")}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``first``, ``second`` ``[B, *image.shape]``: strong views of each image and of its partner, or of itself."""
        return {
            "first": self.augmentation.strong(batch.images, draws["first"]),
            "second": self.augmentation.strong(second_images(batch), draws["second"]),
        }

    def output(self, pooled: Tensor) -> Tensor:
        """The projections."""
        return cast(Tensor, self.projector(pooled))
