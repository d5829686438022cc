"""Masks that look at what they hide: shares, randomness, own rows, and that nothing changes without focus."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods import METHODS, AnyMethodConfig, build_method
from ssl_methods.components import token_masks
from ssl_methods.components.block_masks import BlockRanges, block_masks, draw_blocks
from ssl_methods.components.focus import attention_received, patch_weights
from ssl_methods.components.token_masks import EMPTY, ORDINARY, SALIENT, counted, random_masks, spared, strata
from ssl_methods.encoders.outputs import patch_tokens
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.predictive.ijepa import ijepa_loss
from ssl_methods.reconstruction.mae import mae_loss

PAPER = BlockRanges(4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 0.25)
MASKED = ["mae", "ijepa", "simmim", "ibot"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_weights(seed: int, count: int, patches: int, empty: float) -> Tensor:
    """Random saliency of which a share is 0."""
    weights, chance = torch.rand(2, count, patches, generator=seeded(seed))
    return torch.where(chance < empty, 0.0, weights + 0.01)


def as_map(places: Tensor, patches: int) -> Tensor:
    return torch.zeros(len(places), patches, dtype=torch.bool).scatter(1, places, True)


def lesions(count: int) -> Batch:
    """Empty images of 32 x 32 with one bright textured square of 8 pixels."""
    draw = seeded(1)
    images = torch.zeros(count, 1, 32, 32)
    for image in images:
        top, left = torch.randint(2, 22, (2,), generator=draw).tolist()
        image[:, top : top + 8, left : left + 8] = 0.3 + 0.7 * torch.rand(1, 8, 8, generator=draw)
    codes = torch.arange(count)
    return Batch(images, codes, codes, codes)


def test_strata_by_hand() -> None:
    weights = torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.0, 5.0], [0.0] * 6, [1.0] * 6])
    assert strata(weights).tolist() == [
        [EMPTY, ORDINARY, ORDINARY, ORDINARY, EMPTY, SALIENT],
        [EMPTY] * 6,
        [SALIENT, SALIENT, ORDINARY, ORDINARY, ORDINARY, ORDINARY],
    ]


def keeps_salient_share(patches: int, ratio: float, empty: float, seed: int) -> bool:
    """Whether a focused mask is a partition of fixed size that keeps each stratum's share visible."""
    weights = some_weights(seed, 4, patches, empty)
    keep, masked = random_masks(torch.rand(4, patches, generator=seeded(seed)), ratio, weights)
    plain = random_masks(torch.rand(4, patches, generator=seeded(seed)), ratio)[0]
    assert keep.shape == plain.shape
    assert torch.equal(torch.cat([keep, masked], dim=1).sort(dim=1).values, torch.arange(patches).expand(4, -1))
    visible, level, share = as_map(keep, patches), strata(weights), keep.shape[1] / patches
    salient = (level == SALIENT).sum(dim=1)
    return bool(((visible & (level == SALIENT)).sum(dim=1) >= share * salient - 1e-6).all())


@given(st.integers(2, 80), st.floats(0.05, 0.95), st.floats(0, 1), st.integers(0, 999))
def test_salient_patches_keep_their_share(patches: int, ratio: float, empty: float, seed: int) -> None:
    assert keeps_salient_share(patches, ratio, empty, seed)


def test_masks_that_forget_the_strata_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_masks, "stratified", lambda chance, *_: chance)
    assert not all(keeps_salient_share(64, 0.75, 0.5, seed) for seed in range(20))


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 999))
def test_without_focus_masks_are_as_ever(patches: int, ratio: float, seed: int) -> None:
    generator, reference = seeded(seed), seeded(seed)
    keep, masked = random_masks(torch.rand(3, patches, generator=generator), ratio)
    order = torch.rand(3, patches, generator=reference).argsort(dim=1, stable=True)
    assert torch.equal(keep, order[:, : keep.shape[1]].sort(dim=1).values)
    assert torch.equal(masked, order[:, keep.shape[1] :].sort(dim=1).values)
    assert torch.equal(generator.get_state(), reference.get_state())
    assert counted(masked, None).all()


def test_inside_a_stratum_every_patch_is_kept_equally_often() -> None:
    weights = some_weights(3, 1, 32, 0.4).expand(4000, -1)
    keep, _ = random_masks(torch.rand(4000, 32, generator=seeded()), 0.75, weights)
    often = torch.bincount(keep.flatten(), minlength=32) / 4000
    for level in (EMPTY, ORDINARY, SALIENT):
        inside = often[strata(weights)[0] == level]
        assert inside.max() - inside.min() < 0.06


def test_what_counts_by_hand() -> None:
    weights = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    masked = torch.tensor([[0, 1, 3], [0, 2, 3]])
    assert counted(masked, weights).tolist() == [[False, True, False], [True, True, True]]


def test_mae_loss_of_counted_patches_by_hand() -> None:
    images = torch.zeros(2, 1, 2, 2)  # patches of one pixel
    prediction = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    masked = torch.tensor([[0, 1, 2], [0, 1, 2]])
    which = torch.tensor([[True, False, True], [False, True, False]])
    losses = mae_loss(prediction, images, masked, 1, False, which)
    assert losses.tolist() == pytest.approx([(1 + 9) / 2, 25])
    everything = mae_loss(prediction, images, masked, 1, False, torch.ones_like(which))
    assert everything.tolist() == pytest.approx(mae_loss(prediction, images, masked, 1, False).tolist())


def test_ijepa_loss_of_counted_patches_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 3.0], [1.0, 3.0]], [[1.0, 3.0], [1.0, 3.0]]])  # normalised: -1, 1
    prediction = torch.tensor([[[-1.0, 1.0], [1.0, 3.0]], [[-0.5, 4.0], [9.0, 9.0]]])
    which = torch.tensor([[True, True], [True, False]])
    by_hand = [(0 + 1.5) / 2, (0.125 + 2.5) / 2]  # off by 0, 0, 2, 2 and by 1/2, 3
    assert ijepa_loss(prediction, tokens, which).tolist() == pytest.approx(by_hand, rel=1e-4)
    everything = ijepa_loss(prediction, tokens, torch.ones_like(which)).tolist()
    assert everything == pytest.approx(ijepa_loss(prediction, tokens).tolist())


@given(side=st.integers(3, 12), empty=st.floats(0, 1), seed=st.integers(0, 999))
def test_focused_blocks_never_meet_and_have_the_usual_sizes(side: int, empty: float, seed: int) -> None:
    weights = some_weights(seed, 3, side**2, empty)
    context, targets = block_masks(draw_blocks(3, side, PAPER, seeded(seed), True), PAPER.context_kept, weights)
    plain_context, plain_targets = block_masks(draw_blocks(3, side, PAPER, seeded(seed)), PAPER.context_kept)
    assert context.shape == plain_context.shape and targets.shape == plain_targets.shape
    assert not (as_map(context, side**2) & as_map(targets.flatten(1), side**2)).any()


def test_focused_blocks_show_more_of_what_is_salient_and_hide_less_background() -> None:
    line = torch.arange(14)
    anatomy = ((line - 6.5) ** 2 + (line[:, None] - 6.5) ** 2 < 25).flatten().float()  # a disc
    weights = anatomy * some_weights(0, 300, 196, 0.0)
    level = strata(weights)
    seen, background = [], []
    for given_weights in (None, weights):
        drawn = draw_blocks(300, 14, PAPER, seeded(), given_weights is not None)
        context, targets = block_masks(drawn, PAPER.context_kept, given_weights)
        hidden = as_map(targets.flatten(1), 196)
        seen.append(((as_map(context, 196) & (level == SALIENT)).sum(1) / (level == SALIENT).sum(1)).mean())
        background.append(((hidden & (level == EMPTY)).sum() / hidden.sum()).item())
    assert seen[0] < 0.2 and seen[1] > 1.4 * seen[0]
    assert background[1] < 0.9 * background[0]


@given(empty=st.floats(0, 1), seed=st.integers(0, 999))
def test_spared_masks_hide_no_background_and_at_most_the_share_of_salient_patches(empty: float, seed: int) -> None:
    hidden = torch.rand(4, 36, generator=seeded(seed)) < 0.4
    weights = some_weights(seed, 4, 36, empty)
    left, level = spared(hidden, weights, torch.rand(4, 36, generator=seeded(seed))), strata(weights)
    assert not (left & ~hidden).any()
    for before, after, stratum in zip(hidden, left, level, strict=True):
        if torch.equal(before, after):
            continue
        assert not (after & (stratum == EMPTY)).any()
        assert (after & (stratum == SALIENT)).sum() <= before.float().mean() * (stratum == SALIENT).sum() + 1e-6


def hidden_and_asked(name: str, views: Views, patches: int = 64) -> tuple[Tensor, Tensor]:
    """Which patches of 4 x 4 pixels are hidden from the encoder, and which it must say something of."""
    if name == "mae":
        asked = views["masked"] if "counted" not in views else views["masked"].where(views["counted"], patches)
        return as_map(views["masked"], patches), as_map(asked, patches + 1)[:, :patches]
    if name == "ijepa":
        targets = views["targets"].flatten(1)
        asked = targets if "counted" not in views else targets.where(views["counted"], patches)
        return ~as_map(views["context"], patches), as_map(asked, patches + 1)[:, :patches]
    if name == "simmim":
        return views["hidden"].flatten(1), views["counted"].flatten(1)
    return views["masks"][:, 0], views["masks"][:, 0]


def has_texture(images: Tensor) -> Tensor:
    """Which patches of 4 x 4 pixels hold more than one value, ``[B, 64]``."""
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    return ((patches.amax(dim=4) - patches.amin(dim=4)) > 1e-3).flatten(1)


@pytest.mark.parametrize("name", MASKED)
def test_every_masked_method_asks_less_for_background(name: str, build: Callable[..., Method]) -> None:
    background = []
    for focus in ("none", "entropy"):
        method = build(name, focus=focus)
        views = method.make_views(lesions(64), seeded())
        images = views["large"][:, 0] if name == "ibot" else views["images"]
        hidden, asked = hidden_and_asked(name, views)
        assert not (asked & ~hidden).any()
        if name == "ibot":  # a strong view has noise everywhere: look at the weights it was masked by
            weights = patch_weights("entropy", images, (8, 8))
            assert weights is not None
            texture = weights > 0
        else:
            texture = has_texture(images)
        background.append(((asked & ~texture).sum() / asked.sum()).item())
    assert background[1] < 0.9 * background[0]
    if name != "ibot":
        assert background[0] > 0.5 and background[1] < 0.1


@pytest.mark.parametrize("focus", ["entropy", "attention"])
@pytest.mark.parametrize("name", MASKED)
def test_a_focused_view_is_a_function_of_generator_and_own_image(
    name: str, focus: str, build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    if focus == "attention" and not METHODS[name].has_attention_teacher:
        return
    method, batch = build(name, focus=focus), blobs(5)
    changed = batch.images.clone()
    changed[0] = changed[0].flip(-1) * 0.5
    other = Batch(changed, batch.patients, batch.studies, batch.series)
    one, again, two = (method.make_views(each, seeded()) for each in (batch, batch, other))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key][0], two[key][0]) for key in one)
    assert all(torch.equal(one[key][1:], two[key][1:]) for key in one)
    assert torch.isfinite(method.loss(one)[0])


@pytest.mark.parametrize("name", ["mae", "ijepa", "simmim"])
def test_focused_losses_stay_per_sample(name: str, build: Callable[..., Method]) -> None:
    method = build(name, focus="entropy")
    views = method.make_views(lesions(4), seeded())
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    whole = torch.autograd.grad(method.loss(views)[0], weights)
    single = [
        torch.autograd.grad(method.loss({key: value[[row]] for key, value in views.items()})[0], weights)
        for row in range(4)
    ]
    for batch, own in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(batch, torch.stack(own).mean(dim=0), rtol=1e-3, atol=1e-6)


def test_attention_is_what_the_last_block_computes(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    encoder, images = build("ijepa").encoder.eval(), blobs(3).images
    found = attention_received(encoder, images)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    caught: list[Tensor] = []
    layer = encoder.get_submodule("blocks.1.attn")
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    patch_tokens(encoder, images)
    handle.remove()
    joint = layer.get_submodule("qkv")(caught[0])  # [3, 64, 3 * 48]: queries, keys, values of 3 heads of 16
    for row in range(3):
        total = torch.zeros(64, dtype=torch.float64)
        for head in range(3):
            query, key = (joint[row, :, part + 16 * head : part + 16 * (head + 1)].double() for part in (0, 48))
            for asking in query:
                total += torch.softmax(key @ asking / 4.0, dim=0)
        torch.testing.assert_close(found[row].double(), total / (3 * 64), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ijepa", "ibot", "combine", "swin_unetr"}))
def test_attention_needs_a_teacher(name: str, build: Callable[..., Method]) -> None:
    with pytest.raises(StudyError) as caught:
        build(name, focus="attention")
    message = str(caught.value)
    assert f"method.focus attention needs a masked method with a teacher, which '{name}' is not" in message
    assert "ijepa" in message and "ibot" in message and "\n" not in message


def test_a_sum_focuses_in_its_members() -> None:
    with pytest.raises(ValidationError, match="set focus in the members"):
        TypeAdapter(AnyMethodConfig).validate_python({"name": "combine", "focus": "entropy"})


def test_volumes_are_masked_by_what_they_show() -> None:
    image = ImageConfig(modality="mri", size=32, depth=16, channels=1)
    encoder = EncoderConfig(name="monai_vit", patch_size=(4, 8, 8), depth=1, width=24, heads=2)
    volumes, codes = torch.zeros(6, 1, 16, 32, 32), torch.arange(6)
    volumes[:, :, 4:12, 8:24, 8:24] = 0.3 + 0.7 * torch.rand(6, 1, 8, 16, 16, generator=seeded())
    config = TypeAdapter(AnyMethodConfig).validate_python({"name": "mae", "focus": "entropy"})
    method = build_method(config, encoder, image, 0)
    views = method.make_views(Batch(volumes, codes, codes, codes), seeded())
    share = views["counted"].float().mean().item()
    assert 0.1 < share < 0.9
    assert torch.isfinite(method.loss(views)[0])


def test_two_view_methods_get_focused_crops(build: Callable[..., Method]) -> None:
    batch = lesions(64)
    lost = []
    for focus in ("none", "entropy"):
        views = build("simclr", focus=focus).make_views(batch, seeded())
        lost.append(sum(int((views[name].flatten(1).amax(dim=1) < 3.0).sum()) for name in ("first", "second")))
    assert lost[1] <= lost[0]
    assert build("simclr").augmentation.focus is False and build("simclr", focus="entropy").augmentation.focus is True
