"""How far merged BatchNorm statistics are from those of pooled images, layer by layer.

    python -m benchmarks.statistics.merged_batch_norm RUN

RUN: a folder of a finished simulated run with an encoder that has BatchNorm. Each site of the federated arm passes its
training images once through the encoder, and what they saw is merged (federation/algorithms/statistics.py); beside it
one pass over the images of all sites in one place. The same for the run's first random encoder. Differences of means
are in pooled standard deviations of the channel, variances as ratios; features are compared on all training images.
"""

import copy
import sys
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import RESULTS, table
from evaluation.inputs import Encoder, read_inputs
from federation.algorithms.statistics import merged
from foundation.files import write_text
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.statistics import batch_norms, estimate_over

CPU = torch.device("cpu")


class _Site:
    """What one site's images make of an encoder's statistics."""

    def __init__(self, name: str, images: int, weights: dict[str, Tensor]) -> None:
        self.site, self.images, self._weights = name, images, weights

    def tensor(self, name: str) -> Tensor:
        return self._weights[name]

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensor(name).reshape(-1)[start:stop]


def estimated(encoder: nn.Module, store: TensorStore, own: Encoder) -> nn.Module:
    """A copy of the encoder with the statistics of the store's images."""
    fitted = copy.deepcopy(encoder)
    estimate_over(fitted, store, own.image, CPU, own.arm)
    return fitted


def rows_of(run: Path, own: Encoder, training: Manifest) -> list[list[str]]:
    """A row for the first, middle and last layer, and one for the features."""
    encoder = own.build()
    stores = {
        str(site): TensorStore.build(
            training.where((training.table["site"] == site).to_numpy()), own.image, run / "store"
        )
        for site in sorted(training.table["site"].unique())
    }
    whole = TensorStore.build(training, own.image, run / "store")
    sites = [_Site(s, len(store), estimated(encoder, store, own).state_dict()) for s, store in stores.items()]
    pooled, together = estimated(encoder, whole, own), copy.deepcopy(encoder)
    together.load_state_dict(encoder.state_dict() | merged(encoder.state_dict(), sites))
    layers = list(zip(batch_norms(together), batch_norms(pooled), strict=True))
    rows = []
    for number in (0, len(layers) // 2, len(layers) - 1):
        ours, all_ = layers[number]
        mean, variance = cast(Tensor, all_.running_mean), cast(Tensor, all_.running_var)
        shift = ((cast(Tensor, ours.running_mean) - mean) / (variance + 1e-12).sqrt()).abs()
        ratio = cast(Tensor, ours.running_var) / (variance + 1e-12)
        which = f"{own.arm}, layer {number + 1} of {len(layers)}"
        figures = [f"{float(value):.4f}" for value in (shift.mean(), shift.max(), ratio.median())]
        rows.append([which, *figures, f"{float(ratio.min()):.3f} to {float(ratio.max()):.3f}"])
    found = [_features(each, whole, own) for each in (together, pooled)]
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1])
    rows.append(
        [f"{own.arm}, features", f"cosine {float(cosine.mean()):.4f}, least {float(cosine.min()):.4f}", "", "", ""]
    )
    return rows


@torch.no_grad()
def _features(encoder: nn.Module, store: TensorStore, own: Encoder) -> Tensor:
    plain, encoder = Augmentation(own.image).plain, encoder.eval()
    blocks = np.array_split(np.arange(len(store)), -(-len(store) // 128))
    found = [features(encoder, plain(store.batch(block))) for block in blocks]
    return torch.cat(found) - torch.cat(found).mean(dim=0)


def main() -> None:
    """Write the page."""
    run = Path(sys.argv[1])
    inputs = read_inputs(run)
    roles = inputs.roles[0]
    kept = inputs.manifest.table["patient"].map(lambda patient: roles.get(str(patient)) == "train").to_numpy(dtype=bool)
    training = inputs.manifest.where(kept)
    seed = min(encoder.seed for encoder in inputs.encoders)
    chosen = [e for e in inputs.encoders if (e.arm, e.fold, e.seed) in {("federated", 0, seed), ("random", 0, seed)}]
    head = ["encoder", "mean: apart, mean over channels", "most", "variance: merged / pooled, median", "range"]
    rows = [row for own in chosen for row in rows_of(run, own, training)]
    sites = training.table["site"].value_counts().to_dict()
    text = f"# Merged BatchNorm statistics against pooled ones\n\n{(__doc__ or '').split('RUN: ')[0].strip()}\n\n"
    text += f"{inputs.config.dataset}, images by site: {sites}. Means are in pooled standard deviations of a channel; "
    text += "cosines are of centred features.\n\n" + "\n".join(table(head, rows)) + "\n"
    write_text(RESULTS / "statistics" / "merged_batch_norm.md", text)
    print(text)


if __name__ == "__main__":
    main()
