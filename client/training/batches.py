"""Batches from a site's store of decoded images."""

import torch
from torch import Tensor

from foundation.transfer import moved
from imaging.config import Relation
from imaging.listing.partners import Partners
from imaging.store import TensorStore, in_unit_range
from ssl_methods.method import Batch


class BatchReader:
    """Reads batches of a store onto a device, with a partner for each image where a ``relation`` is given."""

    def __init__(self, store: TensorStore, relation: Relation | None, device: torch.device) -> None:
        self._store, self._device = store, device
        self._partners = None if relation is None else Partners(store.table, relation)
        codes = {"patients": store.patients, "studies": store.studies, "series": store.series}
        self._codes = {name: torch.from_numpy(each) for name, each in codes.items()}  # [N] each

    def read(self, chosen: Tensor, generator: torch.Generator) -> Batch:
        """The images ``chosen`` ``[B]`` of the store; partners are drawn from ``generator``.

        All goes to the device in one copy, images as they are stored.
        """
        parts = {name: each[chosen] for name, each in self._codes.items()}
        read = chosen
        if self._partners is not None:
            others, parts["gaps"] = self._partners.draw(chosen, generator)
            read = torch.cat([chosen, others])
        there = moved(parts | {"images": self._store.stored(read.numpy())}, self._device)
        images = in_unit_range(there.pop("images"))
        if self._partners is not None:
            there["partners"] = images[len(chosen) :]
        return Batch(images=images[: len(chosen)], **there)
