"""Which methods and encoders have exact per-image gradients; nothing else may be trained with privacy by patient."""

import functools

import torch
from torch import nn

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig, encoder_kind, has_batch_norm
from ssl_methods.encoders.timm_encoders import build_encoder
from ssl_methods.method_config import MethodConfig
from ssl_methods.per_sample.sample_gradients import trained_layers

EXACT = (
    "mae",
    "ijepa",
    "simmim",
    "spark",
    "autoencoder",
    "models_genesis",
    "rotation",
    "jigsaw",
    "relative_patch",
    "slice_order",
)
"""Methods of which ssl_methods.per_sample.sample_gradients was tested to be exact, over every permitted encoder.

All standardise images one by one or by constants (imaging.reading.standardise), and draw masks and places image by
image, also with focus; a pair of slice_order is of one patient.
"""
_BATCH_NORMALISED = ("byol", "simsiam")
"""Methods that BatchNorm in their heads couples, and nothing else."""


def check_per_sample(method: MethodConfig, encoder: EncoderConfig, image: ImageConfig) -> None:
    """StudyError where the gradient of one image depends on others, or was not tested to be exact.

    ``check_method`` is assumed to have passed: method, encoder and image fit each other.
    """
    for single in method.members().values() or (method,):
        _check_method(single.name)
    _check_encoder(encoder, image)


def _check_method(name: str) -> None:
    if name in EXACT:
        return
    reason = "has BatchNorm in its heads, which mixes" if name in _BATCH_NORMALISED else "compares or mixes"
    raise StudyError(
        f"method {name!r} {reason} the images of a batch, so that no patient's part of a step can be limited: "
        f"with privacy by patient choose {', '.join(EXACT[:-1])} or {EXACT[-1]}"
    )


def _check_encoder(encoder: EncoderConfig, image: ImageConfig) -> None:
    suits = "vit_tiny_patch16_224 or another plain ViT" if image.dimensions == 2 else "monai_vit"
    if has_batch_norm(encoder):
        raise StudyError(
            f"encoder {encoder.name!r} has BatchNorm, which mixes the images of a batch: with privacy by patient set "
            f"encoder.norm: group, or choose {suits}"
        )
    if encoder_kind(encoder.name) != "vit" and encoder.norm != "group":
        raise StudyError(
            f"encoder {encoder.name!r} was not tested to give each image's own gradient: with privacy by patient "
            f"choose {suits}"
        )
    if encoder.drop_path > 0:
        raise StudyError(
            f"encoder.drop_path {encoder.drop_path} draws from a seed inside the network, and privacy by patient "
            f"leaves no draw to a seed: set it to 0"
        )
    if image.dimensions == 2:
        _check_layers(encoder, image)


@functools.cache
def _check_layers(encoder: EncoderConfig, image: ImageConfig) -> None:
    """StudyError where an encoder of timm's has trained weights outside the known layers."""
    with torch.device("meta"):
        network: nn.Module = build_encoder(encoder, image)
    try:
        trained_layers(network)
    except ValueError as error:
        raise StudyError(
            f"encoder {encoder.name!r} has no exact gradients of single images ({error}): with privacy by patient "
            f"choose vit_tiny_patch16_224 or another plain ViT"
        ) from error
