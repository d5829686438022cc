"""What comes out of an encoder: pooled features, spatial maps, patch tokens, of images and volumes alike."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from foundation import vision_import
from ssl_methods.components.heads import take
from ssl_methods.encoders.volume_encoders import (
    is_volume_encoder,
    volume_features,
    volume_grid,
    volume_maps,
    volume_patch,
    volume_tokens,
    volume_width,
)


def feature_dim(encoder: nn.Module) -> int:
    """D, the number of channels of the pooled feature."""
    return volume_width(encoder) if is_volume_encoder(encoder) else int(cast(Any, encoder).num_features)


def features(encoder: nn.Module, images: Tensor) -> Tensor:
    """Pooled features ``[B, D]`` of ``[B, C, S, S]`` or, by a 3-D encoder, ``[B, C, D, S, S]``.

    A 2-D encoder takes crops of another side too: a ViT or a Swin of any multiple of its patch.
    """
    if is_volume_encoder(encoder):
        return volume_features(encoder, images)
    if isinstance(encoder, vision_import.VisionTransformer) and _grid_of(encoder, images) != grid_shape(encoder):
        return patch_tokens(encoder, images).mean(dim=1)
    return cast(Tensor, encoder(images))


def feature_maps(encoder: nn.Module, images: Tensor) -> Tensor:
    """The last spatial map ``[B, D, h, w]`` (in 3-D ``[B, D, d, h, w]``), before pooling, for decoders and dense heads.

    A ViT's are its normalised patch tokens on their grid. Others give what they pool; some of timm's networks
    normalise only afterwards.
    """
    if is_volume_encoder(encoder):
        return volume_maps(encoder, images)
    if isinstance(encoder, vision_import.VisionTransformer):
        tokens = patch_tokens(encoder, images)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *_grid_of(encoder, images))
    found = cast(Tensor, cast(Any, encoder).forward_features(images))
    last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"  # timm's Swin has the channels last
    return found.permute(0, 3, 1, 2).contiguous() if last else found


def grid_shape(vit: nn.Module) -> tuple[int, ...]:
    """Patches along height and width, or depth, height and width."""
    return volume_grid(vit) if is_volume_encoder(vit) else tuple(cast(Any, vit).patch_embed.grid_size)


def patch_shape(vit: nn.Module) -> tuple[int, ...]:
    """Pixels of a patch along height and width, or depth, height and width."""
    return volume_patch(vit) if is_volume_encoder(vit) else tuple(cast(Any, vit).patch_embed.patch_size)


def grid_side(vit: nn.Module) -> int:
    """Patches along one side of a 2-D image."""
    return grid_shape(vit)[-1]


def patch_side(vit: nn.Module) -> int:
    """Pixels along one side of a patch of a 2-D image."""
    return patch_shape(vit)[-1]


def block_count(vit: nn.Module) -> int:
    """Transformer blocks of a ViT, of images or volumes."""
    return len(cast(Any, vit).blocks)


def patch_tokens(vit: nn.Module, images: Tensor, keep: Tensor | None = None) -> Tensor:
    """Normalised patch tokens ``[B, K, D]`` at the places ``keep`` ``[B, K]`` (row-major), or all N of them.

    Tokens are dropped before the first block: the pixels of a hidden patch reach nothing (He et al. 2022,
    sec. 3). 2-D images may have another side than the study's, a multiple of the patch (small crops).
    """
    if is_volume_encoder(vit):
        return volume_tokens(vit, images, keep)
    model = cast(Any, vit)
    tokens = patch_embeddings(vit, images)  # [B, N, D]
    if keep is not None:
        tokens = take(tokens, keep)  # [B, K, D]
    return cast(Tensor, model.norm(model.blocks(model.norm_pre(tokens))))


def patch_embeddings(vit: nn.Module, images: Tensor) -> Tensor:
    """Embedded patches with their positions ``[B, N, D]`` of a 2-D ViT, before its first block."""
    return cast(Tensor, cast(Any, vit).patch_embed(images)) + _positions(vit, _grid_of(vit, images))


def masked_tokens(vit: nn.Module, images: Tensor, mask: Tensor, mask_token: nn.Embedding) -> Tensor:
    """Normalised patch tokens ``[B, N, D]`` of a 2-D ViT that sees a mask token in place of hidden patches.

    images ``[B, C, S, S]``; mask ``[B, N]`` bool, row-major, true where hidden; mask_token one vector of D. It
    replaces the embedded patch before the first block and gets the place's position like any patch, so that no
    hidden pixel reaches anything (SimMIM, Xie et al. 2022, sec. 3.2; iBOT, Zhou et al. 2022, sec. 3.1).
    """
    model = cast(Any, vit)
    seen = model.patch_embed(images)  # [B, N, D]
    hidden = mask_token(mask.new_zeros(mask.shape, dtype=torch.long)).to(seen.dtype)  # [B, N, D]
    tokens = torch.where(mask[:, :, None], hidden, seen) + _positions(vit, _grid_of(vit, images))
    return cast(Tensor, model.norm(model.blocks(model.norm_pre(tokens))))


def masked_maps(encoder: nn.Module, images: Tensor, mask: Tensor, mask_token: nn.Embedding) -> Tensor:
    """The last spatial map ``[B, D, h, w]`` of a 2-D ViT or Swin that sees a mask token in place of hidden patches.

    mask ``[B, N]`` bool over the patches that the encoder embeds, row-major; mask_token one vector of ``token_dim``.
    """
    if isinstance(encoder, vision_import.VisionTransformer):
        tokens = masked_tokens(encoder, images, mask, mask_token)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *_grid_of(encoder, images))
    model = cast(Any, encoder)
    seen = model.patch_embed(images)  # [B, H, W, D of the first stage]
    hidden = mask_token(mask.new_zeros(seen.shape[:3], dtype=torch.long)).to(seen.dtype)
    mixed = torch.where(mask.view(*seen.shape[:3], 1), hidden, seen)
    return cast(Tensor, model.norm(model.layers(mixed))).permute(0, 3, 1, 2).contiguous()


def token_dim(encoder: nn.Module) -> int:
    """Channels of an embedded patch of a 2-D ViT or Swin, before the first block."""
    return int(cast(Any, encoder).embed_dim)


def _grid_of(vit: nn.Module, images: Tensor) -> tuple[int, ...]:
    """Patches along height and width of 2-D images of any side."""
    return tuple(side // patch for side, patch in zip(images.shape[2:], patch_shape(vit), strict=True))


def _positions(vit: nn.Module, grid: tuple[int, ...]) -> Tensor:
    """The position embedding ``[1, N, D]`` of a 2-D ViT, resampled (bicubic, as in DINO) where the grid is another."""
    whole = vit.get_parameter("pos_embed")
    if grid == grid_shape(vit):
        return whole
    planes = whole.transpose(1, 2).reshape(1, -1, *grid_shape(vit))  # [1, D, h, w]
    return functional.interpolate(planes, size=grid, mode="bicubic").flatten(2).transpose(1, 2)
