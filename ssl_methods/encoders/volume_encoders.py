"""3-D encoders: plain MONAI networks, so that what a study exports loads in MONAI without this project."""

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.components.heads import grid_positions, take
from ssl_methods.encoders.table import VOLUME_ENCODERS, Patch

STAGES = 4
"""Of a Swin transformer; each doubles the channels and the attention heads of the one before."""


def monai_arguments(
    name: str,
    image: ImageConfig,
    *,
    patch_size: Patch | None,
    depth: int | None,
    width: int | None,
    heads: int | None,
    drop_path: float,
) -> dict[str, Any]:
    """Keyword arguments of MONAI's class that give the study's encoder; what is None has MONAI's own default.

    The ViT has MONAI's (and ViT-Base's) 12 blocks of 768 channels and patches of 16; the Swin UNETR encoder has
    the paper's 48 channels in the first stage, two blocks a stage, patches of 2 and windows of 7
    (Hatamizadeh et al. 2022). StudyError when an option does not suit the volume or the network.
    """
    vit = VOLUME_ENCODERS[name] == "vit"
    patch = patch_size or (16 if vit else 2)
    sides = (patch, patch, patch) if isinstance(patch, int) else patch
    width, heads = width or (768 if vit else 48), heads or (12 if vit else 3)
    if width % heads:
        raise StudyError(f"encoder width {width} with {heads} heads: set encoder.width to a multiple of encoder.heads")
    if not vit:
        return {
            "in_chans": image.channels,
            "embed_dim": width,
            "window_size": (7, 7, 7),
            "patch_size": sides,
            "depths": (depth or 2,) * STAGES,
            "num_heads": tuple(heads * 2**stage for stage in range(STAGES)),
            "drop_path_rate": drop_path,
        }
    if drop_path > 0:
        raise StudyError(f"encoder.drop_path {drop_path} does nothing for {name!r}: MONAI's ViT has none; leave it out")
    if width % 6:
        raise StudyError(f"encoder width {width} cannot place patches on 3 axes: set encoder.width to a multiple of 6")
    _check_tiling(image, sides)
    return {
        "in_channels": image.channels,
        "img_size": image.shape[1:],
        "patch_size": sides,
        "hidden_size": width,
        "mlp_dim": 4 * width,
        "num_layers": depth or 12,
        "num_heads": heads,
        "qkv_bias": True,
    }


def _check_tiling(image: ImageConfig, patch: tuple[int, ...]) -> None:
    """StudyError when patches do not tile the volume, or are only one of them."""
    whole = image.shape[1:]
    if any(side % part for side, part in zip(whole, patch, strict=True)) or whole == patch:
        fitting = [_fitting(side, part) for side, part in zip(whole, patch, strict=True)]
        raise StudyError(
            f"encoder patch_size {list(patch)} does not tile volumes of {list(whole)} (image.depth, image.size twice): "
            f"set encoder.patch_size to {fitting}, say"
        )


def _fitting(side: int, part: int) -> int:
    """The divisor of ``side``, below it, that is nearest to ``part``."""
    return min((divisor for divisor in range(1, side) if side % divisor == 0), key=lambda divisor: abs(divisor - part))


def _monai_class(name: str) -> tuple[str, str]:
    """Module and name of MONAI's class."""
    swin = ("monai.networks.nets.swin_unetr", "SwinTransformer")
    return ("monai.networks.nets.vit", "ViT") if VOLUME_ENCODERS[name] == "vit" else swin


def build_volume_encoder(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A fresh MONAI network, weights from torch's global generator; the ViT's positions are fixed sine-cosine."""
    from monai.networks.nets.swin_unetr import SwinTransformer  # seconds to import, and most studies are 2-D
    from monai.networks.nets.vit import ViT

    if VOLUME_ENCODERS[name] == "swin":
        return cast(nn.Module, SwinTransformer(**arguments))
    vit = cast(Any, ViT)(**arguments)
    embedding = vit.patch_embedding
    sides = zip(arguments["img_size"], arguments["patch_size"], strict=True)
    embedding.grid_size = tuple(whole // part for whole, part in sides)  # as timm's patch_embed has it
    with torch.no_grad():
        embedding.position_embeddings.copy_(grid_positions(embedding.grid_size, arguments["hidden_size"])[None])
    embedding.position_embeddings.requires_grad_(False)
    return cast(nn.Module, vit)


def monai_line(name: str, arguments: dict[str, Any]) -> str:
    """The line of Python with which plain MONAI loads the exported ``encoder.safetensors``."""
    module, called = _monai_class(name)
    kept = {option: value for option, value in arguments.items() if option != "drop_path_rate"}
    written = ", ".join(f"{option}={value!r}" for option, value in kept.items())
    return (
        f"from {module} import {called}; from safetensors.torch import load_file; "
        f"encoder = {called}({written}); encoder.load_state_dict(load_file('encoder.safetensors'))"
    )


def is_volume_encoder(encoder: nn.Module) -> bool:
    """Whether the network is one of MONAI's."""
    return type(encoder).__module__.startswith("monai.")


def is_volume_vit(encoder: nn.Module) -> bool:
    """Whether the network is MONAI's ViT."""
    return is_volume_encoder(encoder) and hasattr(encoder, "patch_embedding")


def volume_tokens(vit: nn.Module, volumes: Tensor, keep: Tensor | None = None) -> Tensor:
    """Normalised patch tokens ``[B, K, D]`` at the places ``keep`` ``[B, K]`` (row-major), or all N of them.

    Tokens are dropped before the first block, as in the 2-D ViT.
    """
    model = cast(Any, vit)
    tokens: Tensor = model.patch_embedding(volumes)  # [B, N, D], with positions
    if keep is not None:
        tokens = take(tokens, keep)  # [B, K, D]
    for block in cast(list[Callable[[Tensor], Tensor]], model.blocks):
        tokens = block(tokens)
    return cast(Tensor, model.norm(tokens))


def volume_maps(encoder: nn.Module, volumes: Tensor) -> Tensor:
    """The last spatial map ``[B, D, d, h, w]`` of ``[B, C, D, S, S]``; Swin's is layer-normed over channels."""
    if is_volume_vit(encoder):
        tokens = volume_tokens(encoder, volumes)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *volume_grid(encoder))
    return cast(Tensor, encoder(volumes)[-1])


def volume_features(encoder: nn.Module, volumes: Tensor) -> Tensor:
    """Pooled features ``[B, D]``: the mean of the normalised tokens or of the last map."""
    if is_volume_vit(encoder):
        return volume_tokens(encoder, volumes).mean(dim=1)
    return volume_maps(encoder, volumes).flatten(2).mean(dim=2)


def volume_width(encoder: nn.Module) -> int:
    """D, the number of channels of the pooled feature."""
    model = cast(Any, encoder)
    # MONAI's num_features is the last stage's width before its merging, which doubles it once more.
    return int(model.patch_embedding.position_embeddings.shape[2]) if is_volume_vit(encoder) else 2 * model.num_features


def volume_grid(vit: nn.Module) -> tuple[int, ...]:
    """Patches along depth, height and width."""
    return tuple(cast(Any, vit).patch_embedding.grid_size)


def volume_patch(vit: nn.Module) -> tuple[int, ...]:
    """Voxels of a patch along depth, height and width."""
    return tuple(cast(Any, vit).patch_embedding.patch_embeddings.kernel_size)


def volume_layers(encoder: nn.Module) -> dict[str, int]:
    """For every weight its layer from the stem (0): a block each, what follows a block goes with it."""
    depths: dict[str, int] = {}
    layer = 0
    seen = ""
    for name, _ in encoder.named_parameters():
        found = re.match(r"(?:layers\d\.0\.)?blocks\.\d+\.", name)
        if found and found[0] != seen:
            layer, seen = layer + 1, found[0]
        depths[name] = layer
    return depths
