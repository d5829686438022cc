"""Features of labelled images by an encoder, computed once and kept in the run folder."""

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.inputs import Encoder, Inputs, View
from evaluation.statistics.diagnostics import alignment
from evaluation.statistics.intervals import FloatArray, IntArray
from foundation.files import digest, write_with
from foundation.machine import choose_device
from foundation.randomness import torch_generator
from imaging.listing.splits import HELD
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import features

IMAGES_AT_ONCE = 128


def features_of(inputs: Inputs, encoder: Encoder) -> FloatArray:
    """``[N, D]`` features of all labelled images, float64; kept as float32 in evaluation/features/."""
    view = inputs.view(encoder.image)
    key = digest(encoder.key, view.key)[:16]
    path = inputs.run / "evaluation" / "features" / f"{encoder.arm}-{encoder.fold}-{encoder.seed}-{key}.npy"
    if not path.exists():
        found = _extract(view, encoder)
        write_with(path, lambda handle: np.save(handle, found))
    return np.asarray(np.load(path), dtype=np.float64)


@torch.no_grad()
def _extract(view: View, encoder: Encoder) -> NDArray[np.float32]:
    device = choose_device("auto")
    model = encoder.build().to(device)
    augmentation = Augmentation(view.image)
    parts = []
    for chosen in _blocks(np.arange(len(view.places)), view):
        shown = augmentation.plain(view.read(chosen).to(device))
        parts.append(features(model, shown).float().cpu().numpy())
    return np.concatenate(parts)


def _blocks(places: IntArray, view: View) -> list[IntArray]:
    """The places, as many at once as memory bears."""
    step = view.image.at_once(IMAGES_AT_ONCE)
    return [places[start : start + step] for start in range(0, len(places), step)]


VIEWED = 256
"""Images of which two views are compared: more would not move the mean."""


@torch.no_grad()
def alignment_of(inputs: Inputs, encoder: Encoder) -> float:
    """``diagnostics.alignment`` of two strong views of held images, evenly spread; the same for every encoder."""
    view, device = inputs.view(encoder.image), choose_device("auto")
    held = inputs.images.where(encoder.fold, *HELD)
    held = held[:: max(1, -(-len(held) // VIEWED))]
    model, augmentation = encoder.build().to(device), Augmentation(view.image)
    generator = torch_generator(inputs.config.seed, "alignment", encoder.fold)
    pairs: list[list[NDArray[np.float32]]] = [[], []]
    for block in _blocks(held, view):
        shown = view.read(block).to(device)
        for own in pairs:
            own.append(features(model, augmentation.strong(shown, generator)).float().cpu().numpy())
    first, second = (np.concatenate(own).astype(np.float64) for own in pairs)
    return alignment(first, second)
