"""A convolutional encoder on visible patches: as a sparse computation place by place, and without a trace."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from foundation.errors import StudyError
from foundation.randomness import seeded_torch
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods.encoders import sparse
from ssl_methods.encoders.outputs import feature_maps, features
from ssl_methods.encoders.pyramid import feature_pyramid
from ssl_methods.encoders.sparse import Visible, require_sparse, sparse_maps
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

from ...tiers import slow

IMAGE = ImageConfig(modality="mri", size=64, channels=1)
ENCODERS = [
    EncoderConfig(name="resnet10t"),
    EncoderConfig(name="resnet10t", norm="group"),
    EncoderConfig(name="convnext_atto"),
    EncoderConfig(name="convnextv2_atto"),
    EncoderConfig(name="resnetv2_18", norm="group"),
    EncoderConfig(name="regnetx_002"),
    EncoderConfig(name="efficientnet_b0", norm="group"),
    EncoderConfig(name="convnext_tiny"),  # channels last within its blocks
    EncoderConfig(name="densenet121"),
    EncoderConfig(name="resnet50"),
]
EVERY = [encoder if number < 4 else slow(encoder) for number, encoder in enumerate(ENCODERS)]


def named(config: EncoderConfig) -> str:
    return f"{config.name} {config.norm}"


def fresh(config: EncoderConfig) -> nn.Module:
    with seeded_torch(0, "test"):
        return build_encoder(config, IMAGE)


def kept(count: int, patches: int, seen: int, seed: int = 0) -> Tensor:
    order = torch.rand(count, patches, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order[:, :seen].sort(dim=1).values


def pixels(count: int = 3, side: int = 64, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_places_are_cut_out_and_put_back(grid: int, factor: int, width: int, seed: int) -> None:
    keep, side = kept(2, grid**2, max(1, grid**2 // 2), seed), grid * factor
    visible, maps = Visible(keep, grid), torch.rand(2, width, side, side) + 1.0
    cut = visible.gathered(maps)
    place = int(keep[1, 0])  # its first place is the top left one of the second image's first patch
    assert cut.shape == (2, width, keep.shape[1] * factor**2, 1)
    assert torch.equal(cut[1, :, 0, 0], maps[1, :, place // grid * factor, place % grid * factor])
    back, hidden = visible.spread(cut, side), visible.hidden(side)
    assert hidden is not None and torch.equal(back, visible.only(maps))
    assert torch.equal(back == 0, hidden.expand_as(back))
    assert int(hidden.sum()) == 2 * (grid**2 - keep.shape[1]) * factor**2


def test_a_coarser_map_hides_nothing_and_others_must_fit() -> None:
    visible, maps = Visible(kept(2, 16, 6), 4), torch.rand(2, 3, 2, 2)
    assert visible.hidden(2) is None and visible.only(maps) is maps
    with pytest.raises(ValueError, match="a map of 6 x 6 places has no whole number of them for 4 patches"):
        visible.hidden(6)


class Tiny(nn.Module):
    """Two convolutions, one of stride 2, each with a normalisation; called as timm's networks are."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        group = norm == "group"
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4) if group else nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm2 = timm.layers.GroupNormAct(6, group_size=3) if group else timm.layers.BatchNormAct2d(6)

    def forward_intermediates(self, images: Tensor, norm: bool) -> tuple[Tensor, list[Tensor]]:
        first = functional.relu(self.norm1(self.conv1(images)))
        last = self.norm2(self.conv2(first))
        return last, [first, last]


Places = list[dict[tuple[int, int], Tensor]]
"""Of each image the visible places and their values ``[D]``: nothing else exists."""


def convolved(seen: Places, layer: Any, factor: int, alive: list[set[tuple[int, int]]]) -> Places:
    """A 3 x 3 convolution at the places ``alive``, of what there is among its inputs."""
    found: Places = []
    for own, there in zip(seen, alive, strict=True):
        values = {}
        for row, column in there:
            total = layer.bias.clone()
            for down in range(3):
                for right in range(3):
                    source = own.get((row * factor + down - 1, column * factor + right - 1))
                    if source is not None:
                        total = total + layer.weight[:, :, down, right] @ source
            values[row, column] = total
        found.append(values)
    return found


def normalised(seen: Places, layer: Any, norm: str) -> Places:
    """By the mean and biased variance of what there is: of the batch for each channel, or of an image and a group."""
    found: Places = []
    everything = torch.stack([value for own in seen for value in own.values()])
    for own in seen:
        mine = torch.stack(list(own.values()))  # [n, D]
        if norm == "group":
            parts = mine.view(len(mine), layer.num_groups, -1).transpose(0, 1).flatten(1)  # [G, n * D / G]
            size = mine.shape[1] // layer.num_groups
            mean, variance = (each.repeat_interleave(size) for each in (parts.mean(1), parts.var(1, correction=0)))
        else:
            mean, variance = everything.mean(0), everything.var(0, correction=0)
        found.append({
            place: ((value - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias).clamp(min=0)
            for place, value in own.items()
        })  # fmt: skip
    return found


def places_of(keep: Tensor, grid: int, side: int) -> list[set[tuple[int, int]]]:
    factor = side // grid
    return [
        {(patch // grid * factor + i, patch % grid * factor + j) for patch in row for i in range(factor)
         for j in range(factor)}
        for row in keep.tolist()
    ]  # fmt: skip


def agrees_place_by_place(norm: str) -> None:
    """Both maps of the tiny network, 8 x 8 and 4 x 4 on a grid of 4 x 4, are those of the places alone."""
    torch.manual_seed(0)
    network: Any = Tiny(norm).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    keep, images = kept(3, 16, 6), pixels(3, 8, 2).double()
    first, last = sparse.sparse_maps(network, images, Visible(keep, 4))
    fine, coarse = places_of(keep, 4, 8), places_of(keep, 4, 4)
    seen: Places = [{place: image[:, *place] for place in there} for image, there in zip(images, fine, strict=True)]
    for maps, layer, normal, factor, alive in (
        (first, network.conv1, network.norm1, 1, fine), (last, network.conv2, network.norm2, 2, coarse),
    ):  # fmt: skip
        before = convolved(seen, layer, factor, alive)
        seen = normalised(before, normal, norm)
        for found, own in zip(maps, seen, strict=True):
            wanted = torch.zeros_like(found)
            for place, value in own.items():
                wanted[:, *place] = value
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        if norm == "batch":
            everything = torch.stack([value for own in before for value in own.values()])
            torch.testing.assert_close(normal.running_mean, 0.1 * everything.mean(0))
            torch.testing.assert_close(normal.running_var, 0.9 + 0.1 * everything.var(0))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_visible_places_have_the_values_of_a_sparse_computation(norm: str) -> None:
    agrees_place_by_place(norm)


@pytest.mark.parametrize("planted", ["pixels are seen", "holes are filled", "statistics of zeros"])
def test_what_is_not_sparse_is_noticed(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted == "pixels are seen":
        monkeypatch.setattr(Visible, "only", lambda self, maps: maps)
    elif planted == "holes are filled":
        monkeypatch.setattr(sparse, "_clear", lambda *_: None)
        monkeypatch.setattr(Visible, "spread", lambda self, values, side: values)
        monkeypatch.setattr(Visible, "gathered", lambda self, maps: maps)
    else:
        monkeypatch.setattr(Visible, "gathered", lambda self, maps: self.only(maps))
        monkeypatch.setattr(Visible, "spread", lambda self, values, side: self.only(values))
    with pytest.raises(AssertionError):
        agrees_place_by_place("group")


@pytest.mark.parametrize("config", EVERY, ids=named)
def test_where_nothing_is_hidden_it_is_the_plain_encoder(config: EncoderConfig) -> None:
    encoder, images = fresh(config).eval(), pixels()
    found = sparse_maps(encoder, images, Visible(kept(3, 16, 16), 4))
    for sparsely, plain in zip(
        found, [*feature_pyramid(encoder, images)[:-1], feature_maps(encoder, images)], strict=True
    ):
        torch.testing.assert_close(sparsely, plain, rtol=1e-4, atol=1e-4 * float(plain.detach().abs().max()))


@pytest.mark.parametrize("config", EVERY, ids=named)
def test_hidden_pixels_reach_nothing_and_hidden_places_stay_empty(config: EncoderConfig) -> None:
    encoder, images, visible = fresh(config).train(), pixels(), Visible(kept(3, 16, 6), 4)
    found = sparse_maps(encoder, images, visible)
    hidden = visible.hidden(64)
    assert hidden is not None
    changed = torch.where(hidden, 9.0 - images, images)
    assert all(torch.equal(*pair) for pair in zip(found, sparse_maps(encoder, changed, visible), strict=True))
    seen = torch.where(hidden, images, images + 1.0)
    for maps, other in zip(found, sparse_maps(encoder, seen, visible), strict=True):
        assert not torch.equal(maps, other)
        if (empty := visible.hidden(maps.shape[-1])) is not None:
            assert not maps.masked_select(empty).any()
            assert maps.masked_select(~empty).count_nonzero() > 0


def test_every_layer_that_looks_across_places_sees_zeros_where_places_are_hidden() -> None:
    for config in (EncoderConfig(name="resnet10t", norm="group"), EncoderConfig(name="convnext_atto")):
        encoder, visible, looked = fresh(config), Visible(kept(2, 16, 6), 4), 0

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal looked
            hidden = visible.hidden(inputs[0].shape[-1])  # noqa: B023
            if hidden is not None:
                looked += 1
                assert not inputs[0].masked_select(hidden).any()

        layers = [module for module in encoder.modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
        hooks = [layer.register_forward_pre_hook(look) for layer in layers]
        sparse_maps(encoder, pixels(2), visible)
        assert looked > 8
        for hook in hooks:
            hook.remove()


def trace(encoder: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in encoder.modules())


def test_nothing_is_left_on_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = fresh(EncoderConfig(name="resnet10t", norm="group")), pixels()
    plain = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    before, names = features(encoder, images), list(encoder.state_dict())
    sparse_maps(encoder, images, Visible(kept(3, 16, 6), 4))
    assert trace(encoder) == 0 and torch.equal(features(encoder, images), before)
    assert list(encoder.state_dict()) == names
    assert set(names) == {name for name in plain.state_dict() if "running" not in name and "tracked" not in name}
    with pytest.raises(ValueError, match="no whole number"):
        sparse_maps(encoder, images, Visible(kept(3, 9, 3), 3))
    assert trace(encoder) == 0

    def broken(*_: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(sparse, "_clear", broken)
    with pytest.raises(RuntimeError, match="planted"):
        sparse_maps(encoder, images, Visible(kept(3, 16, 6), 4))
    assert trace(encoder) == 0 and torch.equal(features(encoder, images), before)


def test_a_normalisation_without_a_sparse_form_is_refused() -> None:
    with pytest.raises(StudyError) as caught:
        require_sparse(timm.create_model("resnetv2_50d_evos", num_classes=0))
    assert "stem.norm1 is a EvoNorm2dS0" in str(caught.value) and "'resnet10t'" in str(caught.value)
    for config in ENCODERS[:4]:
        require_sparse(fresh(config))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
def test_a_compiled_caller_sees_each_mask() -> None:
    encoder, images = fresh(EncoderConfig(name="resnet10t", norm="group")), pixels()

    def last(keep: Tensor) -> Tensor:
        return sparse_maps(encoder, images, Visible(keep, 4))[2] * 2.0

    compiled = torch.compile(last, backend="eager")
    for seed in range(2):
        assert torch.equal(compiled(kept(3, 16, 6, seed)), last(kept(3, 16, 6, seed)))
