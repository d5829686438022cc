"""A pretext task of one's own, in simulation, without a change to the package.

python examples/own_method.py           # a few minutes on two cores

Hospitals train what their installed version knows, and refuse a study with any other method: to take this one to them
it becomes a file of the package (CONTRIBUTING.md).
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import fedpretext as fp
from ssl_methods import MethodConfig, register_method
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import Batch, Draws, Method, Views

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


class QuadrantsConfig(MethodConfig):
    """The study's section ``method``."""

    name: Literal["quadrants"] = "quadrants"
    cells: int = 2


@register_method
class Quadrants(Method):
    """Tell from the pooled feature how bright each part of the image is."""

    Config = QuadrantsConfig
    summary, paper, family = "brightness of the image's quarters", "an example", "predictive"
    per_sample, encoders = True, ("vit", "convolutional", "swin")
    parts: ClassVar = {"encoder": "shared", "head": "shared"}  # what goes to the server

    def __init__(self, config: QuadrantsConfig, encoder: nn.Module, image: Any) -> None:
        super().__init__(config, encoder, image)
        self.head = nn.Linear(feature_dim(encoder), image.channels * config.cells**2)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        return {"images": self.augmentation.draw(count, generator)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        return {"images": self.augmentation.light(batch.images, draws["images"])}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        return self.image_losses(views).mean(), {}

    def image_losses(self, views: Views) -> Tensor:
        answer = self.head(features(self.encoder, views["images"]))
        bright = functional.adaptive_avg_pool2d(views["images"], self.config.cells).flatten(1)  # [B, C * cells ** 2]
        return functional.mse_loss(answer, bright, reduction="none").mean(1)


if __name__ == "__main__":
    print(fp.simulate(DEMO, ["name=quadrants", "method={name: quadrants}"]).report)
