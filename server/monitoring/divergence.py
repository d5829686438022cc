"""How each site's update stands to those of the others, layer by layer: where they pull apart, and who does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from federation.algorithms.algorithm import Contribution, is_parameter
from federation.records import ENCODER
from foundation.randomness import seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder, layer_depths

HEAD = "head"
"""Everything shared that is not the encoder's: predictor, decoder, prototypes."""
_PIECE = 1 << 16  # numbers: three times as many, as float64, stay in a processor's cache


@dataclass(frozen=True)
class LayerDivergence:
    """A site's update of one layer beside the mean update of all the other sites.

    cosine: of the angle between the two, -1 to 1; norm_ratio: the site's L2 norm over the others'.
    """

    name: str
    cosine: float
    norm_ratio: float


def layers_of(config: EncoderConfig, image: ImageConfig) -> dict[str, str]:
    """The layer of each of the encoder's shared tensors, the stem first: ``stem``, ``block 1``, ..."""
    with seeded_torch(0, "layers"):  # the weights are thrown away
        depths = layer_depths(build_encoder(config, image))
    by_depth = itemgetter(1, 0)
    named = {f"{ENCODER}{name}": depth for name, depth in depths.items()}
    return {name: f"block {depth:.0f}" if depth else "stem" for name, depth in sorted(named.items(), key=by_depth)}


def divergence(
    contributions: Sequence[Contribution], weights: Mapping[str, Tensor], layers: Mapping[str, str]
) -> dict[str, list[LayerDivergence]]:
    """By site, its layers in the order of ``layers``, and the head; {} with fewer than two sites.

    An update is (site's parameters - ``weights``), in float64; the others count alike, however many images they have.
    A layer in which the site or the others did not move is left out. Reads piece by piece, so it holds no model.
    """
    if len(contributions) < 2:
        return {}
    names = [*dict.fromkeys(layers.values()), HEAD]
    # [site, layer, (update . others', update . update, others' . others')]
    products = torch.zeros(len(contributions), len(names), 3, dtype=torch.float64)
    for name, before in weights.items():
        if is_parameter(name, before):
            _add_products(products[:, names.index(layers.get(name, HEAD))], contributions, name, before)
    return {c.site: _figures(names, products[place]) for place, c in enumerate(contributions)}


def _add_products(products: Tensor, contributions: Sequence[Contribution], name: str, before: Tensor) -> None:
    """Add one tensor's part to its layer's products ``[site, 3]``; reads each piece twice, so as to keep no site's."""
    flat = before.flatten()
    base, own, rest, total = (torch.empty(min(_PIECE, flat.numel()), dtype=torch.float64) for _ in range(4))
    for start in range(0, flat.numel(), _PIECE):
        stop = min(start + _PIECE, flat.numel())
        b, o, r, t = (buffer[: stop - start] for buffer in (base, own, rest, total))
        b.copy_(flat[start:stop])
        t.zero_()
        for c in contributions:
            t.add_(o.copy_(c.piece(name, start, stop)).sub_(b))
        for place, c in enumerate(contributions):
            o.copy_(c.piece(name, start, stop)).sub_(b)
            torch.sub(t, o, out=r).div_(len(contributions) - 1)
            products[place] += torch.stack([o.dot(r), o.dot(o), r.dot(r)])


def _figures(names: Sequence[str], products: Tensor) -> list[LayerDivergence]:
    found = []
    for name, (together, own, others) in zip(names, products.tolist(), strict=True):
        if own > 0 and others > 0:
            found.append(LayerDivergence(name, together / (own * others) ** 0.5, (own / others) ** 0.5))
    return found
