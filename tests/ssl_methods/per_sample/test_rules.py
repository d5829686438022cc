"""What may be trained with privacy by patient, and why the rest may not; frozen blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods import METHODS, AnyMethodConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder
from ssl_methods.method import Batch, Method
from ssl_methods.per_sample.rules import EXACT, check_per_sample

IMAGE = ImageConfig(modality="mri", size=32, channels=1)
VOLUME = ImageConfig(modality="mri", size=16, depth=8, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2, width=48, heads=3)
ALTERNATIVES = (
    "with privacy by patient choose mae, ijepa, simmim, spark, autoencoder, models_genesis, rotation, jigsaw, "
    "relative_patch or slice_order"
)


def check(name: str, encoder: EncoderConfig = VIT, image: ImageConfig = IMAGE, **options: Any) -> None:
    check_per_sample(TypeAdapter(AnyMethodConfig).validate_python({"name": name, **options}), encoder, image)


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_are_taken(name: str) -> None:
    check(name)
    assert METHODS[name].per_sample
    if 3 in METHODS[name].dimensions:
        check(name, EncoderConfig(name="monai_vit", patch_size=4, width=48, heads=3), VOLUME)


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "efficientnet_lite0"])
def test_an_encoder_with_group_norm_is_taken(name: str, build: Callable[..., Method]) -> None:
    encoder = EncoderConfig(name=name, norm="group")
    check("rotation", encoder)
    assert not build("rotation", encoder=encoder).is_batch_coupled()
    assert build("rotation", encoder=EncoderConfig(name=name)).is_batch_coupled()


def test_a_sum_of_exact_methods_is_taken() -> None:
    check("combine", methods=[{"method": {"name": "mae"}}, {"method": {"name": "rotation"}}])


@pytest.mark.parametrize("name", sorted(set(METHODS) - {*EXACT, "combine"}))
def test_all_other_methods_are_refused(name: str) -> None:
    reason = "has BatchNorm in its heads, which mixes" if name in ("byol", "simsiam") else "compares or mixes"
    with pytest.raises(StudyError) as caught:
        check(name)
    assert str(caught.value) == (
        f"method {name!r} {reason} the images of a batch, so that no patient's part of a step can be limited: "
        f"{ALTERNATIVES}"
    )


def test_a_sum_with_one_that_couples_is_refused() -> None:
    with pytest.raises(StudyError, match="method 'simclr' compares or mixes"):
        check("combine")


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            EncoderConfig(name="resnet10t"),
            "encoder 'resnet10t' has BatchNorm, which mixes the images of a batch: with privacy by patient set "
            "encoder.norm: group, or choose vit_tiny_patch16_224 or another plain ViT",
        ),
        (
            EncoderConfig(name="ecaresnet26t", norm="group"),
            "encoder 'ecaresnet26t' has no exact gradients of single images (layer1.0.se.conv.weight is trained in a "
            "Conv1d, no known layer): with privacy by patient choose vit_tiny_patch16_224 or another plain ViT",
        ),
        (
            EncoderConfig(name="convnext_atto"),
            "encoder 'convnext_atto' was not tested to give each image's own gradient: "
            "with privacy by patient choose vit_tiny_patch16_224 or another plain ViT",
        ),
        (
            EncoderConfig(name="swin_tiny_patch4_window7_224"),
            "encoder 'swin_tiny_patch4_window7_224' was not tested to give each image's own gradient: "
            "with privacy by patient choose vit_tiny_patch16_224 or another plain ViT",
        ),
        (
            VIT.model_copy(update={"drop_path": 0.1}),
            "encoder.drop_path 0.1 draws from a seed inside the network, and privacy by patient leaves no draw to a "
            "seed: set it to 0",
        ),
        (
            EncoderConfig(name="vit_dlittle_patch16_reg1_gap_256", depth=1),
            "encoder 'vit_dlittle_patch16_reg1_gap_256' has no exact gradients of single images "
            "(blocks.0.attn.lambda_q1 is trained in a DiffAttention, no known layer): with privacy by patient choose "
            "vit_tiny_patch16_224 or another plain ViT",
        ),
    ],
)
def test_other_encoders_are_refused(encoder: EncoderConfig, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        check("rotation", encoder)
    assert str(caught.value) == message


def test_the_swin_of_volumes_is_refused() -> None:
    with pytest.raises(StudyError, match=r"'monai_swin_unetr' was not tested .* choose monai_vit"):
        check("rotation", EncoderConfig(name="monai_swin_unetr"), VOLUME)


@pytest.mark.parametrize(("name", "dimensions", "embedding"), [
    ("ijepa", 2, "patch_embed."), ("mae", 2, "patch_embed."), ("mae", 3, "patch_embedding."),
])  # fmt: skip
def test_frozen_blocks_stay_and_the_others_move(
    name: str, dimensions: int, embedding: str, build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    size: dict[str, Any] = {"patch_size": 4, "depth": 2, "width": 48, "heads": 3}
    encoder = EncoderConfig(name="vit_tiny_patch16_224" if dimensions == 2 else "monai_vit", frozen_blocks=1, **size)
    method = build(name, encoder=encoder, dimensions=dimensions)
    before = {key: value.clone() for key, value in method.encoder.named_parameters()}
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 1e-2)
    views = method.make_views(blobs(4, dimensions=dimensions), torch.Generator().manual_seed(0))
    torch.autograd.backward(method.loss(views)[0])
    optimiser.step()
    method.after_step(0.5, 4)
    moved = {key for key, value in method.encoder.named_parameters() if not torch.equal(value, before[key])}
    kept = {key for key in before if key.startswith((embedding, "blocks.0.")) or "pos" in key}
    assert not moved & kept
    assert {key for key in before if key.startswith("blocks.1.") and "cross" not in key} <= moved
    assert {f"encoder.{key}" for key in before} <= set(method.shared_state())


@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        (
            "resnet10t",
            1,
            "encoder.frozen_blocks 1: 'resnet10t' is no ViT, whose lowest blocks could be kept; leave it out",
        ),
        (
            "vit_tiny_patch16_224",
            13,
            "encoder.frozen_blocks 13: the encoder has 12 blocks; set it to those at most",
        ),
    ],
)
def test_frozen_blocks_that_are_not_there_are_refused(name: str, blocks: int, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        build_encoder(EncoderConfig(name=name, frozen_blocks=blocks), IMAGE)
    assert str(caught.value) == message
