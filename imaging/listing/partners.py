"""A second image for every image of a batch: of the same patient, study or series, or the next slice."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from foundation.errors import DataError
from imaging.config import Relation
from imaging.listing.manifest import Manifest

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_COLUMNS: dict[Relation, tuple[str, ...]] = {
    "patient": (),
    "study": ("study",),
    "series": ("series",),
    "neighbour": ("series", "position"),
    "placed": ("series", "position"),
    "dated": ("date",),
}


class Partners:
    """Draws partners among the images of one site.

    table: the site's manifest rows, in the order of the images' numbers. A manifest's ``slice`` stands for a
    missing ``position``. DataError when the relation needs a column that the manifest has not got.
    """

    def __init__(self, table: pd.DataFrame, relation: Relation) -> None:
        if "position" not in table and "slice" in table:
            table = table.assign(position=table["slice"])
        needed = _COLUMNS[relation]
        if missing := [name for name in needed if name not in table]:
            raise DataError(
                f"partners by {relation} need the column {missing[0]!r} in the site's manifest; add it, or choose "
                "partners by patient, or none"
            )
        self._places = torch.from_numpy(_places(table, relation))  # [N] float64, a NaN knows no order
        group = torch.from_numpy(_groups(table, relation))  # [N]
        # Images of a group stand together, in the order of their places.
        self._order = torch.from_numpy(np.lexsort((self._places.numpy(), group.numpy())))
        counts = torch.bincount(group)
        first = counts.cumsum(0) - counts
        self._first, self._count = first[group], counts[group]  # [N] each
        rank = torch.empty_like(self._order)
        rank[self._order] = torch.arange(len(group))
        self._rank = rank - self._first
        self._relation = relation
        self._distinct = self._levels(group) if relation in ("placed", "dated") else None

    def draw(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A partner for each of the images ``chosen`` ``[B]``, and how much later it lies, ``[B]`` float32.

        An image that has no partner is its own. The gap is in the manifest's units (days for ``dated``); 0 where
        no order is known.
        """
        luck = torch.rand(len(chosen), generator=generator, dtype=torch.float64)
        if self._relation == "neighbour":
            partner_rank = self._beside(chosen, luck)
        elif self._distinct is not None:
            partner_rank = self._elsewhere(chosen, luck)
        else:
            others = self._count[chosen] - 1
            pick = (luck * others).long()
            partner_rank = pick + (pick >= self._rank[chosen]).long() * (others > 0)
        partner = self._order[self._first[chosen] + partner_rank]
        gaps = (self._places[partner] - self._places[chosen]).nan_to_num(0.0).float()
        return partner, gaps

    def share(self) -> float:
        """Share of the images that have a partner other than themselves."""
        if self._distinct is not None:
            low, high = self._distinct
            return float(((high - low) < self._count).double().mean())
        return float((self._count > 1).double().mean())

    def _beside(self, chosen: Tensor, luck: Tensor) -> Tensor:
        rank, last = self._rank[chosen], self._count[chosen] - 1
        step = torch.where(luck < 0.5, -1, 1)
        step = torch.where(rank + step < 0, 1, step)
        step = torch.where(rank + step > last, -1, step)
        return (rank + step).clamp(min=0).minimum(last)

    def _levels(self, group: Tensor) -> tuple[Tensor, Tensor]:
        """Per image the ranks ``[low, high)`` of its group that share its day or position."""
        places = self._places.nan_to_num(-1.0)
        key = torch.stack([group.double(), places])[:, self._order]
        fresh = torch.cat([torch.ones(1, dtype=torch.bool), (key[:, 1:] != key[:, :-1]).any(dim=0)])
        level = fresh.cumsum(0) - 1
        sizes = torch.bincount(level)
        start = (sizes.cumsum(0) - sizes)[level]
        low, high = torch.empty_like(start), torch.empty_like(start)
        low[self._order] = start
        high[self._order] = start + sizes[level]
        return low - self._first, high - self._first

    def _elsewhere(self, chosen: Tensor, luck: Tensor) -> Tensor:
        assert self._distinct is not None
        low, high = self._distinct[0][chosen], self._distinct[1][chosen]
        others = self._count[chosen] - (high - low)
        pick = (luck * others).long()
        pick = torch.where(pick >= low, pick + high - low, pick)
        return torch.where(others > 0, pick, self._rank[chosen])


def _groups(table: pd.DataFrame, relation: Relation) -> IntArray:
    column = {"neighbour": "series", "placed": "series", "dated": "patient"}.get(relation, relation)
    codes = Manifest(table, Path()).codes(column)  # the root is not read
    ordered_by = {"neighbour": "position", "placed": "position", "dated": "date"}.get(relation)
    if ordered_by is not None:  # an image without place or day stands alone
        unknown = table[ordered_by].isna().to_numpy()
        codes[unknown] = codes.max(initial=0) + 1 + np.arange(int(unknown.sum()))
    return np.asarray(pd.factorize(codes)[0], dtype=np.int64)


def _places(table: pd.DataFrame, relation: Relation) -> FloatArray:
    """Where along its group each image lies: days for ``dated``, else positions; NaN where not known.

    Positions of two series are no order: images related by patient or study have none.
    """
    if relation == "dated":
        days = pd.to_datetime(table["date"]).to_numpy("datetime64[D]").astype(np.int64)
        return np.asarray(np.where(table["date"].isna().to_numpy(), np.nan, days), dtype=np.float64)
    if relation in ("patient", "study") or "position" not in table:
        return np.full(len(table), np.nan)
    return np.asarray(table["position"].astype("Float64").to_numpy(np.float64, na_value=np.nan), dtype=np.float64)
