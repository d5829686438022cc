"""Running statistics of BatchNorm: restarted for a round, estimated on plain images."""

import numpy as np
import pytest
import torch
from torch import nn

from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.statistics import batch_norms, estimate_statistics, follow_batches, plain_batches
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

IMAGE = ImageConfig(modality="mri", size=32, channels=1)


@pytest.fixture(params=["resnet10t", "efficientnet_lite0"])
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(name=request.param, drop_path=0.2), IMAGE).train()


def images(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.rand(count, 1, 1, 1, generator=draw) * torch.rand(count, 1, 32, 32, generator=draw)


def inputs_of(encoder: nn.Module, layer: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """What ``layer`` gets when every layer normalises by the batch; ``[C, n]``."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    encoder.eval()
    for one in batch_norms(encoder):
        one.train()
    with torch.no_grad():
        features(encoder, batch)
    hook.remove()
    return seen[0].transpose(0, 1).flatten(1)


def test_one_batch_gives_every_layer_the_moments_of_what_it_sees(encoder: nn.Module) -> None:
    batch = images(12)
    estimate_statistics(encoder, [batch])
    assert encoder.training
    layers = batch_norms(encoder)
    found = [(layer, layer.running_mean.clone(), layer.running_var.clone()) for layer in (layers[0], layers[-1])]
    for layer, mean, variance in found:
        seen = inputs_of(encoder, layer, batch)
        torch.testing.assert_close(mean, seen.mean(dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, seen.var(dim=1, correction=0), rtol=1e-4, atol=1e-6)


def test_uneven_batches_give_the_first_layer_the_figures_of_all_images(encoder: nn.Module) -> None:
    whole = images(20)
    estimate_statistics(encoder, [whole])
    first = batch_norms(encoder)[0]
    mean, variance = first.running_mean.clone(), first.running_var.clone()
    estimate_statistics(encoder, [whole[:3], whole[3:15], whole[15:]])
    torch.testing.assert_close(first.running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.running_var, variance, rtol=1e-4, atol=1e-7)


def test_only_running_means_and_variances_change(encoder: nn.Module) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    estimate_statistics(encoder, [images(8)])
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)


def test_the_estimate_is_the_same_bits_twice_whatever_was_there(encoder: nn.Module) -> None:
    estimate_statistics(encoder, [images(8), images(6)])
    once = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(images(5))  # other ones
    estimate_statistics(encoder, [images(8), images(6)])
    again = encoder.state_dict()
    assert all(torch.equal(again[name], once[name]) for name in again if name.endswith(("_mean", "_var")))


def test_a_round_forgets_the_statistics_of_the_one_before() -> None:
    layer = nn.BatchNorm2d(2).train()
    layer(torch.full((4, 2, 3, 3), 100.0))
    batches = [torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    for number, batch in enumerate(batches):
        follow_batches(layer, anew=number == 0)
        layer(batch)
    mean = batches[0].mean(dim=(0, 2, 3))
    for batch in batches[1:]:
        mean = 0.9 * mean + 0.1 * batch.mean(dim=(0, 2, 3))
    torch.testing.assert_close(layer.running_mean, mean)


def test_an_encoder_without_batch_norm_is_left_alone() -> None:
    encoder = build_encoder(EncoderConfig(name="vit_tiny_patch16_224", patch_size=8), IMAGE)
    estimate_statistics(encoder, iter([]))
    assert batch_norms(encoder) == []


@pytest.mark.parametrize(("count", "sizes"), [(2, [2]), (128, [128]), (129, [65, 64]), (300, [100, 100, 100])])
def test_batches_are_even_and_every_image_is_in_one(count: int, sizes: list[int]) -> None:
    read: list[int] = []

    def images_at(places: np.ndarray) -> torch.Tensor:
        read.extend(places.tolist())
        return torch.rand(len(places), *IMAGE.shape)

    found = [len(batch) for batch in plain_batches(count, images_at, IMAGE, torch.device("cpu"))]
    assert found == sizes
    assert read == list(range(count))
