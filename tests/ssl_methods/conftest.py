"""Tiny encoders, pictures and methods for the tests of this room."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, Method, build_method
from ssl_methods.encoders import EncoderConfig
from ssl_methods.method import Batch

IMAGE = ImageConfig(modality="mri", size=32, channels=1)
TINY_VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2, width=48, heads=3)
TINY_RESNET = EncoderConfig(name="resnet10t")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small tensors are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def image() -> ImageConfig:
    """Pictures of 32 x 32 pixels, one channel: 8 x 8 patches of the tiny ViT."""
    return IMAGE


@pytest.fixture
def tiny_vit() -> EncoderConfig:
    """A ViT of two blocks."""
    return TINY_VIT


@pytest.fixture
def build() -> Callable[..., Method]:
    """``build(name, encoder=..., **options)``: a method over a tiny encoder."""

    def make(name: str, encoder: EncoderConfig = TINY_VIT, seed: int = 0, **options: Any) -> Method:
        config = TypeAdapter(AnyMethodConfig).validate_python({"name": name, **options})
        return build_method(config, encoder, IMAGE, seed)

    return make


@pytest.fixture
def blobs() -> Callable[..., Batch]:
    """``blobs(count, per_patient=1)``: pictures of a few soft discs in [0, 1], ``per_patient`` of each patient."""

    def make(count: int, per_patient: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(count)
        line = torch.linspace(0, 1, IMAGE.size)
        picture: Tensor = torch.zeros(count, 1, IMAGE.size, IMAGE.size)
        for _ in range(3):
            x, y, size = torch.rand(3, count, 1, 1, 1, generator=generator)
            distance = (line - x) ** 2 + (line[:, None] - y) ** 2
            picture = picture + torch.exp(-distance / (0.01 + 0.05 * size))
        codes = torch.arange(count) // per_patient
        return Batch(picture.clamp(0, 1), codes, torch.arange(count))

    return make
