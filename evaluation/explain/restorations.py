"""What a masked method puts in place of what it hides: a view, what the encoder sees of it, and what it restores.

An encoder alone restores nothing; a federated run keeps the decoder beside it, where its sites shared that.
"""

from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from evaluation.explain.encoder_images import ImagePanel
from evaluation.explain.map_images import triptych_png
from evaluation.inputs import Encoder
from evaluation.kept_method import load_shared
from foundation.errors import RunError
from foundation.randomness import seeded_torch, torch_generator
from imaging.reading.planes import shown_plane
from imaging.views.augment import Made
from ssl_methods import AnyMethodConfig, build_method
from ssl_methods.method import Batch, Method

SEED = 0


def restoring_method(encoder: Encoder) -> Method | None:
    """The method by which the encoder was trained, with the weights that its run kept, on the CPU.

    None where the run kept none, or not all that restoring needs, or the method restores nothing. RunError where the
    study beside the weights is not readable.
    """
    weights, study = (encoder.weights.with_name(name) for name in ("global.safetensors", "study.yaml"))
    if not (weights.is_file() and study.is_file()):
        return None
    try:
        section = yaml.safe_load(study.read_text())["method"]
        config = TypeAdapter[Any](AnyMethodConfig).validate_python(section)
    except (yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise RunError(f"{study}: has no readable section method; restore the file, or leave images out") from error
    method = build_method(config, encoder.config, encoder.image, SEED)
    restores = hasattr(method, "restore") and any(name.startswith("decoder.") for name in method.shared_state())
    return method.eval() if restores and load_shared(method, weights) else None


@torch.no_grad()
def restoration(method: Method, images: Tensor, generator: torch.Generator, name: str) -> list[ImagePanel]:
    """A triptych of each of ``images`` ``[N, *image.shape]`` in [0, 1], of volumes the middle slice.

    The view, what of it the encoder sees, and what the method restores, all on one scale of intensities; name: of the
    encoder. [] where a method does not make one view of an image, which it then restores.
    """
    made: list[Made] = []
    method.augmentation.made = made
    codes = torch.arange(len(images))
    try:
        with seeded_torch(SEED, "restoration"):
            method.before_step(1.0)
            views = method.make_views(Batch(images, codes, codes, codes), generator)
            restored: Tensor = method.restore(views)  # type: ignore[operator]
    finally:
        method.augmentation.made = None
    if len(made) != 1 or restored.shape != made[0].views.shape:
        return []
    return [
        _panel(method, made[0], method.show(views, place)[-1][1], restored, place, name) for place in codes.tolist()
    ]


def _panel(method: Method, made: Made, seen: Tensor, restored: Tensor, place: int, name: str) -> ImagePanel:
    mean, deviation = (each[place if len(each) > 1 else 0] for each in (made.mean, made.deviation))
    planes = [shown_plane(each * deviation + mean, method.image) for each in (made.views[place], seen, restored[place])]
    caption = "A crop of the image; what the encoder sees of it; what the method makes of that."
    if getattr(method.config, "norm_pixels", False):
        caption += " Mean and contrast of each hidden patch are given, not restored."
    alt = f"Restoration of a crop of image {place + 1} by {name}. {caption}"
    return ImagePanel("restoration", place + 1, name, caption, alt, triptych_png(planes))


def restoration_panels(encoder: Encoder, images: Tensor) -> list[ImagePanel]:
    """Triptychs by an encoder of a run; [] where ``restoring_method`` has none."""
    method = restoring_method(encoder)
    if method is None:
        return []
    return restoration(method, images, torch_generator(SEED, "restoration", "views"), encoder.title)
