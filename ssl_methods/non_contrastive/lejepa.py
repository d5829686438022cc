"""LeJEPA: views that agree on embeddings that are normally distributed (Balestriero and LeCun 2025, arXiv 2511.08544).

With lambda the only weight, the loss is (1 - lambda) x invariance + lambda x SIGReg. SIGReg holds the distribution of
the projections against N(0, I): on random directions, by the characteristic function (Epps and Pulley 1983).
"""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import AreaRange, ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.multi_crop import MultiCropConfig, crops_of, draw_crops, small_side, view_features
from ssl_methods.components.similarity import as_float32, unit
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.method import Batch, Draws, Method, Views

GLOBAL_VIEWS = 2
"""Large crops of an image, whose mean all its views are drawn to."""
KNOTS = 17
LARGEST = 3.0
"""The characteristic function is compared at ``KNOTS`` points of [0, ``LARGEST``], and by symmetry at their negatives.

So the authors' code has it; beyond 3 there is next to nothing of a standard normal's.
"""


def knots_like(values: Tensor) -> Tensor:
    """The points t ``[KNOTS]`` from 0 to ``LARGEST``, of the type and on the device of ``values``."""
    return torch.linspace(0.0, LARGEST, KNOTS, dtype=values.dtype, device=values.device)


def invariance(projections: Tensor) -> Tensor:
    """Mean squared distance of all views to the mean of the global ones, over views, images and channels.

    projections ``[V, B, P]``, V at least ``GLOBAL_VIEWS``: those of the global views first. The gradient enters the
    mean too.
    """
    return (projections - projections[:GLOBAL_VIEWS].mean(dim=0)).square().mean()


def characteristic_sums(projections: Tensor, directions: Tensor) -> Tensor:
    """Sums over the images of cos(t u.z) and sin(t u.z), ``[2, V, M, KNOTS]``: all that SIGReg sees of a batch.

    projections ``[V, B, P]``: z of B images. directions ``[M, P]``: unit vectors u. Sums of disjoint sets of images add
    up to those of their union. In the type of ``projections``: float32 or float64.
    """
    angles = (projections @ directions.T)[..., None] * knots_like(projections)  # [V, B, M, K]
    return torch.stack([angles.cos().sum(dim=1), angles.sin().sum(dim=1)])


def sigreg(sums: Tensor, images: int) -> Tensor:
    """How far views are from N(0, I), by the ``characteristic_sums`` ``[2, V, M, KNOTS]`` of so many images.

    With phi the mean of exp(i t u.z) over the images, e(t) = |phi(t) - exp(-t^2 / 2)|^2 is weighted by exp(-t^2 / 2)
    and integrated over t from -``LARGEST`` to ``LARGEST`` by the trapezoid; the integral times the number of images;
    then the mean over views and directions.

    Of a batch of B images that come from a distribution of characteristic function psi the expected e(t) is
    |psi(t) - exp(-t^2 / 2)|^2 + (1 - |psi(t)|^2) / B. The second term is less the more concentrated the projections
    are: small batches draw them together. For B of 2 or more the sum is least not at exp(-t^2 / 2) but at B / (B - 1)
    times that, and at most at 1.
    """
    cosine, sine = sums / images
    t = knots_like(sums)
    normal = (-0.5 * t.square()).exp()
    error = (cosine - normal).square() + sine.square()  # [V, M, K]
    integral = 2.0 * torch.trapezoid(error * normal, dx=LARGEST / (KNOTS - 1), dim=-1)  # [V, M]
    return images * integral.mean()


def lejepa_loss(projections: Tensor, directions: Tensor, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """(1 - weight) x invariance + weight x SIGReg, and both terms, detached; at least in float32.

    projections ``[V, B, P]``: of all views, those of the ``GLOBAL_VIEWS`` global ones first; directions ``[M, P]``:
    unit vectors; weight: lambda, in [0, 1].
    """
    with torch.autocast(projections.device.type, enabled=False):
        projections = as_float32(projections)
        sums = characteristic_sums(projections, directions.to(projections.dtype))
        terms = {"invariance": invariance(projections), "sigreg": sigreg(sums, projections.shape[1])}
        loss = (1.0 - weight) * terms["invariance"] + weight * terms["sigreg"]
        return loss, {name: term.detach() for name, term in terms.items()}


class LeJEPAConfig(MultiCropConfig):
    """Agreement of views whose embeddings are normally distributed."""

    name: Literal["lejepa"] = "lejepa"
    weight: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Weight lambda of the distance from the normal distribution; the views' agreement has 1 - lambda. "
        "With 0 all images become one point.",
    )
    directions: int = Field(
        default=1024,
        ge=1,
        description="Random directions of each step on which the projections are held against the normal distribution. "
        "1024 take about 80 MB for 32 images of 6 views, and as much more as there are more of each.",
    )
    projector_width: int = Field(
        default=512, ge=1, description="Hidden channels of the projector; the authors' 2048 outweigh a small encoder."
    )
    projection: int = Field(
        default=16,
        ge=2,
        description="Channels of the projection, as in the authors' example. A batch of fewer images than channels "
        "cannot show that the projections fill them all.",
    )
    small_crops: int = Field(
        default=4,
        ge=0,
        le=32,
        description="Small (local) crops of each image. The authors' 6, of 96 pixels where a large one has 224, cost "
        "1.1 passes through the encoder besides the large crops' 2; 4, for a hospital's CPU, cost .7.",
    )
    small_scale: AreaRange = Field(default=(0.05, 0.3), description="Area of a small crop, as the authors have it.")


class LeJEPA(Method, name="lejepa"):
    """Draw all views of an image to the mean of its large ones, and the projections of all images to N(0, I).

    Nothing else keeps the images apart: there is no teacher, queue, predictor or stop-gradient. Small batches favour
    concentrated projections (``sigreg``).

    Deviations: the projector has no BatchNorm, so that what SIGReg sees of a batch are sums over single images, and is
    narrower than the authors'; there are fewer local crops.

    The authors: AdamW at training.learning_rate 5e-4, weight_decay .05 for a ViT and 5e-4 for a ResNet; the default
    rate is .004, which is 5e-4 for a step of 32.
    """

    Config: ClassVar[type[MultiCropConfig]] = LeJEPAConfig
    config: LeJEPAConfig

    def __init__(self, config: LeJEPAConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        widths = [feature_dim(encoder), config.projector_width, config.projector_width, config.projection]
        self.projector = projector(widths, normalisation="none", last="biased")
        self.small_side = small_side(config, encoder, image)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Those of all crops, and the step's ``directions`` ``[M, projection]``."""
        directions = unit(torch.randn(self.config.directions, self.config.projection, generator=generator))
        crops = draw_crops(self.augmentation, count, generator, self.config, self.small_side)
        return {"crops": crops, "directions": directions}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``large`` ``[B, 2, C, S, S]``, ``small`` ``[B, V, C, s, s]``: strong views; ``directions`` for each image.

        The directions ``[B, M, projection]`` are those of the step, the same for all images and once in memory.
        """
        views = crops_of(self.augmentation, batch, draws["crops"], self.config, self.small_side)
        return views | {"directions": draws["directions"].expand(len(batch.images), -1, -1)}

    def output(self, pooled: Tensor) -> Tensor:
        """The projections."""
        return cast(Tensor, self.projector(pooled))

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The two terms, weighted; also each of them."""
        projections = self.output(view_features(self.encoder, views))  # [2 + V, B, projection]
        return lejepa_loss(projections, views["directions"][0], self.config.weight)
