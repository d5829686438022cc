"""Detection: a centre-based head on the encoder's maps, with the encoder frozen or trained with it.

An object is the peak of its class's heatmap in the middle of its box; size and exact place are read there (CenterNet,
Zhou et al. 2019, "Objects as points", sec. 3 and 4). Peaks are local maxima of 3 x 3 cells, so that no suppression of
boxes is needed. AdamW, cosine with warm-up; the number of epochs is fixed: no image outside the training patients is
read, so neither test nor validation can steer it.

The head sees the encoder's maps of all depths, and never the image, so that a frozen encoder is judged by what it
kept. The last map alone has one place for 32 x 32 pixels in most convolutional networks: a blood platelet is smaller.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from evaluation.protocols.detection_head import Answers, Detector
from evaluation.protocols.detection_targets import centre_loss, flipped, targets_of
from evaluation.protocols.detection_types import Detected
from evaluation.protocols.finetune import optimiser_for, settle, train_mode
from evaluation.protocols.steps import batches, set_rate, take_step
from evaluation.protocols.trial import Trial
from foundation.errors import StudyError
from foundation.randomness import seeded_torch, stream_seed, torch_generator
from foundation.schedules import warmup_cosine
from imaging.annotations.boxes import Boxes
from imaging.views.augment import Augmentation

IMAGES_AT_ONCE = 128
LARGEST = 4.0
"""Logarithm of the largest side in images' sides that is decoded: what has not learnt cannot overflow."""

Images = NDArray[Any]
Train = tuple[Images, Sequence[Boxes]]


def frozen_detections(train: Train, test: Images, trial: Trial) -> list[Detected]:
    """What is found in the test images by a head trained on the frozen encoder's maps.

    train: images ``[N, C, S, S]`` in [0, 1] and their boxes of ``trial.classes`` classes, of some images none. They
    are mirrored with their boxes, as often as the modality's augmentation preset mirrors. StudyError for volumes.
    """
    return _detections(train, test, trial, frozen=True)


def finetune_detections(train: Train, test: Images, trial: Trial) -> list[Detected]:
    """As ``frozen_detections``, but all weights of the encoder are trained with the head.

    Lower layers learn more slowly (``detection.layer_decay``).
    """
    return _detections(train, test, trial, frozen=False)


def _detections(train: Train, test: Images, trial: Trial, *, frozen: bool) -> list[Detected]:
    if trial.image.dimensions != 2:
        raise StudyError(
            f"detection takes 2-D images, but image.depth is {trial.image.depth}; leave it out, with a slice a row"
        )
    seed = stream_seed(trial.seed, "detection")
    with seeded_torch(seed, "head"):
        network = Detector(trial.encoder(0.0), trial, frozen=frozen).to(trial.device)
        _fit(network, train, trial, seed)
    return _found(network, test, trial)


def _fit(network: Detector, train: Train, trial: Trial, seed: int) -> None:
    """Train in place."""
    settings, augmentation = trial.config.detection, Augmentation(trial.image)
    shown, truth = torch.from_numpy(train[0]), train[1]
    optimiser = optimiser_for(network, settings.learning_rate, settings.layer_decay, settings.weight_decay)
    views = torch_generator(seed, "views")
    train_mode(network)
    for progress, chosen in batches(len(truth), settings.epochs, settings.batch, seed):
        set_rate(optimiser, warmup_cosine(progress, settings.learning_rate, warmup=settings.warmup))
        images, boxes = flipped(shown[chosen], [truth[place] for place in chosen], augmentation.preset, views)
        answers = network(augmentation.plain(images.to(trial.device)))
        take_step(network, optimiser, centre_loss(answers, targets_of(boxes, trial.classes, trial.image.size)))
    settle(network.encoder, shown, trial)


@torch.no_grad()
def _found(network: Detector, images: Images, trial: Trial) -> list[Detected]:
    network.eval()
    augmentation = Augmentation(trial.image)
    found = []
    for part in torch.split(torch.from_numpy(images), trial.image.at_once(IMAGES_AT_ONCE)):
        answers = network(augmentation.plain(part.to(trial.device)))
        found += decoded(answers, trial.image.size, trial.config.detection.most_boxes)
    return found


def decoded(answers: Answers, side: int, most: int) -> list[Detected]:
    """The ``most`` surest peaks of each image of ``side`` pixels as boxes, cut at its edge.

    A cell is a peak where no cell beside it is more of its class (CenterNet, sec. 4). On the CPU, whatever the device.
    """
    heat, size, offset = (part.detach().cpu().double() for part in answers)
    scores = torch.sigmoid(heat)
    grid = scores.shape[-1]
    peak = functional.max_pool2d(scores, 3, stride=1, padding=1) == scores
    order = torch.where(peak, scores, 0.0).flatten(1).argsort(dim=1, descending=True, stable=True)[:, :most]
    found = []
    for image in range(len(scores)):
        places = order[image][peak[image].flatten()[order[image]]]
        kind, cell = places // grid**2, places % grid**2
        row, column = cell // grid, cell % grid
        middle = torch.stack([column, row], dim=1) + offset[image, :, row, column].T
        half = size[image, :, row, column].T.clamp(max=np.log(grid) + LARGEST).exp() / 2
        boxes = (torch.cat([middle - half, middle + half], dim=1) * side / grid).clamp(0, side)
        sure = scores[image].flatten()[places]
        found.append(Detected(boxes.float().numpy(), kind.numpy(), sure.numpy()))
    return found
