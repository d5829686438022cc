"""Batches from a site's store of decoded images."""

import torch
from torch import Tensor

from imaging.config import Relation
from imaging.listing.partners import Partners
from imaging.store import TensorStore
from ssl_methods.method import Batch


class BatchReader:
    """Reads batches of a store onto a device, with a partner for each image where a ``relation`` is given."""

    def __init__(self, store: TensorStore, relation: Relation | None, device: torch.device) -> None:
        self._store, self._device = store, device
        self._partners = None if relation is None else Partners(store.table, relation)
        self._codes = [torch.from_numpy(each) for each in (store.patients, store.studies, store.series)]  # [N] each

    def read(self, chosen: Tensor, generator: torch.Generator) -> Batch:
        """The images ``chosen`` ``[B]`` of the store; partners are drawn from ``generator``."""
        parts = [self._store.batch(chosen.numpy()), *(each[chosen] for each in self._codes)]
        if self._partners is not None:
            others, gaps = self._partners.draw(chosen, generator)
            parts += [self._store.batch(others.numpy()), gaps]
        return Batch(*(part.to(self._device) for part in parts))
