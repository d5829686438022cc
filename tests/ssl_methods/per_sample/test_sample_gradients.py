"""The clipped sum against gradients of single images by plain autograd, and against Opacus."""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods import METHODS
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.per_sample.layer_gradients import grouping
from ssl_methods.per_sample.rules import EXACT
from ssl_methods.per_sample.sample_gradients import clipped_sum
from ssl_methods.table import Family, Role

from ...tiers import examples

Build = Callable[..., Method]
TIMM: Any = timm.layers
PATIENTS = torch.tensor([3, 0, 3, 1, 3, 1, 3])
COUNT = 5
"""Groups of 1, 2, 0, 4 and 0 images."""
SCALED_VIT = EncoderConfig(name="vit_small_patch14_dinov2", patch_size=4, depth=2, width=48, heads=3)
FROZEN_VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2, width=48, heads=3, frozen_blocks=1)
CONVOLUTIONAL = ["resnetv2_18", "densenet121", "efficientnet_lite0", "efficientnet_b0", "regnety_002"]
COMBINED = {"methods": [{"method": {"name": "mae"}, "weight": 0.5}, {"method": {"name": "jigsaw"}}]}
CASES: list[tuple[str, int, EncoderConfig | None, dict[str, Any]]] = [
    *((name, axes, None, {}) for name in EXACT for axes in METHODS[name].dimensions),
    ("mae", 2, SCALED_VIT, {}),
    ("ijepa", 2, FROZEN_VIT, {}),
    ("mae", 2, None, {"focus": "entropy"}),
    ("ijepa", 2, None, {"focus": "attention"}),
    ("slice_order", 2, None, {"gap_weight": 1.0}),
    ("rotation", 2, None, {"copies": "one"}),
    ("combine", 2, None, COMBINED),
]


class Toy(Method):
    """A network of layers that are called twice, convolve with overlap or have no say."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    family: ClassVar[Family] = "predictive"
    per_sample: ClassVar[bool] = True
    encoders: ClassVar[tuple[Any, ...]] = ("vit",)
    parts: ClassVar[dict[str, Role]] = {"encoder": "shared"}

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(MethodConfig(), encoder, ImageConfig(modality="mri", size=16, channels=1))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Nothing."""
        return {}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        return {"x": batch.images}

    def image_losses(self, views: Views) -> Tensor:
        out: Tensor = self.encoder(views["x"])
        return out.flatten(1).square().sum(dim=1)

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        return self.image_losses(views).mean(), {}


class Twice(nn.Module):
    """One layer on sequences of two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(6, 6), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        once = torch.tanh(self.layer(x))
        return torch.cat([self.layer(once[:, :2]), once], dim=1)


def toys() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Networks and the shape of their images."""
    return {
        "plain": (nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 3)), (5, 6)),
        "long sequences": (nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)), (30, 3)),
        "called twice": (Twice(), (4, 6)),
        "strided": (nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.Tanh()), (2, 9, 9)),
        "overwritten": (
            nn.Sequential(nn.Conv2d(2, 16, 3), nn.GroupNorm(2, 16), nn.ReLU(inplace=True), nn.Conv2d(16, 2, 1)),
            (2, 6, 6),
        ),
        "norm with activation": (
            nn.Sequential(
                nn.Conv2d(2, 16, 3), TIMM.GroupNormAct(16, group_size=8, act_layer="silu"), nn.Conv2d(16, 2, 1)
            ),
            (2, 6, 6),
        ),
        "grouped": (nn.Sequential(nn.Conv2d(4, 4, 2, stride=2, groups=2), nn.Tanh()), (4, 6, 6)),
        "volume": (nn.Sequential(nn.Conv3d(2, 3, (1, 2, 2), stride=(1, 2, 2)), nn.Tanh()), (2, 3, 4, 4)),
        "not tiled": (nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.Tanh()), (1, 5, 5)),
    }


def one_by_one(method: Method, views: Views, groups: Tensor, count: int) -> list[dict[str, Tensor]]:
    """Each group's gradient: the loss of its images, each in a batch of its own."""
    weights = {name: weight for name, weight in method.named_parameters() if weight.requires_grad}
    found = []
    for group in range(count):
        rows = (groups == group).nonzero().flatten().tolist()
        alone = [method.loss({key: value[[row]] for key, value in views.items()})[0] for row in rows]
        loss = torch.stack(alone).mean() if alone else 0.0 * sum(weight.sum() for weight in weights.values())
        assert isinstance(loss, Tensor)
        # MONAI's ViT has weights for cross-attention that nobody uses: their gradient is 0.
        own = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        found.append(dict(zip(weights, own, strict=True)))
    return found


def norms_of(gradients: list[dict[str, Tensor]]) -> Tensor:
    return torch.tensor([math.sqrt(sum(float(part.double().square().sum()) for part in own.values()))
                         for own in gradients])  # fmt: skip


def agrees(method: Method, views: Views, groups: Tensor, count: int, clip: float | None = None) -> None:
    """Norms and clipped sum are those of ``one_by_one``; by default at a clip that shortens about half the groups."""
    truth = one_by_one(method, views, groups, count)
    norms = norms_of(truth)
    clip = clip or float(norms[norms > 0].mean())
    found = clipped_sum(method, views, groups, count, clip)
    torch.testing.assert_close(found.norms.float(), norms, rtol=1e-4, atol=0)
    weights = [1.0 if norm <= clip else clip / float(norm) for norm in norms]
    assert found.gradients.keys() == truth[0].keys()
    for name, sums in found.gradients.items():
        wanted = sum(weight * own[name] for weight, own in zip(weights, truth, strict=True))
        assert isinstance(wanted, Tensor)
        largest = float(wanted.abs().max())
        torch.testing.assert_close(sums, wanted, rtol=1e-4, atol=1e-5 * largest + 1e-9)


def views_of(method: Method) -> Views:
    generator, count = torch.Generator().manual_seed(1), len(PATIENTS)
    images = torch.rand(count, *method.image.shape, generator=generator)
    codes, gaps = torch.arange(count), torch.randn(count, generator=generator)
    gaps[0] = 0.0
    batch = Batch(images, codes, codes, codes, images.flip(0), gaps)
    return method.make_views(batch, generator)


@pytest.mark.parametrize("clip", [None, 1e9])
@pytest.mark.parametrize(("name", "dimensions", "encoder", "options"), CASES)
def test_every_allowed_method_is_exact(
    name: str, dimensions: int, encoder: EncoderConfig | None, options: dict[str, Any], clip: float | None, build: Build
) -> None:
    method = build(name, encoder=encoder, dimensions=dimensions, **options).train()
    agrees(method, views_of(method), PATIENTS, COUNT, clip)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        *((name, "resnet10t") for name in EXACT if "convolutional" in METHODS[name].encoders),
        *(("rotation", encoder) for encoder in CONVOLUTIONAL),
        ("spark", "efficientnet_b0"),
    ],
)
def test_convolutional_encoders_with_group_norm_are_exact(name: str, encoder: str, build: Build) -> None:
    """In float64: through so many layers float32 rounds an image alone and in a batch apart by up to a hundredth."""
    method = build(name, encoder=EncoderConfig(name=encoder, norm="group")).train()
    views = views_of(method)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in views.items()}
    agrees(method.double(), wide, PATIENTS, COUNT)


@pytest.mark.parametrize("name", toys())
def test_every_layer_is_exact(name: str) -> None:
    torch.manual_seed(0)
    network, shape = toys()[name]
    agrees(Toy(network), {"x": torch.randn(7, *shape)}, PATIENTS, COUNT)
    agrees(Toy(network), {"x": torch.randn(4, *shape)}, torch.tensor([2, 0, 3, 1]), 4)


@pytest.mark.parametrize("name", EXACT)
def test_losses_are_the_groups_means_and_their_mean_is_the_loss(name: str, build: Build) -> None:
    method = build(name).eval()
    views = views_of(method)
    each = method.image_losses(views).detach()
    assert each.shape == PATIENTS.shape
    torch.testing.assert_close(each.mean(), method.loss(views)[0].detach(), rtol=1e-5, atol=0)
    losses = clipped_sum(method, views, PATIENTS, COUNT, 1.0).losses
    members = [(PATIENTS - group) == 0 for group in range(COUNT)]
    wanted = [float(each[rows].mean()) if rows.any() else 0.0 for rows in members]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-4)


@examples(15)
@given(groups=st.lists(st.integers(0, 3), min_size=2, max_size=8), changed=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_patients_images_change_only_that_patients_part(groups: list[int], changed: int, seed: int) -> None:
    torch.manual_seed(seed)
    patients, clip = torch.tensor(groups), 0.5
    method = Toy(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)))
    before = torch.randn(len(groups), 5, 6)
    after = torch.where((patients == changed)[:, None, None], 100 * torch.randn_like(before), before)
    first, second = (clipped_sum(method, {"x": x}, patients, 4, clip) for x in (before, after))
    others = torch.arange(4) != changed
    torch.testing.assert_close(first.norms[others], second.norms[others], rtol=1e-5, atol=1e-6)
    moved = sum(float((first.gradients[name] - second.gradients[name]).square().sum()) for name in first.gradients)
    assert math.sqrt(moved) <= 2 * clip * (1 + 1e-5)
    assert (moved > 0) == (changed in groups)


def test_opacus_finds_the_same_gradients() -> None:
    from opacus import GradSampleModule

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 3))
    x = torch.randn(5, 4, 6)
    ours = clipped_sum(Toy(network), {"x": x}, torch.arange(5), 5, 20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus hooks in a way that torch warns of
        theirs = GradSampleModule(network, loss_reduction="sum")
        theirs(x).flatten(1).square().sum().backward()
    samples: dict[str, Tensor] = {name: cast(Any, weight).grad_sample for name, weight in network.named_parameters()}
    norms = torch.stack([own.flatten(1).square().sum(dim=1) for own in samples.values()]).sum(dim=0).sqrt()
    torch.testing.assert_close(ours.norms, norms, rtol=1e-5, atol=0)
    assert norms.min() < 20.0 < norms.max()
    for name, own in samples.items():
        wanted = torch.tensordot((20.0 / norms).clamp(max=1), own, dims=1)
        torch.testing.assert_close(ours.gradients[f"encoder.{name}"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["plain", "strided", "called twice"])
def test_a_gradient_that_is_not_finite_adds_nothing(name: str, bad: float) -> None:
    torch.manual_seed(0)
    network, shape = toys()[name]
    method, x = Toy(network), torch.randn(7, *shape)
    broken = x.clone()
    broken[2] = bad
    found = clipped_sum(method, {"x": broken}, PATIENTS, COUNT, 1.0)
    assert found.norms[3] == math.inf if not math.isfinite(bad) else found.norms[3] > 0
    rest = PATIENTS != 3
    wanted = clipped_sum(method, {"x": x[rest]}, PATIENTS[rest], COUNT, 1.0)
    torch.testing.assert_close(found.norms[:3], wanted.norms[:3])
    for key, sums in found.gradients.items():
        assert sums.isfinite().all()
        if found.norms[3] == math.inf:
            torch.testing.assert_close(sums, wanted.gradients[key], rtol=1e-5, atol=1e-6)


def state(method: Method) -> list[tuple[bool, Tensor | None, int]]:
    hooks = [len(module._forward_hooks) for module in method.modules()]
    return [(weight.requires_grad, weight.grad, sum(hooks)) for weight in method.parameters()]


def test_nothing_is_left_changed_also_on_an_error(build: Build) -> None:
    method = build("ijepa")
    before, weights = state(method), [weight.clone() for weight in method.parameters()]
    views = views_of(method)
    clipped_sum(method, views, PATIENTS, COUNT, 1.0)
    assert state(method) == before
    assert all(torch.equal(old, new) for old, new in zip(weights, method.parameters(), strict=True))
    with pytest.raises(ValueError, match="a group outside 0 to 1"):
        clipped_sum(method, views, PATIENTS, 2, 1.0)
    assert state(method) == before


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(5)), "encoder.1 is a BatchNorm1d"),
        (nn.Sequential(nn.Linear(6, 6), nn.PReLU()), r"encoder\.1\.weight is trained in a PReLU"),
        (TIMM.LayerScale(6, inplace=True), "overwrites its input"),
        (TIMM.GroupNormAct(5, num_groups=1, drop_layer=nn.Dropout), "a normalisation that drops"),
        (nn.Sequential(nn.Conv1d(5, 2, 1)), "Conv1d"),
        (nn.Linear(6, 6).requires_grad_(False), "no trained weight"),
    ],
)
def test_networks_that_cannot_be_exact_are_refused(network: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        clipped_sum(Toy(network), {"x": torch.randn(3, 5, 6)}, torch.arange(3), 3, 1.0)


def test_a_weight_of_two_layers_is_refused() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    network[1].weight = network[0].weight
    with pytest.raises(ValueError, match="also a weight of"):
        clipped_sum(Toy(network), {"x": torch.randn(3, 5, 6)}, torch.arange(3), 3, 1.0)


def test_rows_that_are_no_images_are_refused() -> None:
    class Other(Toy):
        def image_losses(self, views: Views) -> Tensor:
            return super().image_losses(views)[:3]

    with pytest.raises(ValueError, match="4 rows of 3 images"):
        clipped_sum(Other(nn.Sequential(nn.Linear(6, 6))), {"x": torch.randn(4, 6)}, torch.arange(3), 3, 1.0)


@pytest.mark.parametrize(("groups", "count"), [([0, -1], 2), ([0, 2], 2)])
def test_groups_outside_their_count_are_refused(groups: list[int], count: int) -> None:
    with pytest.raises(ValueError, match="a group outside"):
        grouping(torch.tensor(groups), count)


def test_a_clip_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="clip 0"):
        clipped_sum(Toy(nn.Linear(6, 6)), {"x": torch.randn(3, 6)}, torch.arange(3), 3, 0.0)


def test_a_method_that_couples_has_no_losses_of_images(build: Build) -> None:
    with pytest.raises(NotImplementedError, match="SimCLR"):
        build("simclr").image_losses({})
