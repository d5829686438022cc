"""Encoders: plain timm models, so that what a study exports loads in timm without this project."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import nn

from foundation.errors import StudyError, nearest
from foundation.section import Section
from foundation.vision_import import VisionTransformer, timm
from imaging.config import ImageConfig
from ssl_methods.encoder_outputs import grid_shape
from ssl_methods.heads import grid_positions
from ssl_methods.volume_encoders import (
    STAGES,
    VOLUME_ENCODERS,
    Patch,
    build_volume_encoder,
    is_volume_encoder,
    monai_arguments,
    monai_line,
    volume_layers,
)

Kind = Literal["vit", "convolutional", "swin"]

VIT_FAMILY = "vision_transformer"
CONVOLUTIONAL_FAMILIES = ("resnet", "resnetv2", "convnext", "densenet", "efficientnet", "regnet")
SWIN_FAMILIES = ("swin_transformer", "swin_transformer_v2")
"""timm's model files of which models were tried here (tests/ssl_methods/test_encoders.py)."""


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

    summary: str
    paper: str


VIT_PAPER = "Dosovitskiy et al. 2021"
DEIT_PAPER = "Touvron et al. 2021"
RESNET_PAPER = "He et al. 2016"
ENCODERS: dict[str, Recommended] = {
    "vit_tiny_patch16_224": Recommended("ViT, 12 blocks of 192: 5.5 M weights, runs on a CPU", DEIT_PAPER),
    "vit_small_patch16_224": Recommended("ViT, 12 blocks of 384: 21.7 M weights, one small GPU", DEIT_PAPER),
    "vit_base_patch16_224": Recommended("ViT, 12 blocks of 768: 85.8 M weights", VIT_PAPER),
    "resnet10t": Recommended("ResNet, 10 layers, tiered stem: 4.9 M weights, runs on a CPU", RESNET_PAPER),
    "resnet18": Recommended("ResNet, 18 layers: 11.2 M weights", RESNET_PAPER),
    "resnet50": Recommended("ResNet, 50 layers: 23.5 M weights", RESNET_PAPER),
    "swin_tiny_patch4_window7_224": Recommended(
        "Swin, windows of 7 x 7 patches: 27.5 M weights, one small GPU", "Liu et al. 2021"
    ),
    "monai_vit": Recommended(
        "for volumes: MONAI's ViT, 12 blocks of 768: 88.4 M weights at 96 voxels a side", VIT_PAPER
    ),
    "monai_swin_unetr": Recommended(
        "for volumes: MONAI's Swin UNETR encoder, 48 channels: 8.1 M weights, a GPU", "Hatamizadeh et al. 2022"
    ),
    "convnext_atto": Recommended("ConvNeXt, no BatchNorm: 3.4 M weights", "Liu et al. 2022; Wightman"),
}


def encoder_kind(name: str) -> Kind:
    """Whether the encoder ``name`` is a plain ViT, convolutional or a Swin; StudyError for any other name."""
    if name in VOLUME_ENCODERS:
        return VOLUME_ENCODERS[name]
    if not timm.is_model(name):
        known = [*timm.list_models(), *VOLUME_ENCODERS]
        raise StudyError(
            f"encoder {name!r} is not a timm model{nearest(name, known)}; `fedpretext encoders` lists recommended ones"
        )
    family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
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
    """StudyError when the encoder ``name`` is for volumes and the study's pictures are not, or the other way."""
    if encoder_dimensions(name) == image.dimensions:
        return
    if image.depth is None:
        raise StudyError(f"encoder {name!r} is for volumes, but pictures are 2-D: set image.depth, or a 2-D encoder")
    raise StudyError(
        f"encoder {name!r} is for 2-D pictures, but image.depth {image.depth} says volumes: "
        f"choose {' or '.join(VOLUME_ENCODERS)}, or leave image.depth out"
    )


def timm_arguments(config: EncoderConfig, image: ImageConfig) -> dict[str, Any]:
    """Keyword arguments of ``timm.create_model(config.name, ...)`` that give the study's 2-D encoder.

    StudyError when an option is given that the encoder cannot follow.
    """
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": image.channels}
    named = {"patch_size": "patch_size", "depth": "depth", "width": "embed_dim", "heads": "num_heads"}
    given = {option: getattr(config, option) for option in named if getattr(config, option) is not None}
    if isinstance(config.patch_size, tuple):
        raise StudyError(
            f"encoder.patch_size {list(config.patch_size)} has three sides, but {config.name!r} takes 2-D pictures: "
            f"give one number"
        )
    kind = encoder_kind(config.name)
    if kind == "vit":
        arguments |= {"img_size": image.size, "class_token": False, "reg_tokens": 0, "global_pool": "avg"}
        arguments |= {"fc_norm": False} | {named[option]: value for option, value in given.items()}
    elif kind == "swin":
        arguments |= {"img_size": image.size, "strict_img_size": False} | _swin_arguments(config)
    elif given:
        option, value = next(iter(given.items()))
        raise StudyError(
            f"encoder.{option} {value} does nothing for {config.name!r}: it belongs to ViT encoders; leave it out"
        )
    if config.drop_path > 0 or kind == "swin":  # timm's Swin otherwise drops .1
        arguments["drop_path_rate"] = config.drop_path
    return arguments


def _swin_arguments(config: EncoderConfig) -> dict[str, Any]:
    """What is given of a 2-D Swin's options, in timm's names; each stage doubles the heads."""
    found: dict[str, Any] = {}
    if config.patch_size is not None:
        found["patch_size"] = config.patch_size
    if config.depth is not None:
        found["depths"] = (config.depth,) * STAGES
    if config.width is not None:
        found["embed_dim"] = config.width
    if config.heads is not None:
        found["num_heads"] = tuple(config.heads * 2**stage for stage in range(STAGES))
    return found


def _monai_arguments(config: EncoderConfig, image: ImageConfig) -> dict[str, Any]:
    """Keyword arguments of MONAI's class for the study's 3-D encoder."""
    return monai_arguments(
        config.name,
        image,
        patch_size=config.patch_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        drop_path=config.drop_path,
    )


def timm_line(config: EncoderConfig, image: ImageConfig) -> str:
    """The line of Python with which plain timm (or MONAI, in 3-D) loads the exported ``encoder.safetensors``."""
    if config.name in VOLUME_ENCODERS:
        return monai_line(config.name, _monai_arguments(config, image))
    arguments = timm_arguments(config, image) | {"checkpoint_path": "encoder.safetensors"}
    arguments.pop("drop_path_rate", None)  # has no weights and acts in training only
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"encoder = timm.create_model({config.name!r}, {written})"


def build_encoder(config: EncoderConfig, image: ImageConfig) -> nn.Module:
    """A fresh timm or MONAI model (weights from torch's global generator) for pictures ``[B, *image.shape]``.

    A ViT has no class token; its position embedding is the fixed sine-cosine one and is not trained, as in
    MAE and I-JEPA, and its pooled output is the mean of the normalised patch tokens.
    """
    encoder_kind(config.name)  # an unknown name is told before what does not fit it
    require_dimensions(config.name, image)
    if config.name in VOLUME_ENCODERS:
        return _frozen(build_volume_encoder(config.name, _monai_arguments(config, image)), config)
    arguments = timm_arguments(config, image)
    if encoder_kind(config.name) == "vit":
        _check_vit(config, image)
    try:
        encoder: nn.Module = timm.create_model(config.name, **arguments)
    except (TypeError, AssertionError) as error:
        raise StudyError(f"encoder {config.name!r} cannot be built as the study says: {error}") from error
    if isinstance(encoder, VisionTransformer):
        _fix_positions(encoder)
        cast(Any, encoder.patch_embed).strict_img_size = False  # the small crops of multi-crop: see patch_tokens
    return _frozen(encoder, config)


def _frozen(encoder: nn.Module, config: EncoderConfig) -> nn.Module:
    """The encoder with the weights that ``frozen_blocks`` names not trained; StudyError where it has no such blocks."""
    count = config.frozen_blocks
    if count == 0:
        return encoder
    if encoder_kind(config.name) != "vit":
        raise StudyError(
            f"encoder.frozen_blocks {count}: {config.name!r} is no ViT, whose lowest blocks could be kept; leave it out"
        )
    blocks = list(cast(nn.Sequential, encoder.get_submodule("blocks")))
    if count > len(blocks):
        raise StudyError(
            f"encoder.frozen_blocks {count}: the encoder has {len(blocks)} blocks; set it to those at most"
        )
    before = [name for name in ("patch_embed", "norm_pre", "patch_embedding") if hasattr(encoder, name)]
    for module in [*map(encoder.get_submodule, before), *blocks[:count]]:
        module.requires_grad_(False)
    return encoder


def _check_vit(config: EncoderConfig, image: ImageConfig) -> None:
    """StudyError when patches do not tile the picture or heads do not divide the width."""
    with torch.device("meta"):
        plain: Any = timm.create_model(config.name, num_classes=0)
    patch = cast(int, config.patch_size or plain.patch_embed.patch_size[0])
    if image.size % patch or image.size == patch:
        fitting = [side for side in range(2, image.size) if image.size % side == 0]
        nearest_side = min(fitting, key=lambda side: abs(side - patch), default=None)
        remedy = f"image.size to {2 * patch}" if nearest_side is None else f"encoder.patch_size to {nearest_side}"
        raise StudyError(
            f"encoder patch_size {patch} does not divide image.size {image.size} into 2 x 2 patches or more: "
            f"set {remedy}, say"
        )
    width, heads = config.width or plain.embed_dim, config.heads or plain.blocks[0].attn.num_heads
    if width % heads or width % 4:
        raise StudyError(
            f"encoder width {width} with {heads} heads: the width must be a multiple of the heads and of 4; "
            f"set encoder.width and encoder.heads"
        )


def _fix_positions(vit: nn.Module) -> None:
    """Set a ViT's position embedding to the fixed one; StudyError when it has none."""
    positions = vit.get_parameter("pos_embed") if getattr(vit, "pos_embed", None) is not None else None
    if positions is None:
        raise StudyError("this ViT has no absolute position embedding; choose a name from `fedpretext encoders`")
    with torch.no_grad():
        positions.copy_(grid_positions(grid_shape(vit), positions.shape[-1])[None])
    positions.requires_grad_(False)


def layer_depths(encoder: nn.Module) -> dict[str, float]:
    """For every weight its layer, rising from the stem: timm's own grouping (stem, block 1, ...), in 3-D likewise."""
    if is_volume_encoder(encoder):
        return {name: float(layer) for name, layer in volume_layers(encoder).items()}
    matcher = cast(Any, encoder).group_matcher(coarse=False)
    groups: dict[str, Any] = timm.models.group_parameters(encoder, matcher, reverse=True)
    return {name: float(layer) for name, layer in groups.items()}


def drops_paths(name: str) -> bool:
    """Whether the encoder ``name`` has stochastic depth to set."""
    return name != "monai_vit"
