"""timm, importable also where torchvision's compiled part does not fit the installed torch.

timm imports torchvision, and torchvision registers shape rules for two operators of its compiled part. Where
that part cannot be loaded (pip pairs the CPU build of torch with the CUDA build of torchvision), the import
itself fails. Nothing here uses those operators (box suppression), so declaring their names is enough. Import
timm from this file only.
"""

import importlib

import torch

BOX_OPERATORS = ("nms", "qnms")


def declare_box_operators() -> None:
    """Declare torchvision's box operators by name only: calling one still fails, importing does not."""
    for name in BOX_OPERATORS:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    importlib.import_module("torchvision")
except RuntimeError as failure:
    if "operator torchvision::" not in str(failure):
        raise
    declare_box_operators()

import timm  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

__all__ = ["Block", "VisionTransformer", "timm"]
