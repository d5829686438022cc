"""Which encoders there are, and the section of a study that chooses one: known without torch or timm."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from foundation import vision_import
from foundation.configuration.section import Section
from foundation.errors import StudyError, nearest
from imaging.config import ImageConfig
from ssl_methods.table import Kind

Patch = int | tuple[int, int, int]
VIT_FAMILY = "vision_transformer"
CONVOLUTIONAL_FAMILIES = ("resnet", "resnetv2", "convnext", "densenet", "efficientnet", "regnet")
SWIN_FAMILIES = ("swin_transformer", "swin_transformer_v2")
"""timm's model files of which models were tried here (tests/ssl_methods/encoders/test_timm_encoders.py)."""
GROUP = 8
"""Channels that GroupNorm normalises together.

In Wu & He 2018, table 3, groups of 8 to 64 channels do about equally well, groups of 2 worse. Their other rule, 32
groups everywhere, would leave 2 channels a group in a ResNet's first layers, and 32 does not divide the 24 channels of
a tiered stem; 8 divides the widths of timm's encoders, which are rounded to it.
"""


class EncoderConfig(Section):
    """Which encoder is pretrained."""

    name: str = Field(
        description="A timm model name, or monai_vit or monai_swin_unetr for volumes; `fedpretext encoders` lists "
        "recommended ones."
    )
    patch_size: Patch | None = Field(
        default=None,
        description="Side of a patch in pixels (ViT and Swin), in 3-D also [depth, height, width]; default: the "
        "model's own.",
    )
    depth: int | None = Field(
        default=None,
        ge=1,
        description="Transformer blocks (ViT), or blocks of each stage (Swin); default: the model's own.",
    )
    width: int | None = Field(
        default=None,
        ge=4,
        description="Channels of a patch token (Swin: in the first stage), a multiple of 4 (ViT in 3-D: of 6) and of "
        "heads.",
    )
    heads: int | None = Field(
        default=None, ge=1, description="Attention heads (Swin: of the first stage); default: the model's own."
    )
    drop_path: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Share of residual branches dropped in training, at the last block.",
    )
    norm: Literal["own", "group"] = Field(
        default="own",
        description="own: the normalisation that the model has; group: GroupNorm, by 8 channels, in place of its "
        "BatchNorm: no statistics of a batch, in training or kept for later.",
    )
    frozen_blocks: int = Field(
        default=0,
        ge=0,
        description="Lowest blocks of a ViT that keep their starting weights, with the patch embedding; 0: all are "
        "trained.",
    )

    @field_validator("patch_size")
    @classmethod
    def _patches_have_a_side(cls, patch: Patch | None) -> Patch | None:
        sides = patch if isinstance(patch, tuple) else (patch,)
        if any(side is not None and side < 1 for side in sides):
            raise ValueError(f"{patch}: a patch has 1 pixel or more on each side")
        return patch


@dataclass(frozen=True)
class Recommended:
    """An encoder worth starting from."""

    kind: Kind
    summary: str
    paper: str
    dimensions: int = 2
    batch_norm: bool = False


VIT_PAPER = "Dosovitskiy et al. 2021"
DEIT_PAPER = "Touvron et al. 2021"
RESNET_PAPER = "He et al. 2016"
ENCODERS: dict[str, Recommended] = {
    "vit_tiny_patch16_224": Recommended("vit", "ViT, 12 blocks of 192: 5.5 M weights, runs on a CPU", DEIT_PAPER),
    "vit_small_patch16_224": Recommended("vit", "ViT, 12 blocks of 384: 21.7 M weights, one small GPU", DEIT_PAPER),
    "vit_base_patch16_224": Recommended("vit", "ViT, 12 blocks of 768: 85.8 M weights", VIT_PAPER),
    "resnet10t": Recommended(
        "convolutional", "ResNet, 10 layers, tiered stem: 4.9 M weights, runs on a CPU", RESNET_PAPER, batch_norm=True
    ),
    "resnet18": Recommended("convolutional", "ResNet, 18 layers: 11.2 M weights", RESNET_PAPER, batch_norm=True),
    "resnet50": Recommended("convolutional", "ResNet, 50 layers: 23.5 M weights", RESNET_PAPER, batch_norm=True),
    "swin_tiny_patch4_window7_224": Recommended(
        "swin", "Swin, windows of 7 x 7 patches: 27.5 M weights, one small GPU", "Liu et al. 2021"
    ),
    "monai_vit": Recommended(
        "vit", "for volumes: MONAI's ViT, 12 blocks of 768: 88.4 M weights at 96 voxels a side", VIT_PAPER, 3
    ),
    "monai_swin_unetr": Recommended(
        "swin",
        "for volumes: MONAI's Swin UNETR encoder, 48 channels: 8.1 M weights, a GPU",
        "Hatamizadeh et al. 2022",
        3,
    ),
    "convnext_atto": Recommended("convolutional", "ConvNeXt, no BatchNorm: 3.4 M weights", "Liu et al. 2022; Wightman"),
}
VOLUME_ENCODERS: dict[str, Kind] = {name: about.kind for name, about in ENCODERS.items() if about.dimensions == 3}


def encoder_kind(name: str) -> Kind:
    """Whether the encoder ``name`` is a plain ViT, convolutional or a Swin; StudyError for any other name."""
    if name in ENCODERS:  # told without timm, which takes a second to import
        return ENCODERS[name].kind
    timm = vision_import.timm
    if not timm.is_model(name):
        known = [*timm.list_models(), *VOLUME_ENCODERS]
        raise StudyError(
            f"encoder {name!r} is not a timm model{nearest(name, known)}; `fedpretext encoders` lists recommended ones"
        )
    family = _family(name)
    if family == VIT_FAMILY:
        return "vit"
    if family in CONVOLUTIONAL_FAMILIES:
        return "convolutional"
    if family in SWIN_FAMILIES:
        return "swin"
    raise StudyError(
        f"encoder {name!r} is of timm's family {family!r}; taken are {VIT_FAMILY}, "
        f"{', '.join((*CONVOLUTIONAL_FAMILIES, *SWIN_FAMILIES))}: choose a name from `fedpretext encoders`"
    )


def _family(name: str) -> str:
    """timm's model file."""
    return str(vision_import.timm.models.model_entrypoint(name).__module__).rsplit(".", 1)[-1]


def has_batch_norm(encoder: EncoderConfig) -> bool:
    """Whether the encoder, as the study wants it, takes statistics from the batch; StudyError for an unknown name."""
    return encoder.norm == "own" and _batch_normalised(encoder.name)


@functools.cache
def _batch_normalised(name: str) -> bool:
    """Whether the model ``name`` itself has BatchNorm."""
    if name in ENCODERS:  # told without timm
        return ENCODERS[name].batch_norm
    if encoder_kind(name) != "convolutional":
        return False
    import torch  # as timm has done already

    with torch.device("meta"):
        layers = vision_import.timm.create_model(name, num_classes=0).modules()
    return any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in layers)


def require_norm(encoder: EncoderConfig) -> None:
    """StudyError when ``norm`` asks for GroupNorm in place of a BatchNorm that the encoder has not got."""
    if encoder.norm == "group" and not _batch_normalised(encoder.name):
        suits = [name for name, about in ENCODERS.items() if about.batch_norm]
        raise StudyError(
            f"encoder.norm group: {encoder.name!r} has no BatchNorm that GroupNorm could replace; leave norm out, or "
            f"choose for example {suits[0]!r}"
        )


def group_norm_options(name: str) -> dict[str, Any]:
    """Keyword arguments for timm's GroupNormAct, which the encoder ``name`` then has in place of BatchNorm.

    It is normalisation and activation in one, as the BatchNorm of most families is; ResNets have theirs apart.
    """
    return {"group_size": GROUP} | ({"apply_act": False} if _family(name) == "resnet" else {})


def require_kind(name: str, method: str, kinds: Sequence[Kind]) -> None:
    """StudyError when the encoder ``name`` is of a kind that the method ``method`` does not take."""
    kind = encoder_kind(name)
    if kind not in kinds:
        suits = [known for known in ENCODERS if encoder_kind(known) in kinds]
        suits = [known for known in suits if encoder_dimensions(known) == encoder_dimensions(name)] or suits
        raise StudyError(
            f"encoder {name!r} is {kind}, but method {method!r} takes {' or '.join(kinds)} encoders: "
            f"choose for example {suits[0]!r}"
        )


def encoder_dimensions(name: str) -> int:
    """3 for the encoders of volumes, 2 for all others."""
    return 3 if name in VOLUME_ENCODERS else 2


def require_dimensions(name: str, image: ImageConfig) -> None:
    """StudyError when the encoder ``name`` is for volumes and the study's images are not, or the other way."""
    if encoder_dimensions(name) == image.dimensions:
        return
    if image.depth is None:
        raise StudyError(f"encoder {name!r} is for volumes, but images are 2-D: set image.depth, or a 2-D encoder")
    raise StudyError(
        f"encoder {name!r} is for 2-D images, but image.depth {image.depth} says volumes: "
        f"choose {' or '.join(VOLUME_ENCODERS)}, or leave image.depth out"
    )
