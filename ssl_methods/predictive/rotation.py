"""Rotation prediction (Gidaris et al. 2018, ICLR): by how many right angles was the image turned?"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.errors import StudyError
from imaging.config import ImageConfig
from imaging.views.augment import Augmentation
from ssl_methods.components.classification import ClassifyingMethod, class_loss
from ssl_methods.components.heads import projector
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import Batch, Draws, Views
from ssl_methods.method_config import MethodConfig

TURNS = 4


def all_turns(images: Tensor) -> Tensor:
    """``[B, 4, ...]``: the images turned in the plane of rows and columns by 0, 90, 180 and 270 degrees.

    images ``[B, C, S, S]`` or volumes ``[B, C, D, S, S]``; counter-clockwise (a volume turns about its slice axis).
    ``torch.rot90`` moves pixels and interpolates nothing: resampling would betray the turn.
    """
    return torch.stack([torch.rot90(images, turns, dims=(-2, -1)) for turns in range(TURNS)], dim=1)


def upright_augmentation(image: ImageConfig, method: str, focus: bool) -> Augmentation:
    """The study's views without the preset's up-down flip; StudyError where the study itself asks for one.

    A vertical flip is a turn by 180 degrees of a mirrored image: with it, turns of 0 and 180 degrees could not be
    told apart. A horizontal flip does no harm.
    """
    if image.augment.vertical_flip:
        raise StudyError(
            f"image.augment.vertical_flip {image.augment.vertical_flip}: method {method!r} cannot tell an image "
            "upside down from a flipped one; leave it out"
        )
    upright = image.augment.model_copy(update={"vertical_flip": 0.0})
    return Augmentation(image.model_copy(update={"augment": upright}), focus)


class RotationConfig(MethodConfig):
    """Guessing by how many right angles an image was turned."""

    name: Literal["rotation"] = "rotation"
    copies: Literal["all", "one"] = Field(
        default="all",
        description="Whether each image is shown in all four turns in one step, which the paper found better (sec. "
        "3.1), or in one drawn turn, for a quarter of the time.",
    )


class Rotation(ClassifyingMethod, name="rotation"):
    """Turn images by right angles and tell by how many.

    It can be learned where images have an up and a down. A microscope slide, a skin lesion or a fundus photograph
    taken anyhow has none, and the loss then stays near log 4: choose another method there.

    The preset's vertical flip is left out, and one that the study asks for is refused (``upright_augmentation``). The
    paper trains with SGD; with AdamW the default is training.learning_rate 5e-4.
    """

    Config: ClassVar[type[MethodConfig]] = RotationConfig
    config: RotationConfig

    def __init__(self, config: RotationConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.augmentation = upright_augmentation(image, config.name, self.augmentation.focus)
        self.head = projector([feature_dim(encoder), TURNS], normalisation="none", last="biased")

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops and the turns ``[B, V]``."""
        crops = self.augmentation.draw(count, generator)
        if self.config.copies == "all":
            return {"images": crops, "turns": torch.arange(TURNS).expand(count, -1)}
        return {"images": crops, "turns": torch.randint(TURNS, (count, 1), generator=generator)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``turned`` ``[B, V, C, S, S]`` (crop, horizontal flip, then the turn) and ``turns`` ``[B, V]``, 0 to 3.

        V is 4, or 1 where the study asks for one copy.
        """
        turned = all_turns(self.augmentation.light(batch.images, draws["images"]))  # [B, 4, C, S, S]
        own, turns = torch.arange(len(turned), device=turned.device)[:, None], draws["turns"]
        return {"turned": turned[own, turns], "turns": turns}

    def answered(self, views: Views) -> tuple[Tensor, Tensor]:
        """The loss of the turns (eq. 2 and 3), and the share of right answers."""
        turned, turns = views["turned"], views["turns"]
        logits = self.head(features(self.encoder, turned.flatten(0, 1)))  # [B * V, 4]
        return class_loss(logits.reshape(*turns.shape, TURNS), turns)
