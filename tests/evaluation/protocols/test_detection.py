"""Detection learns, is repeatable, leaves a frozen encoder as it is, and follows each of its settings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.config import DetectionConfig, EvaluationConfig
from evaluation.protocols import steps
from evaluation.protocols.detection import finetune_detections, frozen_detections
from evaluation.protocols.detection_head import CentreHead, Detector
from evaluation.protocols.detection_types import Detected
from evaluation.protocols.trial import Trial
from evaluation.tasks.average_precision import average_precision, matches
from foundation.errors import StudyError
from foundation.randomness import numpy_generator, seeded_torch
from imaging.annotations.boxes import Boxes
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

from ...tiers import slow

IMAGE = ImageConfig(modality="microscopy", size=32, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2, width=32, heads=2)
RESNET = EncoderConfig(name="resnet10t")
Images = tuple[np.ndarray, list[Boxes]]
Detect = Callable[[Images, np.ndarray, Trial], list[Detected]]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LEAST_STEPS", 1)


def trial(
    config: EncoderConfig, image: ImageConfig = IMAGE, made: list[nn.Module] | None = None, **given: Any
) -> Trial:
    def encoder(drop_path: float) -> nn.Module:
        with seeded_torch(1, "encoder"):
            built = build_encoder(config.model_copy(update={"drop_path": drop_path}), image)
        if made is not None:
            made.append(built)
        return built

    settings = DetectionConfig.model_validate({"epochs": 2, "batch": 8, "width": 16, **given})
    asked = EvaluationConfig(kind="detection", detection=settings)
    return Trial(2, image, asked, encoder, 7, torch.device("cpu"))


def squares(count: int, seed: int) -> Images:
    """Bright (class 1) and dark (class 0) squares on grey, two to an image, one in each half; the last has none."""
    draw = numpy_generator(seed, "squares")
    shown = draw.normal(0.5, 0.03, (count, 1, 32, 32))
    truth = []
    for image in shown[:-1, 0]:
        boxes, kinds = [], draw.integers(0, 2, 2)
        for half, kind in enumerate(kinds):
            side, x, y = draw.integers(6, 11), draw.integers(0, 6) + 16 * half, draw.integers(0, 22)
            image[y : y + side, x : x + side] += 0.35 if kind else -0.35
            boxes.append([x, y, x + side, y + side])
        truth.append(Boxes(np.array(boxes, dtype=np.float32), kinds))
    truth.append(Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    return shown.clip(0, 1).astype(np.float32), truth


def precision(found: list[Detected], truth: list[Boxes]) -> float:
    return average_precision(matches(found, truth, 2), ("dark", "bright"), (0.5,))


def same(one: list[Detected], other: list[Detected]) -> bool:
    return all(
        np.array_equal(a.boxes, b.boxes) and np.array_equal(a.kinds, b.kinds) and np.array_equal(a.scores, b.scores)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("detect", "config"),
    [(frozen_detections, VIT), slow(frozen_detections, RESNET), slow(finetune_detections, VIT)],
    ids=["frozen vit", "frozen resnet", "finetuned vit"],
)
def test_finds_what_it_was_shown_and_repeats_itself(detect: Detect, config: EncoderConfig) -> None:
    seen, (unseen, truth) = squares(33, 1), squares(25, 2)
    asked = trial(config, epochs=18, learning_rate=4e-3)
    state = torch.random.get_rng_state()
    found = detect(seen, unseen, asked)
    assert precision(found, truth) > 0.6
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(((one.scores > 0) & (one.scores < 1)).all() and (np.diff(one.scores) <= 0).all() for one in found)
    assert same(detect(seen, unseen, trial(config)), detect(seen, unseen, trial(config)))


@pytest.mark.parametrize("detect", [frozen_detections, finetune_detections], ids=["frozen", "finetuned"])
def test_only_a_frozen_encoder_stays_as_it_is(detect: Detect) -> None:
    """Weights, and BatchNorm's statistics."""
    made: list[nn.Module] = []
    asked = trial(RESNET, made=made)
    detect(squares(9, 1), squares(2, 2)[0], asked)
    before, after = asked.encoder(0.0).state_dict(), made[0].state_dict()
    kept = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert kept == (list(before) if detect is frozen_detections else [])


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 3}, {"learning_rate": 3e-3}, {"weight_decay": 0.5}, {"width": 12}, {"warmup": 0.5}, {"batch": 4},
        {"layer_decay": 0.5},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_every_setting_changes_what_is_found(changed: dict[str, float]) -> None:
    seen, unseen = squares(9, 1), squares(3, 2)[0]
    plain = finetune_detections(seen, unseen, trial(VIT))
    assert not same(plain, finetune_detections(seen, unseen, trial(VIT, **changed)))


def test_no_more_boxes_than_asked() -> None:
    found = frozen_detections(squares(9, 1), squares(3, 2)[0], trial(VIT, most_boxes=2))
    assert [len(one.scores) for one in found] == [2, 2, 2]


def test_few_images_are_passed_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LEAST_STEPS", 7)
    passed = list(steps.batches(9, 2, 4, 0))
    assert len(passed) == 9  # three passes of three steps are the least that has seven
    assert [sorted(torch.cat([chosen for _, chosen in passed[n : n + 3]]).tolist()) for n in (0, 3, 6)] == [
        [*range(9)]
    ] * 3
    np.testing.assert_allclose([progress for progress, _ in passed], (np.arange(9) + 0.5) / 9)


def test_training_images_without_any_box_teach_that_there_is_none() -> None:
    shown = squares(9, 1)[0]
    nothing = [Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)) for _ in shown]
    found = frozen_detections((shown, nothing), shown[:2], trial(VIT, epochs=20, learning_rate=1e-2))
    assert max(one.scores.max() for one in found) < 0.1


def test_volumes_are_refused() -> None:
    image = ImageConfig(modality="ct", size=32, channels=1, depth=8)
    with pytest.raises(StudyError, match=r"^detection takes 2-D images, but image\.depth is 8; leave it out"):
        frozen_detections(squares(3, 1), squares(2, 2)[0], trial(VIT, image))


@pytest.mark.parametrize(
    ("shapes", "sides"),
    [
        ([(8, 64, 64), (8, 32, 32), (8, 16, 16), (8, 8, 8), (8, 4, 4)], [4, 8, 16, 32]),  # convolutional: strides 2..32
        ([(8, 8, 8)] * 4, [8, 16, 32, 32]),  # ViT, patches of 16
        ([(8, 8, 8)], [8, 16, 32]),
        ([(8, 64, 64)], [32]),  # a ViT with patches of 2
        ([(8, 11, 11), (8, 6, 6)], [6, 12, 24, 32]),
    ],
    ids=["stages", "patches", "one block", "fine", "odd"],
)
def test_stages_lead_to_cells_of_four_pixels(shapes: list[tuple[int, ...]], sides: list[int]) -> None:
    head = CentreHead(shapes, 32, 3, 8)
    assert head.sides == sides
    answers = head([torch.rand(2, *shape) for shape in shapes])
    assert [tuple(part.shape) for part in answers] == [(2, 3, 32, 32), (2, 2, 32, 32), (2, 2, 32, 32)]


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_every_weight_of_the_head_is_used(config: EncoderConfig) -> None:
    asked = trial(config)
    detector = Detector(asked.encoder(0.0), asked, frozen=True)
    sum(part.square().sum() for part in detector(torch.rand(2, 1, 32, 32))).backward()
    assert [name for name, weight in detector.named_parameters() if weight.grad is None] == [
        f"encoder.{name}" for name, _ in detector.encoder.named_parameters()
    ]
