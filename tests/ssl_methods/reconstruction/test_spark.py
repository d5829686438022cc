"""SparK: the loss on hidden units, that they reach nothing, mask tokens at every stage, and units of small images."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from foundation.errors import StudyError
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods import AnyMethodConfig, build_method
from ssl_methods.encoders.sparse import Visible
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Views
from ssl_methods.per_sample.sample_gradients import trained_layers
from ssl_methods.reconstruction import spark
from ssl_methods.reconstruction.mae import patchify
from ssl_methods.reconstruction.spark import SparK, mask_unit

from ...tiers import examples, slow

LARGE = ImageConfig(modality="mri", size=64, channels=1)
GROUP = EncoderConfig(name="resnet10t", norm="group")
PLAIN = [EncoderConfig(name="resnet10t"), EncoderConfig(name="convnext_atto")]


def named(encoder: EncoderConfig) -> str:
    return f"{encoder.name} {encoder.norm}"


def over(encoder: EncoderConfig = GROUP, image: ImageConfig = LARGE, **options: Any) -> SparK:
    config = TypeAdapter(AnyMethodConfig).validate_python({"name": "spark", **options})
    method = build_method(config, encoder, image, 0)
    assert isinstance(method, SparK)
    return method


def views_of(method: SparK, count: int = 3, seed: int = 0) -> Views:
    images = torch.rand(count, *method.image.shape, generator=torch.Generator().manual_seed(1))
    codes = torch.arange(count)
    return method.make_views(Batch(images, codes, codes, codes), torch.Generator().manual_seed(seed))


def slow_loss(prediction: Tensor, images: Tensor, masked: Tensor, unit: int, norm_pixels: bool) -> Tensor:
    """Unit by unit: squares of differences to the unit's pixels, less their mean and by their deviation; the mean."""
    across, each = images.shape[-1] // unit, []
    for own, truth, places in zip(prediction, images, masked.tolist(), strict=True):
        errors = []
        for place in places:
            rows, columns = (slice(unit * start, unit * (start + 1)) for start in divmod(place, across))
            wanted = truth[:, rows, columns]
            if norm_pixels:
                centred = wanted - wanted.mean()
                variance = centred.square().sum() / (centred.numel() - 1)
                wanted = centred / (variance + 1e-6).sqrt()
            errors.append((own[:, rows, columns] - wanted).square().sum() / wanted.numel())
        each.append(sum(errors) / len(errors))
    return torch.stack([torch.as_tensor(value) for value in each])


def agrees(seed: int, norm_pixels: bool = True) -> None:
    """Value and gradient of the loss, the prediction being given."""
    method = over(image=ImageConfig(modality="mri", size=32, channels=2), norm_pixels=norm_pixels)
    generator = torch.Generator().manual_seed(seed)
    views = views_of(method, 2, seed)
    views["images"] = torch.randn(2, 2, 32, 32, generator=generator, dtype=torch.float64)
    prediction = torch.randn(2, 2, 32, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    method.predict = lambda views: prediction  # type: ignore[method-assign]
    losses = method.image_losses(views)
    wanted = slow_loss(prediction, views["images"], views["masked"], 8, norm_pixels)
    torch.testing.assert_close(losses, wanted, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(each.mean(), prediction, retain_graph=True)[0] for each in (losses, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert torch.equal(method.loss(views)[0], losses.mean())


@examples(25)
@given(st.integers(0, 999), st.booleans())
def test_loss_and_gradient_are_the_papers(seed: int, norm_pixels: bool) -> None:
    agrees(seed, norm_pixels)


def test_a_loss_of_visible_units_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = spark.take
    monkeypatch.setattr(spark, "take", lambda patches, places: right(patches, torch.zeros_like(places)))
    with pytest.raises(AssertionError):
        agrees(0)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_masks_are_the_papers_share_and_of_each_image_its_own(size: int) -> None:
    method = over(image=LARGE.model_copy(update={"size": size}))
    views = views_of(method)
    assert method.grid == 4 and views["keep"].shape == (3, 6) and views["masked"].shape == (3, 10)
    for row in torch.cat([views["keep"], views["masked"]], dim=1).tolist():
        assert sorted(row) == list(range(16))
    assert not torch.equal(views["keep"][0], views["keep"][1])


def hides(method: SparK, views: Views) -> None:
    """Another value in every hidden pixel leaves all maps and the prediction as they are; in a visible one it does not.

    Of another image nothing changes either, where no layer takes statistics of the batch.
    """
    visible = Visible(views["keep"], method.grid)
    hidden = visible.hidden(method.image.size)
    assert hidden is not None
    before = method.predict(views)
    changed = torch.where(hidden, 7.0 - 2.0 * views["images"], views["images"])
    assert torch.equal(method.predict(views | {"images": changed}), before)
    place = int(views["keep"][0, 0])
    top, left = place // method.grid * method.unit, place % method.grid * method.unit
    seen = views["images"].clone()
    seen[0, :, top : top + method.unit, left : left + method.unit] += 1.0
    after = method.predict(views | {"images": seen})
    assert not torch.equal(after[0], before[0])
    assert method.batch_normalised() or torch.equal(after[1:], before[1:])


@pytest.mark.parametrize("encoder", [GROUP, *PLAIN, slow(EncoderConfig(name="densenet121"))], ids=named)
@pytest.mark.parametrize("size", [32, 64])
def test_hidden_pixels_do_not_reach_the_prediction(encoder: EncoderConfig, size: int) -> None:
    method = over(encoder, LARGE.model_copy(update={"size": size})).train()
    hides(method, views_of(method))


def test_at_the_papers_unit_nothing_is_dense() -> None:
    method = over(image=LARGE.model_copy(update={"size": 128}))
    assert method.unit == 32 and len(method.levels) == 4
    assert all(isinstance(stage.token, nn.Embedding) for stage in method.decoder.densify)  # type: ignore[union-attr]
    hides(method, views_of(method))


def test_a_leak_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    method, right = over(), spark.sparse_maps

    def leaking(encoder: nn.Module, images: Tensor, visible: Visible) -> list[Tensor]:
        *maps, last = right(encoder, images, visible)
        return [*maps, last + 1e-3 * images.mean(dim=(1, 2, 3), keepdim=True)]

    monkeypatch.setattr(spark, "sparse_maps", leaking)
    with pytest.raises(AssertionError):
        hides(method, views_of(method))


def test_every_stage_puts_its_token_where_places_are_hidden() -> None:
    method = over()
    views, caught = views_of(method), {}

    def catch(number: int) -> Any:
        return lambda _, inputs: caught.setdefault(number, inputs[0].detach())

    stages: Any = method.decoder.densify
    for number, stage in enumerate(stages):
        stage.project.register_forward_pre_hook(catch(number))
    method.loss(views)
    visible = Visible(views["keep"], method.grid)
    assert [maps.shape[-1] for _, maps in sorted(caught.items())] == [2, 4, 8, 16]
    for number, maps in caught.items():
        hidden = visible.hidden(maps.shape[-1])
        assert (hidden is None) == (stages[number].token is None) == (number == 0)
        if hidden is not None:
            token = stages[number].token.weight.detach().view(1, -1, 1, 1)
            assert torch.equal((maps == token).all(dim=1, keepdim=True), hidden)


def test_the_decoder_adds_each_stage_to_the_one_below() -> None:
    """``D = block(D below) + map``, with blocks and projections that pass on what they get, on maps of ones."""
    method = over(decoder_width=16)
    decoder: Any = method.decoder
    decoder.blocks = nn.ModuleList(nn.Identity() for _ in decoder.blocks)
    decoder.densify = nn.ModuleList(nn.ModuleList() for _ in decoder.densify)
    for stage in decoder.densify:
        stage.forward = lambda maps, hidden: maps
    decoder.out = nn.Identity()
    maps = [torch.full((1, 16, side, side), value) for side, value in ((2, 1.0), (4, 10.0), (8, 100.0), (16, 1000.0))]
    maps[0][..., 0, 1] = 2.0  # top right
    found = decoder(maps, [None] * 4)
    assert found.shape == (1, 16, 64, 64)
    assert found[0, 0, 5, 60] == 1112.0 and found[0, 0, 60, 60] == found[0, 0, 5, 5] == 1111.0


def test_every_weight_of_the_method_is_trained() -> None:
    method = over().train()
    with torch.no_grad():  # timm's ResNets start with branches that give nothing
        for weight in method.parameters():
            weight.add_(0.1)
    method.loss(views_of(method))[0].backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in method.parameters())
    assert {layer.name.split(".")[0] for layer in trained_layers(method)} == {"encoder", "decoder"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("mask_ratio", 0.4), ("mask_unit", 8), ("norm_pixels", False), ("decoder_width", 32), ("focus", "entropy")],
)
def test_settings_change_the_loss(option: str, value: Any) -> None:
    plain, other = (method.loss(views_of(method))[0].item() for method in (over(), over(**{option: value})))
    assert plain != pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "sides", "unit"),
    [
        (224, [56, 28, 14, 7], 32),  # the paper's
        (128, [64, 32, 16, 8, 4], 32),
        (96, [48, 24, 12, 6, 3], 16),
        (64, [32, 16, 8, 4, 2], 16),
        (32, [16, 8, 4, 2, 1], 8),
        (48, [24, 12, 6, 3, 2], 8),
        (100, [50, 25, 13, 7, 4], 4),  # 13 places are no whole number for 50 units of 2 pixels, but 25 are for 25
        (4, [2, 1, 1, 1], 2),
    ],
)
def test_the_default_unit(size: int, sides: list[int], unit: int) -> None:
    assert mask_unit(None, size, sides) == unit


@pytest.mark.parametrize(
    ("asked", "size", "sides", "message"),
    [
        (12, 64, [16, 8, 4, 2], "method.mask_unit 12 must be a power of 2, at most the encoder's stride of 32 pixels"),
        (64, 128, [32, 16, 8, 4], "choose 2 or 4 or 8 or 16 or 32"),
        (None, 99, [50, 25, 13, 7, 4], "which do not tile image.size 99: set image.size to 96"),
    ],
)
def test_units_that_cannot_be_are_refused(asked: int | None, size: int, sides: list[int], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        mask_unit(asked, size, sides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_kinds_of_encoder_are_refused() -> None:
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(
            StudyError, match="method 'spark' takes convolutional encoders: choose for example 'resnet10t'"
        ):
            over(EncoderConfig(name=name))


@pytest.mark.parametrize("encoder", [GROUP, *map(slow, PLAIN)], ids=named)
def test_a_small_batch_is_learned(encoder: EncoderConfig) -> None:
    method = over(encoder, LARGE.model_copy(update={"size": 32}), norm_pixels=False).train()
    views = views_of(method, 4)
    # Stripes that repeat from unit to unit, and each image's own brightness, which only visible units tell.
    stripes = (torch.arange(32) * 2 * torch.pi / method.unit).sin().expand(4, 1, 32, 32)
    images = stripes + torch.tensor([-1.0, -0.3, 0.3, 1.0]).view(4, 1, 1, 1)
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss, metrics = method.loss(views | {"images": images})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        assert metrics == {}
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_sent_of_the_encoder_is_a_plain_one() -> None:
    method = over(EncoderConfig(name="resnet10t")).train()
    method.loss(views_of(method))[0].backward()
    plain = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    plain.load_state_dict(method.encoder.state_dict())
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(plain.eval()(images), method.encoder.eval()(images))
    assert {key.split(".")[0] for key in method.shared_state()} == {"encoder", "decoder"}
    assert method.local_state() == {}


def test_batch_statistics_are_of_visible_places() -> None:
    """Images that are 0 where they are seen: whatever is hidden, the first layer's running mean stays 0."""
    method = over(EncoderConfig(name="resnet10t")).train()
    views = views_of(method)
    hidden = Visible(views["keep"], method.grid).hidden(64)
    assert hidden is not None and method.is_batch_coupled()
    method.loss(views | {"images": torch.where(hidden, 5.0, 0.0)})
    assert not method.encoder.get_buffer("conv1.1.running_mean").any()


def test_restored_images_keep_what_was_seen() -> None:
    for norm_pixels in (True, False):
        method = over(norm_pixels=norm_pixels)
        views = views_of(method)
        hidden = Visible(views["keep"], method.grid).hidden(64)
        assert hidden is not None
        restored = method.restore(views)
        assert torch.equal(restored.masked_fill(hidden, 0), views["images"].masked_fill(hidden, 0))
        assert torch.isclose(restored, views["images"])[hidden].float().mean() < 0.01
        assert torch.isnan(method.show(views, 0)[1][1]).equal(hidden[0])
        if not norm_pixels:
            wanted = patchify(method.predict(views), method.unit)
            assert torch.equal(
                patchify(restored, method.unit)[0, views["masked"][0]], wanted.detach()[0, views["masked"][0]]
            )


def test_a_focus_asks_for_no_empty_unit() -> None:
    method = over(focus="entropy")
    images = torch.zeros(8, 1, 64, 64)
    images[:, :, 16:48, 16:48] = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    codes = torch.arange(8)
    views = method.make_views(Batch(images, codes, codes, codes), torch.Generator().manual_seed(0))
    assert 0.0 < views["counted"].float().mean() < 1.0
    assert torch.isfinite(method.loss(views)[0])
