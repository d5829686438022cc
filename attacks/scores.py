"""How a model treats an image: its loss, and how alike its views look to the encoder. Higher: likelier a member."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.settings import AttackSettings
from client.training.batches import BatchReader
from foundation.progress import track
from foundation.randomness import seeded_torch, torch_generator
from imaging.store import TensorStore
from ssl_methods.components.similarity import unit
from ssl_methods.encoders.outputs import features
from ssl_methods.method import Batch, Method

Score = Callable[[Method, Batch, torch.Generator], float]
"""Of a batch of copies of one image, to be seen in as many views."""


def coupled(method: Method) -> bool:
    """Whether the method has no loss of single images."""
    return not method.declared_for(method.config).per_sample


def loss_score(method: Method, batch: Batch, generator: torch.Generator) -> float:
    """Minus the mean loss of the image's views (Yeom et al. 2018, adversary 2, over several views).

    Of a method whose loss couples images: how alike the views' outputs are that the loss compares, 0 being equal.
    """
    views = method.make_views(batch, generator)
    if not coupled(method):
        return -float(method.image_losses(views).mean())
    first, second = (_output(method, method.augmentation.strong(batch.images, generator)) for _ in range(2))
    return -float((first - second).square().sum(dim=1).mean())


def _output(method: Method, images: Tensor) -> Tensor:
    """Unit vectors ``[B, P]`` of what the loss compares, or of the features where it compares nothing."""
    pooled = features(method.encoder, images)
    output = method.output(pooled)
    return unit(pooled if output is None else output)


def feature_score(method: Method, batch: Batch, generator: torch.Generator) -> float:
    """The mean cosine between the features of all pairs of views (EncoderMI-T of Liu et al. 2021, CCS)."""
    seen = unit(features(method.encoder, method.augmentation.strong(batch.images, generator)))  # [V, D]
    alike = seen @ seen.T
    count = len(seen)
    return float((alike.sum() - alike.diagonal().sum()) / (count * (count - 1)))


SCORES: dict[str, Score] = {"loss": loss_score, "features": feature_score}


@torch.no_grad()
def scores(
    kind: str, method: Method, store: TensorStore, places: Sequence[int], settings: AttackSettings, device: torch.device
) -> dict[int, float]:
    """The score of each image at ``places``. Every image, in every model, is seen in the same views."""
    method.to(device).eval()
    reader = BatchReader(store, method.config.partner, device)
    found = {}
    with seeded_torch(settings.seed, "scores"):  # nothing should draw outside the generator; if it did, the same
        method.before_step(1.0)
        for place in track(places, f"looking at {len(places)} images"):
            generator = torch_generator(settings.seed, "views")
            copies = torch.full((settings.views,), place)
            batch = reader.read(copies, generator)
            found[place] = SCORES[kind](method, batch, generator)
    return found
