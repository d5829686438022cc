"""Which images of a run folder its encoders are shown with, and where in them likeness is asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.explain.encoder_images import ImagePanel, Point, Shown, encoder_panels, in_order, salient_points
from evaluation.explain.restorations import restoration_panels
from evaluation.inputs import Encoder, Inputs, read_inputs
from evaluation.statistics.intervals import IntArray
from evaluation.tasks.targets import Images
from foundation.errors import RunError, nearest
from foundation.machine import choose_device
from foundation.randomness import numpy_generator
from imaging.listing.splits import HELD
from imaging.reading.planes import middle_slice


def panels(run: Path, arms: Sequence[str] | None = None, count: int = 3, at: Point | None = None) -> list[ImagePanel]:
    """What the encoders of ``arms`` (None: all) make of ``count`` held images; [] where no held one can be read.

    The panels hold images of patients, and a report may leave the hospital: to call this is a decision. It is for
    runs of public images, or for an evaluator who asks for images. Captions name neither files nor patients, sites
    or labels, but text burnt into an image stays in it.

    Images are test and left-out ones of the first fold that all arms have, each arm's encoder that of its first
    training seed. at: the place whose patch others are compared with; None: in the middle of the mask, or where the
    image tells most. RunError: no such arm, no fold that all have, or a place outside the image.
    """
    if at is not None and not all(0 <= part <= 1 for part in at):
        raise RunError(f"the place {at[0]:g}, {at[1]:g} lies outside the image; give x and y from 0 to 1")
    inputs = read_inputs(run, show=False)
    encoders = _chosen(inputs, arms)
    masks = inputs.target(encoders[0].image) if inputs.config.kind == "segmentation" else None
    places = _places(inputs.images, encoders[0].fold, count, masks)
    if not len(places):
        return []
    points = _points(inputs, encoders[0], places, masks) if at is None else [at] * len(places)
    restored = [panel for one in encoders for panel in restoration_panels(one, inputs.view(one.image).read(places))]
    return in_order([*encoder_panels(_shown(inputs, encoders, places), points), *restored])


def _chosen(inputs: Inputs, arms: Sequence[str] | None) -> list[Encoder]:
    """An encoder an arm, in the order asked for, all of the same fold."""
    known = list(dict.fromkeys(encoder.arm for encoder in inputs.encoders))
    for arm in arms or ():
        if arm not in known:
            raise RunError(f"arm {arm!r} is not in {inputs.run}, which has {', '.join(known)}{nearest(arm, known)}")
    asked = list(dict.fromkeys(known if arms is None else arms))
    if not asked:
        raise RunError(f"no arm is chosen to show images with; {inputs.run} has {', '.join(known)}")
    folds = [{encoder.fold for encoder in inputs.encoders if encoder.arm == arm} for arm in asked]
    shared = set.intersection(*folds)
    if not shared:
        raise RunError(
            f"{', '.join(asked)} have no fold in common, so no image is held back from all; name arms that have"
        )
    fold = min(shared)
    return [
        min((one for one in inputs.encoders if (one.arm, one.fold) == (arm, fold)), key=lambda one: one.seed)
        for arm in asked
    ]


def _shown(inputs: Inputs, encoders: Sequence[Encoder], places: IntArray) -> Iterator[Shown]:
    device = choose_device("auto")
    for one in encoders:
        yield Shown(one.title, one.build().to(device), one.image, inputs.view(one.image).read(places))


def _places(images: Images, fold: int, count: int, masks: NDArray[np.uint8] | None) -> IntArray:
    """Held images in a fixed random order, each next one preferably of a new patient, then site and label.

    Among equals one with an outlined structure comes first: there is something to look at.
    """
    held = images.where(fold, *HELD)
    left = held[numpy_generator(0, "images shown").permutation(len(held))].tolist()
    kinds = images.patient, images.site, images.label
    taken: list[int] = []
    while left and len(taken) < count:
        seen = [{str(names[place]) for place in taken} for names in kinds]

        def gain(place: int, seen: Sequence[set[str]] = seen) -> tuple[bool, int, bool]:
            fresh = [str(names[place]) not in known for names, known in zip(kinds, seen, strict=True)]
            return fresh[0], fresh[1] + fresh[2], masks is not None and bool(masks[place].any())

        taken.append(max(left, key=gain))  # the first of equals
        left.remove(taken[-1])
    return np.array(taken, dtype=np.int64)


def _points(inputs: Inputs, encoder: Encoder, places: IntArray, masks: NDArray[np.uint8] | None) -> list[Point]:
    """In the middle of each image's mask, where it has one in the slice that is shown, else where it tells most."""
    salient = salient_points(inputs.view(encoder.image).read(places))
    if masks is None:
        return salient
    return [mask_point(masks[place]) or point for place, point in zip(places.tolist(), salient, strict=True)]


def mask_point(mask: NDArray[np.uint8]) -> Point | None:
    """The outlined pixel of ``[S, S]`` (of ``[D, S, S]``: in the middle slice) nearest to the outline's centre.

    The centre itself can lie beside a ring or a vessel. None where nothing is outlined.
    """
    plane = mask[middle_slice(len(mask))] if mask.ndim == 3 else mask
    pixels = np.argwhere(plane > 0)
    if not len(pixels):
        return None
    row, column = pixels[np.square(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()]
    return (float(column) + 0.5) / plane.shape[1], (float(row) + 0.5) / plane.shape[0]
