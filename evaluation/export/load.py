"""A run's encoder, or an exported one, as a torch module to take features from."""

from pathlib import Path

from torch import Tensor, nn

from evaluation.arm_table import DESCRIPTION_NAME
from evaluation.export.source import Source, find_encoder, read_source
from evaluation.export.timm_folder import CONFIG_NAME, read_folder
from foundation.errors import RunError
from foundation.files import AnyPath
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import feature_dim, features


class FrozenEncoder(nn.Module):
    """Images ``[B, C, H, W]`` (volumes ``[B, C, D, H, W]``), float32 in [0, 1], to features ``[B, dim]``.

    No weight asks for a gradient. network: the plain timm or MONAI network, which takes standardised images; image: the
    size, channels and modality it was trained on. DataError for images of another shape or range.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.image = source.image
        self.network = source.build()
        self.dim = feature_dim(self.network)
        self._standardise = Augmentation(source.image).plain
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features ``[B, dim]`` of the images, standardised as in training."""
        return features(self.network, self._standardise(images))


def load_encoder(path: AnyPath, arm: str = "federated", fold: int = 0, seed: int | None = None) -> FrozenEncoder:
    """The encoder at ``path``, on the CPU, in evaluation mode.

    path: a run folder, of which ``arm``, ``fold`` and ``seed`` choose (default: the lowest seed); an arm's folder in
    one; the folder with its ``encoder.json``; one that ``fedpretext export --to timm`` wrote; or a file in these two.
    RunError where it is none of them, or a part is missing or damaged.
    """
    place = Path(path)
    place = place.parent if place.is_file() else place
    if (place / DESCRIPTION_NAME).is_file():
        return FrozenEncoder(read_source(place, place / DESCRIPTION_NAME))
    if (place / CONFIG_NAME).is_file():
        return FrozenEncoder(Source(place, *read_folder(place), facts={}))
    if (place / "arms").is_dir():
        return FrozenEncoder(find_encoder(place, arm, fold, seed))
    if place.resolve().parent.name == "arms" and place.is_dir():
        return FrozenEncoder(find_encoder(place.resolve().parents[1], place.resolve().name, fold, seed))
    raise RunError(
        f"{path}: is no run folder, no arm of one, no {DESCRIPTION_NAME} and no exported encoder; give the folder that "
        "simulate, server or export printed"
    )
