"""Encoders: plain timm models, so that what a study exports loads in timm without this project."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.errors import StudyError, nearest
from foundation.vision_import import VisionTransformer, timm
from imaging.config import ImageConfig, Section
from ssl_methods.heads import grid_positions, take

Kind = Literal["vit", "convolutional"]

VIT_FAMILY = "vision_transformer"
CONVOLUTIONAL_FAMILIES = ("resnet", "resnetv2", "convnext", "densenet", "efficientnet", "regnet")
"""timm's model files of which models were tried here (tests/ssl_methods/test_encoders.py)."""


class EncoderConfig(Section):
    """Which encoder is pretrained."""

    name: str = Field(description="A timm model name; `fedpretext encoders` lists recommended ones.")
    patch_size: int | None = Field(
        default=None, ge=1, description="Side of a patch in pixels (ViT only); default: the model's own."
    )
    depth: int | None = Field(
        default=None, ge=1, description="Transformer blocks (ViT only); default: the model's own."
    )
    width: int | None = Field(
        default=None, ge=4, description="Channels of a patch token (ViT only), a multiple of 4 and of heads."
    )
    heads: int | None = Field(default=None, ge=1, description="Attention heads (ViT only); default: the model's own.")
    drop_path: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Share of residual branches dropped in training, at the last block.",
    )


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
    "convnext_atto": Recommended("ConvNeXt, no BatchNorm: 3.4 M weights", "Liu et al. 2022; Wightman"),
}


def encoder_kind(name: str) -> Kind:
    """Whether timm's model ``name`` is a plain ViT or convolutional; StudyError for any other name."""
    if not timm.is_model(name):
        known = timm.list_models()
        raise StudyError(
            f"encoder {name!r} is not a timm model{nearest(name, known)}; `fedpretext encoders` lists recommended ones"
        )
    family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    if family == VIT_FAMILY:
        return "vit"
    if family in CONVOLUTIONAL_FAMILIES:
        return "convolutional"
    raise StudyError(
        f"encoder {name!r} is of timm's family {family!r}; taken are {VIT_FAMILY}, "
        f"{', '.join(CONVOLUTIONAL_FAMILIES)}: choose a name from `fedpretext encoders`"
    )


def require_kind(name: str, method: str, kinds: Sequence[Kind]) -> None:
    """StudyError when the encoder ``name`` is of a kind that the method ``method`` does not take."""
    kind = encoder_kind(name)
    if kind not in kinds:
        suits = [known for known in ENCODERS if encoder_kind(known) in kinds]
        raise StudyError(
            f"encoder {name!r} is {kind}, but method {method!r} takes {' or '.join(kinds)} encoders: "
            f"choose for example {suits[0]!r}"
        )


def timm_arguments(config: EncoderConfig, image: ImageConfig) -> dict[str, Any]:
    """Keyword arguments of ``timm.create_model(config.name, ...)`` that give the study's encoder.

    StudyError when an option is given that the encoder cannot follow.
    """
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": image.channels}
    named = {"patch_size": "patch_size", "depth": "depth", "width": "embed_dim", "heads": "num_heads"}
    given = {option: getattr(config, option) for option in named if getattr(config, option) is not None}
    if encoder_kind(config.name) == "vit":
        arguments |= {"img_size": image.size, "class_token": False, "reg_tokens": 0, "global_pool": "avg"}
        arguments |= {"fc_norm": False} | {named[option]: value for option, value in given.items()}
    elif given:
        option, value = next(iter(given.items()))
        raise StudyError(
            f"encoder.{option} {value} does nothing for {config.name!r}: it belongs to ViT encoders; leave it out"
        )
    if config.drop_path > 0:
        arguments["drop_path_rate"] = config.drop_path
    return arguments


def timm_line(config: EncoderConfig, image: ImageConfig) -> str:
    """The line of Python with which plain timm loads the exported ``encoder.safetensors``."""
    arguments = timm_arguments(config, image) | {"checkpoint_path": "encoder.safetensors"}
    arguments.pop("drop_path_rate", None)  # has no weights and acts in training only
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"encoder = timm.create_model({config.name!r}, {written})"


def build_encoder(config: EncoderConfig, image: ImageConfig) -> nn.Module:
    """A fresh timm model (weights from torch's global generator): ``[B, C, S, S]`` -> ``[B, D]``.

    A ViT has no class token; its position embedding is the fixed sine-cosine one and is not trained, as in
    MAE and I-JEPA, and its pooled output is the mean of the normalised patch tokens.
    """
    arguments = timm_arguments(config, image)
    if encoder_kind(config.name) == "vit":
        _check_vit(config, image)
    try:
        encoder: nn.Module = timm.create_model(config.name, **arguments)
    except TypeError as error:
        raise StudyError(f"encoder {config.name!r} cannot be built as the study says: {error}") from error
    if isinstance(encoder, VisionTransformer):
        _fix_positions(encoder)
    return encoder


def _check_vit(config: EncoderConfig, image: ImageConfig) -> None:
    """StudyError when patches do not tile the picture or heads do not divide the width."""
    with torch.device("meta"):
        plain: Any = timm.create_model(config.name, num_classes=0)
    patch = config.patch_size or plain.patch_embed.patch_size[0]
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
        positions.copy_(grid_positions(grid_side(vit), positions.shape[-1])[None])
    positions.requires_grad_(False)


def feature_dim(encoder: nn.Module) -> int:
    """D, the number of channels of the pooled feature."""
    return int(cast(Any, encoder).num_features)


def features(encoder: nn.Module, pictures: Tensor) -> Tensor:
    """Pooled features ``[B, D]`` of ``[B, C, S, S]``."""
    return cast(Tensor, encoder(pictures))


def grid_side(vit: nn.Module) -> int:
    """Patches along one side of the picture."""
    return int(cast(Any, vit).patch_embed.grid_size[0])


def patch_side(vit: nn.Module) -> int:
    """Pixels along one side of a patch."""
    return int(cast(Any, vit).patch_embed.patch_size[0])


def patch_tokens(vit: nn.Module, pictures: Tensor, keep: Tensor | None = None) -> Tensor:
    """Normalised patch tokens ``[B, K, D]`` at the places ``keep`` ``[B, K]`` (row-major), or all N of them.

    Tokens are dropped before the first block: the pixels of a hidden patch reach nothing (He et al. 2022,
    sec. 3).
    """
    model = cast(Any, vit)
    tokens = model.patch_embed(pictures) + model.pos_embed  # [B, N, D]
    if keep is not None:
        tokens = take(tokens, keep)  # [B, K, D]
    return cast(Tensor, model.norm(model.blocks(model.norm_pre(tokens))))


def parameter_count(module: nn.Module) -> int:
    """Number of weights, trained or fixed."""
    return sum(parameter.numel() for parameter in module.parameters())
