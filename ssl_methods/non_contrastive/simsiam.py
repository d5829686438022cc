"""SimSiam (Chen and He 2021, CVPR): two views, a predictor and a stop-gradient."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.similarity import negative_cosine
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig


def simsiam_loss(predictions: tuple[Tensor, Tensor], projections: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of -cos over both directions (eq. 4), -1 to 1.

    predictions, projections: of the first and the second view, ``[B, D]`` each; each view predicts the other's
    projection, which no gradient enters there. At least in float32.
    """
    one, other = negative_cosine(predictions[0], projections[1]), negative_cosine(predictions[1], projections[0])
    return (one + other) / 2.0


class SimSiamConfig(TwoViewConfig):
    """Prediction of one view's projection from the other's."""

    name: Literal["simsiam"] = "simsiam"
    projection: int = Field(
        default=512,
        ge=4,
        description="Channels of the projector, hidden and last. The paper's 2048, its ResNet's width, would outweigh "
        "a small encoder.",
    )
    predictor_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of the predictor; default: a quarter of projection, as in the paper.",
    )


class SimSiam(TwoViewMethod, name="simsiam"):
    """Predict one view's projection from the other's, without a second network.

    Deviation: heads of 512 and 128 channels where the paper has 2048 and 512. Heads without BatchNorm, which would make
    the gradient per-sample, are not offered: the paper finds that they do not learn (sec. 4.4, table 3 a).

    The paper trains with SGD at .05; with AdamW the default is training.learning_rate 4e-3 (5e-4 a step of 32).
    """

    Config: ClassVar[type[MethodConfig]] = SimSiamConfig
    config: SimSiamConfig

    def __init__(self, config: SimSiamConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        width = config.projection
        self.projector = projector([feature_dim(encoder), width, width, width])
        predicting = [width, config.predictor_width or width // 4, width]
        self.predictor = projector(predicting, last="biased")

    def rate(self, part: str, progress: float, scheduled: float, peak: float) -> float:
        """The predictor's does not fall: it must keep up with the projections (sec. 4.2, table 1 c)."""
        return peak if part == "predictor" else scheduled

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative cosine between each view's prediction and the other's projection."""
        first = self.projector(features(self.encoder, views["first"]))  # [B, projection]
        second = self.projector(features(self.encoder, views["second"]))
        return simsiam_loss((self.predictor(first), self.predictor(second)), (first, second)), {}
