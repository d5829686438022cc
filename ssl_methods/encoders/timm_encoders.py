"""Encoders: plain timm models, so that what a study exports loads in timm without this project."""

import functools
from typing import Any, cast

import torch
from torch import nn

from foundation import vision_import
from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.components.heads import grid_positions
from ssl_methods.encoders.outputs import grid_shape
from ssl_methods.encoders.table import (
    VOLUME_ENCODERS,
    EncoderConfig,
    encoder_kind,
    group_norm_options,
    require_dimensions,
    require_norm,
)
from ssl_methods.encoders.volume_encoders import (
    STAGES,
    build_volume_encoder,
    is_volume_encoder,
    monai_arguments,
    monai_line,
    volume_layers,
)


def timm_arguments(config: EncoderConfig, image: ImageConfig) -> dict[str, Any]:
    """Keyword arguments of ``timm.create_model(config.name, ...)`` that give the study's 2-D encoder.

    All but ``norm_layer``, which is no plain value (``norm_code``). StudyError when an option is given that the encoder
    cannot follow.
    """
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": image.channels}
    named = {"patch_size": "patch_size", "depth": "depth", "width": "embed_dim", "heads": "num_heads"}
    given = {option: getattr(config, option) for option in named if getattr(config, option) is not None}
    if isinstance(config.patch_size, tuple):
        raise StudyError(
            f"encoder.patch_size {list(config.patch_size)} has three sides, but {config.name!r} takes 2-D images: "
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


def norm_code(config: EncoderConfig) -> str:
    """How ``norm_layer=``, a further argument of ``timm.create_model``, is written in Python; "" where it is none."""
    if config.norm == "own":
        return ""
    options = ", ".join(f"{name}={value!r}" for name, value in group_norm_options(config.name).items())
    return f"norm_layer=functools.partial(timm.layers.GroupNormAct, {options})"


def timm_line(config: EncoderConfig, image: ImageConfig) -> str:
    """The line of Python with which plain timm (or MONAI, in 3-D) loads the exported ``encoder.safetensors``."""
    if config.name in VOLUME_ENCODERS:
        return monai_line(config.name, _monai_arguments(config, image))
    arguments = timm_arguments(config, image) | {"checkpoint_path": "encoder.safetensors"}
    arguments.pop("drop_path_rate", None)  # has no weights and acts in training only
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    if norm := norm_code(config):
        return f"import functools; encoder = timm.create_model({config.name!r}, {written}, {norm})"
    return f"encoder = timm.create_model({config.name!r}, {written})"


def build_encoder(config: EncoderConfig, image: ImageConfig) -> nn.Module:
    """A fresh timm or MONAI model (weights from torch's global generator) for images ``[B, *image.shape]``.

    A ViT has no class token; its position embedding is the fixed sine-cosine one and is not trained, as in
    MAE and I-JEPA, and its pooled output is the mean of the normalised patch tokens.
    """
    encoder_kind(config.name)  # an unknown name is told before what does not fit it
    require_dimensions(config.name, image)
    require_norm(config)
    if config.name in VOLUME_ENCODERS:
        return _frozen(build_volume_encoder(config.name, _monai_arguments(config, image)), config)
    arguments = timm_arguments(config, image)
    if encoder_kind(config.name) == "vit":
        _check_vit(config, image)
    if config.norm == "group":
        norm = cast(Any, vision_import.timm.layers).GroupNormAct
        arguments["norm_layer"] = functools.partial(norm, **group_norm_options(config.name))
    try:
        encoder: nn.Module = vision_import.timm.create_model(config.name, **arguments)
    except (TypeError, AssertionError) as error:
        norms = ", with norm: group (leave it out, or choose another encoder)" if config.norm == "group" else ""
        raise StudyError(f"encoder {config.name!r} cannot be built as the study says{norms}: {error}") from error
    if isinstance(encoder, vision_import.VisionTransformer):
        _fix_positions(encoder)
        cast(Any, encoder.patch_embed).strict_img_size = False  # the small crops of multi-crop: see patch_tokens
    if encoder_kind(config.name) == "convolutional":
        # A convolution whose weight is so laid out computes in this order, whatever its input's: up to 1.7 times as
        # fast on a CPU, and slower for none. Strides stay with copies and load_state_dict; in files they are plain.
        encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
    """StudyError when patches do not tile the image or heads do not divide the width."""
    with torch.device("meta"):
        plain: Any = vision_import.timm.create_model(config.name, num_classes=0)
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
    groups: dict[str, Any] = vision_import.timm.models.group_parameters(encoder, matcher, reverse=True)
    return {name: float(layer) for name, layer in groups.items()}


def drops_paths(name: str) -> bool:
    """Whether the encoder ``name`` has stochastic depth to set."""
    return name != "monai_vit"
