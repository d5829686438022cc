"""An image sheet of what a study's method makes of real images, for the eye of someone who reads them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site_file import load_site_file
from client.training.batches import BatchReader
from evaluation.kept_method import load_shared
from federation.study import Study, load_study
from foundation.errors import StudyError
from foundation.randomness import seeded_torch, torch_generator
from imaging.config import AugmentConfig
from imaging.listing.manifest import Manifest
from imaging.reading.planes import in_colour, shown_channel, shown_plane
from imaging.store import TensorStore
from imaging.views.augment import Made
from imaging.views.presets import Preset
from simulation.preview.drawing import Block, Panel, write_sheet
from simulation.simulate import simulation_config
from simulation.sites.findings import Annotations, are_outlined, findings_of
from simulation.sites.partition import assign_sites
from ssl_methods import build_method
from ssl_methods.method import Batch, Method, Views

CANDIDATES = 2048
BOTH_KINDS = ("crop_ratio", "horizontal_flip", "vertical_flip")
PROBABILITIES = {
    "blur_probability": ("blur",),
    "noise_probability": ("noise", "speckle"),
    "jitter_probability": ("gamma", "brightness", "contrast", "saturation", "hue"),
    "anisotropy_probability": ("anisotropy",),
    "artefact_probability": ("motion", "ghosting"),
    "equalise_probability": ("equalise",),
}


@dataclass(frozen=True)
class _Step:
    """One real step, stopped before its loss."""

    batch: Batch
    views: Views
    made: list[Made]
    restored: Tensor | None


def preview(
    study: Study | Path | str,
    overrides: Sequence[str] = (),
    *,
    site: Path | None = None,
    out: Path = Path("preview.png"),
    images: int = 4,
    weights: Path | None = None,
    channel: int | None = None,
) -> list[str]:
    """Write the sheet ``out`` (PNG) of ``images`` images of one batch; lines that say what is on it.

    The images are those of the study's dataset, or of the site file ``site``. Views, masks and targets are what
    the method's ``make_views`` gives in training. ``weights``: a run folder or a file of a method's shared weights,
    for restorations; None: untrained. ``channel`` (from 1): which one to show of images that are not in colour;
    None: the middle one. Decoded images are removed again. StudyError, DataError: as training would raise them.
    """
    chosen = study if isinstance(study, Study) else load_study(Path(study), tuple(overrides))
    if not 1 <= images <= 32:
        raise StudyError(f"--images {images}: give 1 to 32")
    if channel is not None and not 1 <= channel <= chosen.image.channels:
        raise StudyError(f"--channel {channel}: the study's images have {chosen.image.channels}; give 1 to that")
    if out.suffix.lower() != ".png":
        raise StudyError(f"--out {out}: the sheet is a PNG file; give a name that ends in .png")
    method = build_method(chosen.method, chosen.encoder, chosen.image, chosen.seed)
    trained = None if weights is None else _load(method, weights)
    with _listed(chosen, site) as (manifest, workspace):
        rows = _batch_rows(chosen, manifest, images)
        store = TensorStore.build(rows, chosen.image, workspace / "store", progress=False)
        shown = _shown(chosen, store, images)
        step = _step(chosen, method, store, shown, trained is not None)
        count = min(images, len(step.batch.images))
        blocks = []
        for place, row in enumerate(shown[:count].tolist()):
            findings = findings_of(store.table.iloc[row], manifest.root, chosen.image.size)
            blocks.append(_block(method, step, place, findings, channel))
        write_sheet(out, _heading(chosen), list(_caption(chosen, method, step, trained, channel)), blocks)
        names = [str(store.table["image"].iloc[row]) for row in shown[:count].tolist()]
    return [
        *(f"image {number}: {name}" for number, name in enumerate(names, start=1)),
        f"sheet: {out}",
        "nothing has left this machine; the sheet shows patients' images: keep it as you keep those",
    ]


@contextmanager
def _listed(study: Study, site: Path | None) -> Iterator[tuple[Manifest, Path]]:
    """The images to choose from, and a folder that goes away again."""
    if site is not None:
        file = load_site_file(site)
        manifest = Manifest.open(file.data)
        file.cache.mkdir(parents=True, exist_ok=True)
        # At a hospital decoded images stay below the folder that is meant for them.
        with TemporaryDirectory(prefix=".preview-", dir=file.cache) as folder:
            yield manifest, Path(folder)
        return
    config = simulation_config(study)
    with TemporaryDirectory() as folder:
        everything = config.load_dataset(Path(folder) / "data", study.seed)
        located = assign_sites(everything, config.partition, study.seed)
        # Who looks at images of a hospital that is left out, and then sets a preset, has not left it out.
        yield located.where(~located.table["site"].isin(config.splits.left_out).to_numpy()), Path(folder)


def _batch_rows(study: Study, manifest: Manifest, images: int) -> Manifest:
    """The images of one batch (with all of their patients' where the method asks for partners), in random order."""
    order = torch.randperm(len(manifest), generator=torch_generator(study.seed, "preview")).numpy()[:CANDIDATES]
    marked = are_outlined(manifest.table)[order]
    order = np.concatenate([order[marked][:images], order[~marked], order[marked][images:]])
    order = order[: max(study.training.batch, images, 2)]
    mask = np.zeros(len(manifest), dtype=np.bool_)
    mask[order] = True
    if study.method.partner is not None:
        patients = manifest.table["patient"]
        mask |= patients.isin(patients[mask]).to_numpy()
    return manifest.where(mask)


def _shown(study: Study, store: TensorStore, images: int) -> Tensor:
    """All numbers in the store in random order, but images with an outlined finding first: a crop can lose it."""
    marked = torch.from_numpy(np.flatnonzero(are_outlined(store.table)))
    first = marked[:: max(1, len(marked) // images)][:images]
    order = torch.randperm(len(store), generator=torch_generator(study.seed, "preview", "shown"))
    return torch.cat([first, order[~torch.isin(order, first)]])


def _load(method: Method, place: Path) -> str:
    """Put shared weights into the method; where they come from, in words."""
    path = place
    if place.is_dir():
        stored = sorted(place.glob("arms/federated/fold-*/seed-*/global.safetensors"))
        path = stored[0] if stored else place / "global.safetensors"
    if not load_shared(method, path):
        raise StudyError(f"{path}: holds other tensors than this study's method shares; give a run of the same study")
    return f"weights of {place.resolve().name}"


def _step(study: Study, method: Method, store: TensorStore, shown: Tensor, trained: bool) -> _Step:
    generator = torch_generator(study.seed, "preview", "views")
    order = shown[: max(study.training.batch, 2)]
    batch = BatchReader(store, study.method.partner, torch.device("cpu")).read(order, generator)
    made: list[Made] = []
    method.augmentation.made = made
    method.eval()
    with torch.no_grad(), seeded_torch(study.seed, "preview"):
        method.before_step(1.0 if trained else 0.0)
        views = method.make_views(batch, generator)
        restore = getattr(method, "restore", None)
        restored = None if restore is None else restore(views)
    return _Step(batch, views, made, restored)


def _block(method: Method, step: _Step, image: int, findings: Annotations, channel: int | None) -> Block:
    """All panels of one image: original, partner, what the method shows, restoration."""
    panels = [
        Panel(
            title,
            shown_plane(images[image], method.image, channel),
            _outlines(step.made, images, image),
            None,
            marks,
        )
        for title, images, marks in (
            ("original", step.batch.images, findings),
            ("its partner", step.batch.partners, Annotations()),
        )
        if images is not None
    ]
    shown = method.show(step.views, image)
    if step.restored is not None:
        shown.append(("restored", step.restored[image]))
    sources = [_source(tensor, step.made, image) for _, tensor in shown]
    unseen = [number for number in range(len(step.made)) if (number, True) not in sources]
    # A view that the method goes on to cut up or to corrupt comes first.
    shown = [("view", step.made[number].views[image]) for number in unseen] + shown
    for (title, tensor), (source, whole) in zip(shown, [*((n, True) for n in unseen), *sources], strict=True):
        unit = tensor if source is None else _undone(tensor, step.made[source], image)
        panels.append(Panel(title, shown_plane(unit, method.image, channel), view=source if whole else None))
    return Block(f"image {image + 1}", panels)


def _outlines(made: list[Made], images: Tensor, image: int) -> dict[int, NDArray[np.float64]]:
    """Where on the image each view of it was cut, as ``Panel.outlines``."""
    corners = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
    side = images.shape[-1]
    return {
        number: ((corners @ one.maps[image].T + 1) * side / 2 - 0.5).numpy().astype(np.float64)
        for number, one in enumerate(made)
        if one.maps is not None and one.images.data_ptr() == images.data_ptr()
    }


def _source(tensor: Tensor, made: list[Made], image: int) -> tuple[int | None, bool]:
    """The view that has most pixels in common with ``tensor``, and whether all that is not hidden are the view's."""
    best, share = (0 if made else None), 0.0
    known = ~tensor.isnan()
    for number, one in enumerate(made):
        view = one.views[image]
        if view.shape == tensor.shape:
            common = float((view == tensor)[known].float().mean())
            if common > share:
                best, share = number, common
    return best, share == 1.0


def _undone(tensor: Tensor, made: Made, image: int) -> Tensor:
    """A standardised image in the intensities that its view had."""
    mean, deviation = (each[image if len(each) > 1 else 0] for each in (made.mean, made.deviation))
    return tensor * deviation + mean


def _heading(study: Study) -> str:
    return f"{study.title or study.name}: what {study.method.name} makes of an image"


def _caption(study: Study, method: Method, step: _Step, trained: str | None, channel: int | None) -> Iterator[str]:
    image = study.image
    shown = "in colour" if channel is None and in_colour(image) else f"channel {shown_channel(image, channel) + 1}"
    of = f" of {image.channels}" if image.channels > 1 and "channel" in shown else ""
    middle = ", the middle slice of each volume" if image.dimensions == 3 else ""
    yield (
        f"Modality {image.modality}, {image.size} pixels, shown: {shown}{of}{middle}. "
        f"Method {study.method.name}: {method.summary} ({method.paper})."
    )
    kinds: set[str] = {one.kind for one in step.made}
    settings = "; ".join(_settings(method.augmentation.preset, image.augment.model_dump(exclude_none=True), kinds))
    yield f"Views ({' and '.join(sorted(kinds)) or 'none'}): {settings or 'nothing is changed'}."
    yield (
        "Drawn anew for every image at every step: each of these within its limits, and what the method hides, "
        "turns, shuffles or asks for. Settings: image.augment in the study file."
    )
    if step.restored is not None:
        yield f"Restored by {trained or 'an untrained network (give --weights RUN for a trained one)'}."
    outlines = "Coloured outline: where the view with that frame was cut. "
    marks = outlines if any(one.maps is not None for one in step.made) else ""
    yield f"{marks}Red: finding in the manifest. Blue-grey: hidden."


def _settings(preset: Preset, own: dict[str, Any], kinds: set[str]) -> Iterator[str]:
    """The preset's values in force for these kinds of view; the study's own are marked."""
    values = asdict(preset)
    for name in AugmentConfig.model_fields:
        value = values[name]
        kind = "light" if name == "light_crop_scale" else "strong"
        used = kind in kinds or (name in BOTH_KINDS and kinds)
        acts = name not in PROBABILITIES or any(values[other] for other in PROBABILITIES[name])
        if not (used and value and acts):
            continue
        text = " to ".join(f"{each:.3g}" for each in value) if isinstance(value, tuple) else f"{value:g}"
        yield f"{name} {text}{' (set by the study)' if name in own else ''}"
