"""Tiny encoders, images and methods for the tests of this room."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, build_method, method_class
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method

IMAGE = ImageConfig(modality="mri", size=32, channels=1)
TINY_VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2, width=48, heads=3)
TINY_RESNET = EncoderConfig(name="resnet10t", norm="group")
VOLUME = ImageConfig(modality="mri", size=16, depth=8, channels=1)
TINY_VOLUME_VIT = EncoderConfig(name="monai_vit", patch_size=4, depth=2, width=48, heads=3)
TINY_VOLUME_SWIN = EncoderConfig(name="monai_swin_unetr", depth=1, width=12, heads=3)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small tensors are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def image() -> ImageConfig:
    """Images of 32 x 32 pixels, one channel: 8 x 8 patches of the tiny ViT."""
    return IMAGE


@pytest.fixture
def tiny_vit() -> EncoderConfig:
    """A ViT of two blocks."""
    return TINY_VIT


@pytest.fixture
def volume() -> ImageConfig:
    """Volumes of 8 slices of 16 x 16 voxels, one channel: 2 x 4 x 4 patches of the tiny 3-D ViT."""
    return VOLUME


@pytest.fixture
def tiny_volume_swin() -> EncoderConfig:
    """MONAI's Swin of one block a stage."""
    return TINY_VOLUME_SWIN


@pytest.fixture
def build() -> Callable[..., Method]:
    """``build(name, encoder=..., dimensions=2, **options)``: a method over a tiny encoder.

    By default a ViT, or a ResNet with GroupNorm for a method that takes none.
    """

    def make(
        name: str, encoder: EncoderConfig | None = None, seed: int = 0, dimensions: int = 2, **options: Any
    ) -> Method:
        config = TypeAdapter(AnyMethodConfig).validate_python({"name": name, **options})
        if dimensions == 3:
            return build_method(config, encoder or TINY_VOLUME_VIT, VOLUME, seed)
        own = TINY_VIT if "vit" in method_class(config).encoders else TINY_RESNET
        return build_method(config, encoder or own, IMAGE, seed)

    return make


@pytest.fixture
def blobs() -> Callable[..., Batch]:
    """``blobs(count, per_patient=1, dimensions=2)``: images of a few soft discs (volumes: balls) in [0, 1].

    ``per_patient`` of them are of each patient.
    """

    def make(count: int, per_patient: int = 1, dimensions: int = 2) -> Batch:
        generator = torch.Generator().manual_seed(count)
        shape = VOLUME.shape if dimensions == 3 else IMAGE.shape
        *depth, rows, columns = (torch.linspace(0, 1, side) for side in shape[1:])
        image: Tensor = torch.zeros(count, *shape)
        for _ in range(3):
            x, y, size, *z = torch.rand(dimensions + 1, count, *[1] * (dimensions + 1), generator=generator)
            distance = (columns - x) ** 2 + (rows[:, None] - y) ** 2
            for line, at in zip(depth, z, strict=True):
                distance = distance + (line[:, None, None] - at) ** 2
            image = image + torch.exp(-distance / (0.01 + 0.05 * size))
        codes = torch.arange(count) // per_patient
        return Batch(image.clamp(0, 1), codes, codes, torch.arange(count))

    return make
