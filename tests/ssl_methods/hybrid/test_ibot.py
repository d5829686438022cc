"""iBOT: hidden patches, its two centres, KoLeo and the Gram term."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ssl_methods.components.koleo import koleo
from ssl_methods.encoders.outputs import masked_tokens, patch_tokens
from ssl_methods.hybrid import ibot
from ssl_methods.hybrid.ibot import IBOT, blockwise_masks, gram_loss, patch_loss
from ssl_methods.method import Batch, Method, Views

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
SMALL = {"outputs": 24, "head_width": 16, "bottleneck": 8, "small_crops": 2, "momentum": 0.9, "momentum_batch": 4}
SMALL |= {"teacher_temperature_start": 0.04, "teacher_temperature": 0.07}  # the paper's
ALONE: dict[str, object] = {"head_normalisation": "none"}
"""With a head that takes each token by itself, so that a loop over them is the same."""


def make(build: Build, **options: object) -> IBOT:
    made = build("ibot", **SMALL, **options)
    assert isinstance(made, IBOT)
    return made.train()


def views_of(method: Method, batch: Batch, seed: int = 0) -> Views:
    return method.make_views(batch, torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, hidden: Tensor, centre: Tensor, warm: float, cold: float) -> float:
    """Eq. 2 as loops: ``[R, N, K]`` outputs at all places, ``[R, N]`` hidden."""
    means = []
    for row in range(len(hidden)):
        terms = []
        for place in range(hidden.shape[1]):
            if hidden[row, place]:
                weights = ((teacher[row, place] - centre) / cold).exp()
                logits = student[row, place] / warm
                terms.append(-float((weights / weights.sum() * (logits - logits.exp().sum().log())).sum()))
        means.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(means) / len(means)


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, 5, generator=generator, dtype=torch.float64)
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, 0] = hidden[1, :5] = hidden[3, 2:4] = True  # image 2 has none
    return student, teacher, hidden, torch.randn(5, generator=generator, dtype=torch.float64)


def test_patch_loss_is_the_papers() -> None:
    student, teacher, hidden, centre = example()
    ours = patch_loss(student, teacher, hidden, centre, 0.5, 0.3)
    assert float(ours) == pytest.approx(reference(student, teacher, hidden, centre, 0.5, 0.3), rel=1e-12)


def test_gradient_of_the_patch_loss_by_hand() -> None:
    student, teacher, hidden, centre = example()
    student.requires_grad_()
    teacher.requires_grad_()
    patch_loss(student, teacher, hidden, centre, 0.5, 0.3).backward()
    # Of a cross-entropy: (prediction - target) / temperature, by the image's hidden patches and by 4 images.
    target = ((teacher.detach() - centre) / 0.3).softmax(dim=-1)
    weight = hidden / hidden.sum(dim=1, keepdim=True).clamp(min=1) / 4
    expected = ((student.detach() / 0.5).softmax(dim=-1) - target) / 0.5 * weight[:, :, None]
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


def test_a_image_without_hidden_patches_counts_in_the_mean() -> None:
    student, teacher, hidden, centre = example()
    some = torch.tensor([0, 1, 3])
    without = patch_loss(student[some], teacher[some], hidden[some], centre, 0.5, 0.3)
    assert float(patch_loss(student, teacher, hidden, centre, 0.5, 0.3)) == pytest.approx(float(without) * 3 / 4)
    nothing = patch_loss(student, teacher, torch.zeros_like(hidden), centre, 0.5, 0.3)
    assert float(nothing) == 0.0


def networks_outputs(method: IBOT, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's outputs ``[2B, N, K]`` at every place, image by image, and ``hidden`` ``[2B, N]``."""
    students, teachers, hidden = [], [], []
    with torch.no_grad():
        for view in range(2):
            for crop, mask in zip(views["large"][:, view], views["masks"][:, view], strict=True):
                tokens = masked_tokens(method.encoder, crop[None], mask[None], method.mask_token)
                seen = patch_tokens(method.teacher["encoder"], crop[None])
                teacher = [method.teacher[part] for part in ("head", "prototypes")]
                for found, given_, (head, last) in (
                    (students, tokens, (method.head, method.prototypes)),
                    (teachers, seen, teacher),
                ):
                    directions = functional.normalize(head.layers(given_), dim=-1)
                    found.append((directions @ functional.normalize(last.weight, dim=1).T)[0].double())
                hidden.append(mask)
    return torch.stack(students), torch.stack(teachers), torch.stack(hidden)


def two_steps(method: IBOT, blobs: Blobs) -> tuple[float, float]:
    """The patches' loss in a second step, and what it should be with the centre that the first step left."""
    for seed in (1, 2):
        method.before_step(0.0)
        views = views_of(method, blobs(6), seed)
        centre = method.patch_centre.value.double().clone()
        student, teacher, hidden = networks_outputs(method, views)
        _, scalars = method.loss(views)
        expected = reference(student, teacher, hidden, centre, 0.1, float(method.temperature))
        method.after_step(0.0, 4)
        moved = 0.9 * centre + 0.1 * teacher.mean(dim=(0, 1))  # of all patches, hidden or not
        torch.testing.assert_close(method.patch_centre.value.double(), moved, rtol=1e-4, atol=1e-6)
    assert 0 < hidden.any(dim=1).sum() < 12  # images with and without hidden patches
    return scalars["patch_loss"].item(), expected


def test_a_step_uses_the_patches_centre_from_before_it(build: Build, blobs: Blobs) -> None:
    found, expected = two_steps(make(build, **ALONE), blobs)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_mean_over_the_batchs_patches_is_noticed(build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ibot.patch_loss

    def over_the_batch(student: Tensor, teacher: Tensor, counted: Tensor, *others: object) -> Tensor:
        return right(student.flatten(0, 1)[None], teacher.flatten(0, 1)[None], counted.flatten()[None], *others)

    monkeypatch.setattr(ibot, "patch_loss", over_the_batch)
    found, expected = two_steps(make(build, **ALONE), blobs)
    assert found != pytest.approx(expected, rel=1e-3)


def test_batch_normalisation_sees_images_and_patches_together(build: Build, blobs: Blobs) -> None:
    method = make(build)
    seen: list[int] = []
    for head in (method.head, method.teacher["head"]):
        norm = next(module for module in head.modules() if isinstance(module, torch.nn.BatchNorm1d))
        norm.register_forward_pre_hook(lambda _, rows: seen.append(len(rows[0])))
    loss, _ = method.loss(views_of(method, blobs(3)))
    assert seen == [3 * 4 + 6 * 32, 3 * 2 + 6 * 64]  # of 64 patches at most half are hidden
    assert loss.isfinite()


def test_the_loss_is_the_sum_of_its_terms(build: Build, blobs: Blobs) -> None:
    method = make(build, koleo_weight=0.1, gram_weight=2.0, gram_from=0.2, patch_weight=0.5)
    views = views_of(method, blobs(4))
    method.before_step(0.1)
    early, scalars = method.loss(views)
    assert "gram" not in scalars
    method.before_step(0.2)
    with torch.no_grad():
        method.encoder.get_parameter("norm.weight")[:24].mul_(2.0)
    late, answer = method.loss(views)
    expected = answer["image_loss"] + 0.5 * answer["patch_loss"] + 0.1 * answer["koleo"] + 2.0 * answer["gram"]
    torch.testing.assert_close(late.detach(), expected)
    assert answer["gram"] > 0 and early.isfinite()


def test_hidden_pixels_do_not_reach_the_student(build: Build, blobs: Blobs) -> None:
    method = make(build, mask_chance=1.0)
    views = views_of(method, blobs(2))
    crops, masks = views["large"][:, 0], views["masks"][:, 0]
    before = masked_tokens(method.encoder, crops, masks, method.mask_token)
    for place in range(64):
        changed = crops.clone()
        top, left = place // 8 * 4, place % 8 * 4
        changed[0, :, top : top + 4, left : left + 4] += 5.0
        after = masked_tokens(method.encoder, changed, masks, method.mask_token)
        assert torch.equal(after, before) == bool(masks[0, place])
        assert torch.equal(after[1], before[1])


def test_the_student_is_told_what_is_hidden_and_where(build: Build, blobs: Blobs) -> None:
    method = make(build)
    crops = views_of(method, blobs(2))["large"][:, 0]
    nothing, everything = torch.zeros(2, 64, dtype=torch.bool), torch.ones(2, 64, dtype=torch.bool)
    plain = masked_tokens(method.encoder, crops, nothing, method.mask_token)
    assert torch.equal(plain, patch_tokens(method.encoder, crops))
    blind = masked_tokens(method.encoder, crops, everything, method.mask_token)
    assert torch.equal(blind[0], blind[1]) and blind[0].std(dim=0).max() > 0  # places differ, images do not


def test_gradient_reaches_what_is_trained_and_nothing_else(build: Build, blobs: Blobs) -> None:
    method = make(build, mask_chance=1.0, gram_weight=1.0, gram_from=0.0)
    method.before_step(0.0)
    method.loss(views_of(method, blobs(4)))[0].backward()
    assert all(weight.grad is None for weight in method.teacher.parameters())
    for part in (method.encoder.get_submodule("patch_embed.proj"), method.mask_token, method.prototypes):
        assert part.weight.grad.any()


@given(st.integers(2, 14), st.integers(2, 14), st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.integers(0, 99))
def test_no_mask_hides_more_than_its_share(height: int, width: int, least: float, more: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = blockwise_masks(50, (height, width), (least, least + more), 1.0, generator).sum(dim=1)
    assert hidden.min() >= 1 and hidden.max() <= max(1, int((least + more) * height * width))


def test_masks_are_blocks_of_the_wanted_size_in_half_the_crops() -> None:
    masks = blockwise_masks(2000, (14, 14), (0.1, 0.5), 0.5, torch.Generator().manual_seed(0))
    chosen = masks[masks.any(dim=1)]
    assert len(chosen) / 2000 == pytest.approx(0.5, abs=0.05)
    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.02)
    grid = chosen.reshape(-1, 14, 14)
    alike = (grid[:, :, 1:] == grid[:, :, :-1]).float().mean().item()
    assert alike > 0.8  # of two neighbours; 0.58 were each patch hidden by itself with probability .3
    share = masks.float().mean(dim=0)
    assert share.min() > 0.01  # corners too, if rarely: few rectangles reach into them


def test_koleo_by_hand() -> None:
    # Unit vectors at 0, 90 and 120 degrees: nearest neighbours are 90, 30 and 30 degrees away.
    angles = torch.tensor([0.0, math.pi / 2, math.pi * 2 / 3])
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    far, near = 2 * math.sin(math.pi / 4), 2 * math.sin(math.pi / 12)
    assert koleo(points).item() == pytest.approx(-(math.log(far) + 2 * math.log(near)) / 3, rel=1e-5)
    assert koleo(torch.ones(3, 2)).isfinite()


def test_koleo_pushes_neighbours_apart() -> None:
    points = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    koleo(points).backward()
    moved = points.detach() - 0.01 * points.grad
    unit = functional.normalize

    def closest(rows: Tensor) -> float:
        return float(torch.pdist(unit(rows, dim=1)).min())

    assert closest(moved) > closest(points.detach())


def test_gram_by_hand() -> None:
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])  # at right angles: cosine 0
    anchor = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])  # cosine 1 / sqrt(2)
    assert gram_loss(tokens, anchor).item() == pytest.approx(2 * 0.5 / 4, rel=1e-5)
    turned = tokens @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert gram_loss(turned, tokens).item() == pytest.approx(0.0, abs=1e-6)


def test_the_anchor_is_the_encoder_at_its_time_and_is_kept(build: Build) -> None:
    def with_bias(method: IBOT, value: float) -> None:
        with torch.no_grad():
            method.encoder.get_parameter("norm.bias").fill_(value)

    def anchored(method: IBOT) -> float:
        return float(method.teacher["anchor"].get_parameter("norm.bias")[0])

    first = make(build, gram_weight=2.0)
    for progress, value in ((0.49, 1.0), (0.5, 2.0), (0.51, 3.0)):
        with_bias(first, value)
        first.before_step(progress)
    assert anchored(first) == 2.0
    second = make(build, gram_weight=2.0)  # the next round
    second.load_state_dict({**second.state_dict(), **first.local_state()})
    with_bias(second, 4.0)
    second.before_step(0.6)
    assert anchored(second) == 2.0 and second.gram_used
    assert not any("anchor" in key for key in first.shared_state())
    assert not any("anchor" in key for key in make(build).state_dict())


def test_what_is_shown_hides_what_the_student_does_not_see(build: Build, blobs: Blobs) -> None:
    method = make(build, mask_chance=1.0)
    views = views_of(method, blobs(2))
    shown = dict(method.show(views, 1))
    assert list(shown) == ["large 1", "large 1, student sees", "large 2", "large 2, student sees", "small 1", "small 2"]
    assert shown["large 2, student sees"].isnan().sum() == 16 * views["masks"][1, 1].sum()


def test_the_student_learns_what_a_standing_teacher_says(build: Build, blobs: Blobs) -> None:
    method = make(build, mask_chance=1.0, **ALONE)
    views = views_of(method, blobs(8))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    excess = []
    for _ in range(40):
        method.before_step(0.5)
        if not excess:  # the loss of a student who knows: the targets' entropy
            _, teacher, hidden = networks_outputs(method, views)
            cold = float(method.temperature)
            least = reference(teacher * 0.1 / cold, teacher, hidden, torch.zeros(24), 0.1, cold)
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        images = scalars["image_loss"] - scalars["target_entropy"] * math.log(24)
        excess.append((images.item(), scalars["patch_loss"].item() - least))
        assert all(not value.requires_grad for value in scalars.values())
    for start, end in zip(excess[1], excess[-1], strict=True):
        assert -1e-4 < end < 0.5 * start
