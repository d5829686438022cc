"""``norm: group``: every BatchNorm of an encoder is GroupNorm, all else as it was, and nothing else may ask for it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foundation.errors import StudyError
from foundation.randomness import seeded_torch
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.starting_weights import fit_weights
from ssl_methods.encoders.table import ENCODERS, GROUP, EncoderConfig, encoder_dimensions, has_batch_norm
from ssl_methods.encoders.timm_encoders import build_encoder

IMAGE = ImageConfig(modality="mri", size=32, channels=2)
NAMES = ["resnet10t", "resnet18", "resnetv2_18", "densenet121", "efficientnet_lite0", "efficientnet_b0",
         "mobilenetv2_050", "regnetx_002"]  # fmt: skip
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Layers: Any = timm.layers


def fresh(name: str, norm: str = "group") -> nn.Module:
    with seeded_torch(0, "test"):
        return build_encoder(EncoderConfig.model_validate({"name": name, "norm": norm}), IMAGE)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, *IMAGE.shape, generator=torch.Generator().manual_seed(0))


def activation(layer: Any) -> str:
    return repr(getattr(layer, "act", nn.Identity()))


@pytest.mark.parametrize("name", NAMES)
def test_group_norm_takes_the_place_of_every_batch_norm_and_of_nothing_else(name: str) -> None:
    before, after = (dict(fresh(name, norm).named_modules()) for norm in ("own", "group"))
    replaced = {place for place, layer in before.items() if isinstance(layer, _BatchNorm)}
    assert replaced
    assert before.keys() <= after.keys()
    for place, layer in after.items():
        if place not in replaced:
            assert type(layer) is type(
                before.get(place, nn.Identity())
            )  # a ResNet's norm has an activation that is none
            continue
        assert type(layer) is Layers.GroupNormAct
        assert layer.num_channels == before[place].num_features == GROUP * layer.num_groups
        assert activation(layer) == activation(before[place])
    assert not has_batch_norm(EncoderConfig(name=name, norm="group"))
    assert has_batch_norm(EncoderConfig(name=name))


@pytest.mark.parametrize("name", NAMES)
def test_there_are_no_statistics_and_no_image_has_a_say_in_anothers_features(name: str) -> None:
    own, group = fresh(name, "own"), fresh(name)
    without = {key for key in own.state_dict() if not key.endswith(STATISTICS)}
    assert set(group.state_dict()) == without < set(own.state_dict())
    batch = images()
    together = features(group.train(), batch)
    alone = torch.cat([features(group, batch[[row]]) for row in range(len(batch))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, features(group.eval(), batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, features(own.train(), batch), rtol=1e-2, atol=1e-3)
    weights = [weight for weight in copy.deepcopy(group).parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_the_first_norm_by_hand() -> None:
    """Of a tiered stem 24 channels: three groups of eight, each standardised over its channels and pixels."""
    encoder: Any = fresh("resnet10t")
    maps = encoder.conv1[0](images())
    groups = maps.reshape(3, 3, -1)
    mean, variance = groups.mean(dim=2, keepdim=True), groups.var(dim=2, correction=0, keepdim=True)
    wanted = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(maps.shape)
    torch.testing.assert_close(encoder.conv1[1](maps), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_the_table_says_which_recommended_encoders_have_batch_norm(name: str) -> None:
    if encoder_dimensions(name) == 3:  # MONAI's ViT and Swin normalise each image's layers
        size: dict[str, Any] = {"depth": 1, "width": 12, "heads": 1}
        image = ImageConfig(modality="mri", size=32, depth=32, channels=1)
        layers = build_encoder(EncoderConfig(name=name, **size), image).modules()
    else:
        with torch.device("meta"):
            layers = timm.create_model(name, num_classes=0).modules()
    assert ENCODERS[name].batch_norm == any(isinstance(layer, _BatchNorm) for layer in layers)
    assert ENCODERS[name].batch_norm == has_batch_norm(EncoderConfig(name=name))


NOTHING = "has no BatchNorm that GroupNorm could replace; leave norm out, or choose for example 'resnet10t'"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", f"encoder.norm group: 'vit_tiny_patch16_224' {NOTHING}"),
        ("swin_tiny_patch4_window7_224", f"encoder.norm group: 'swin_tiny_patch4_window7_224' {NOTHING}"),
        ("convnext_atto", f"encoder.norm group: 'convnext_atto' {NOTHING}"),
        ("resnet50_gn", f"encoder.norm group: 'resnet50_gn' {NOTHING}"),
        (
            "tf_efficientnet_lite0",
            "encoder 'tf_efficientnet_lite0' cannot be built as the study says, with norm: group (leave it out, or "
            "choose another encoder): EfficientNet.__init__() got an unexpected keyword argument 'bn_eps'",
        ),
    ],
)
def test_encoders_without_batch_norm_or_without_a_way_are_refused(name: str, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        fresh(name)
    assert str(caught.value) == message


def test_volumes_have_no_batch_norm_to_replace() -> None:
    image = ImageConfig(modality="mri", size=32, depth=32, channels=1)
    with pytest.raises(StudyError, match=f"encoder.norm group: 'monai_vit' {NOTHING}"):
        build_encoder(EncoderConfig(name="monai_vit", norm="group"), image)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])
def test_weights_start_an_encoder_of_the_same_norm_only(name: str) -> None:
    own, group = fresh(name, "own"), fresh(name)
    given = {key: value + 0.5 for key, value in group.state_dict().items()}
    fitted = fit_weights(group, given)
    assert (fitted.fresh, fitted.unused) == ((), ())
    assert all(torch.equal(value, given[key]) for key, value in group.state_dict().items())
    with pytest.raises(StudyError) as caught:
        fit_weights(group, own.state_dict(), "w.pth")
    assert str(caught.value).startswith("weights w.pth: layer '")
    assert str(caught.value).endswith(
        "is BatchNorm there and GroupNorm in this encoder, and weights that go with one do not suit the other; set "
        "encoder.norm: own, or give weights of an encoder normalised as this one"
    )
    before = {key: value.clone() for key, value in own.state_dict().items()}
    with pytest.raises(StudyError, match=r"a norm without running statistics there and BatchNorm .*norm: group, or"):
        fit_weights(own, {f"module.{key}": value for key, value in given.items()})
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
