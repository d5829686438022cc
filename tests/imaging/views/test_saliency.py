"""Local entropy by the definition, and crops that keep what an image has to show."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imaging.config import AugmentConfig, ImageConfig
from imaging.views import augment, geometry
from imaging.views.augment import Augmentation
from imaging.views.saliency import BINS, EMPTY, crop_saliency, entropy_map, focused, kept_share, places

IMAGE = ImageConfig(modality="mri", size=64, channels=1, augment=AugmentConfig(crop_scale=(0.1, 0.3)))


def slow_entropy(image: Tensor, rows: int, columns: int) -> list[list[float]]:
    """By the definition, pixel by pixel, of one channel ``[H, W]`` whose sides the grid divides."""
    low, high = float(image.min()), float(image.max())
    height, width = image.shape[0] // rows, image.shape[1] // columns
    found = []
    for row in range(rows):
        line = []
        for column in range(columns):
            cell = image[row * height : (row + 1) * height, column * width : (column + 1) * width].flatten().tolist()
            bins = Counter(min(int((value - low) / (high - low) * BINS), BINS - 1) for value in cell)
            entropy = -sum(n / len(cell) * math.log(n / len(cell)) for n in bins.values())
            line.append(entropy if entropy >= EMPTY else 0.0)
        found.append(line)
    return found


def lesions(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Empty images ``[B, 1, 64, 64]`` with one bright textured square of 12 pixels; also where it is."""
    draw = torch.Generator().manual_seed(seed)
    images, where = torch.zeros(count, 1, 64, 64), torch.zeros(count, 1, 64, 64)
    for image, place in zip(images, where, strict=True):
        top, left = torch.randint(0, 53, (2,), generator=draw).tolist()
        image[:, top : top + 12, left : left + 12] = 0.3 + 0.7 * torch.rand(1, 12, 12, generator=draw)
        place[:, top : top + 12, left : left + 12] = 1.0
    return images, where


@given(st.integers(0, 999))
def test_entropy_is_that_of_the_definition_channel_by_channel(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 9, (2, 2, 12, 8), generator=draw) * torch.randint(0, 2, (2, 2, 12, 8), generator=draw)
    found = entropy_map(levels.float(), (3, 2))
    for image, one in zip(levels.float(), found, strict=True):
        both = [torch.tensor(slow_entropy(channel, 3, 2)) for channel in image]
        exact = (both[0] + both[1]) / 2
        torch.testing.assert_close(one, torch.where(exact < EMPTY, 0.0, exact), rtol=1e-5, atol=1e-6)


def test_entropy_by_hand() -> None:
    image = torch.zeros(1, 1, 4, 8)
    image[..., 4:6] = 1.0  # right cell: two values, half each; left cell: one value
    assert entropy_map(image, (1, 2)).flatten().tolist() == pytest.approx([0.0, math.log(2)])


def test_entropy_does_not_depend_on_units_or_on_the_batch_and_takes_volumes() -> None:
    images, _ = lesions(4)
    alone = entropy_map(images[2:3], (8, 8))
    assert torch.equal(entropy_map(images, (8, 8))[2:3], alone)
    assert torch.equal(entropy_map(images * 4.0 - 2.0, (8, 8))[2:3], alone)
    volume = images[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(entropy_map(volume, (2, 8, 8))[:, 1], entropy_map(images, (8, 8)))


def test_flat_images_are_empty_everywhere() -> None:
    assert not entropy_map(torch.full((2, 3, 16, 16), 0.7), (4, 4)).any()
    noisy = 0.02 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy[..., 0, 0] = 1.0
    assert int((entropy_map(noisy, (4, 4)) > 0).sum()) <= 1  # noise below a bin is nothing


def test_share_in_a_box_by_hand() -> None:
    saliency = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    half, quarter = torch.tensor([0.5]), torch.tensor([0.75])
    assert kept_share(saliency, [(quarter, half), (quarter, half)]).item() == pytest.approx(0.75)
    assert kept_share(saliency, [(quarter, half), (half, half)]).item() == pytest.approx(0.5)
    assert kept_share(torch.zeros(1, 2, 2), [(half, half), (half, half)]).item() == 0.0


def kept_of(lesion: Tensor, maps: Tensor) -> Tensor:
    """Share ``[B]`` of the lesion's area that is in the view."""
    seen = geometry.resample(lesion, maps, "zeros").flatten(1).sum(dim=1)
    return seen * torch.linalg.det(maps[:, :, :2]).abs() / lesion.flatten(1).sum(dim=1)


def views(focus: bool, images: Tensor, seed: int = 0, kind: str = "strong") -> tuple[Tensor, Tensor]:
    """Views of the images and the maps they were cut by."""
    augmentation = Augmentation(IMAGE, focus)
    augmentation.made = []
    made = getattr(augmentation, kind)(images, torch.Generator().manual_seed(seed))
    maps = augmentation.made[0].maps
    assert maps is not None
    return made, maps


def test_focused_crops_hold_the_lesion_and_keep_their_size() -> None:
    images, lesion = lesions(300)
    before, after = (views(focus, images)[1] for focus in (False, True))
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])  # same size, ratio, turn and flip
    lost, still_lost = ((kept_of(lesion, maps) < 0.05).float().mean() for maps in (before, after))
    assert lost > 0.4
    assert still_lost < 0.25 * lost


def test_focused_crops_stay_random() -> None:
    image = lesions(1)[0].expand(200, -1, -1, -1)
    places = views(True, image)[1][:, :, 2]
    assert places.std(dim=0).min() > 0.05
    assert len({tuple(place) for place in places.tolist()}) == 200


@pytest.mark.parametrize("kind", ["light", "strong"])
def test_a_focused_crop_is_a_function_of_its_own_image(kind: str) -> None:
    images, _ = lesions(4)
    changed = images.clone()
    changed[0] = changed[0].flip(-1)
    one, other = views(True, images, kind=kind)[0], views(True, changed, kind=kind)[0]
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1:], other[1:])
    assert torch.equal(one, views(True, images, kind=kind)[0])


def test_without_focus_nothing_more_is_drawn_and_empty_images_stay_where_they_were_cut() -> None:
    images, _ = lesions(4)
    generator, reference = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    Augmentation(IMAGE).strong(images, generator)
    augment.draw(4, reference)
    assert torch.equal(generator.get_state(), reference.get_state())
    empty = torch.zeros(4, 1, 64, 64)
    assert torch.equal(views(True, empty)[1], views(False, empty)[1])


def test_in_volumes_the_slices_are_chosen_too() -> None:
    volume = ImageConfig(modality="mri", size=32, depth=32, channels=1, augment=AugmentConfig(crop_scale=(0.1, 0.3)))
    draw = torch.Generator().manual_seed(0)
    volumes = torch.zeros(40, 1, 32, 32, 32)
    volumes[:, :, :8, 12:20, 12:20] = 0.5 + 0.5 * torch.rand(40, 1, 8, 8, 8, generator=draw)
    shown = [
        Augmentation(volume, focus).light(volumes, torch.Generator().manual_seed(0)).flatten(1).std(dim=1) > 0
        for focus in (False, True)
    ]
    strong = [
        (Augmentation(volume, focus).strong(volumes, torch.Generator().manual_seed(0)) > 2.5).flatten(1).any(dim=1)
        for focus in (False, True)
    ]
    assert shown[1].sum() >= shown[0].sum()
    assert strong[1].sum() > strong[0].sum() + 5


SIDE = torch.full((200,), 0.6)


def boxes(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(0.3 + 0.4 * given[name], SIDE) for name in ("top", "left")]


def test_a_place_that_was_good_enough_stays_and_none_gets_much_worse() -> None:
    """The planted mutant, which avoids what is salient, must not pass."""
    saliency = crop_saliency(lesions(200)[0])
    drawn = {
        name: torch.rand(200, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate(("left", "top"))
    }
    kept = kept_share(saliency, boxes(drawn))
    others = places(200, ("left", "top"), torch.Generator().manual_seed(0))

    def keeps_the_rule(one: dict[str, Tensor]) -> bool:
        stays = all(torch.equal(one[name][kept > 0.999], drawn[name][kept > 0.999]) for name in drawn)
        return stays and bool((kept_share(saliency, boxes(one)) >= 0.9 * kept - 1e-6).all())

    assert (kept > 0.999).sum() > 10
    assert keeps_the_rule(focused(drawn, ("left", "top"), boxes, saliency, others))
    mutant = saliency.amax(dim=(1, 2), keepdim=True) - saliency
    assert not keeps_the_rule(focused(drawn, ("left", "top"), boxes, mutant, others))
