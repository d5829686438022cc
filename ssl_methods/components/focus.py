"""How salient the patches of an image are, for masks that look at what they hide (``MethodConfig.focus``)."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from imaging.views.augment import full_precision
from imaging.views.saliency import entropy_map
from ssl_methods.encoders.outputs import patch_embeddings
from ssl_methods.method_config import Focus


def patch_weights(focus: Focus, images: Tensor, grid: Sequence[int], teacher: nn.Module | None = None) -> Tensor | None:
    """Saliency ``[B, N]`` of the patches of ``images``, row-major; None where the study does not focus.

    entropy: imaging.views.saliency.entropy_map, 0 for an empty patch. attention: what the teacher's last block looks
    at, in which no patch counts as empty; ``teacher`` is a 2-D ViT, in evaluation mode.
    """
    if focus == "none":
        return None
    with full_precision(images.device):
        if focus == "attention" and teacher is not None:
            return attention_received(teacher, images)
        return entropy_map(images, grid).flatten(1)


def attention_received(vit: nn.Module, images: Tensor) -> Tensor:
    """``[B, N]``, sums to 1: the attention that each patch gets in the last block of a 2-D ViT.

    AttMask takes the class token's attention (Kakogeorgiou et al. 2022, eq. 4); encoders here have no class token, as
    their feature is the mean of the patches: so it is the mean over all patches that ask, and over the heads.
    """
    model = cast(Any, vit)
    tokens = model.norm_pre(patch_embeddings(vit, images))
    *before, last = model.blocks
    for block in before:
        tokens = block(tokens)
    layer = last.attn
    asked = layer.qkv(last.norm1(tokens)).unflatten(2, (3, layer.num_heads, -1))  # [B, N, 3, heads, d]
    query, key, _ = asked.permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
    scores = layer.q_norm(query) @ layer.k_norm(key).transpose(2, 3) * layer.scale  # [B, heads, N, N]
    return cast(Tensor, scores.float().softmax(dim=3).mean(dim=(1, 2)))
