"""Dividing a dataset's patients among simulated hospitals. A patient, or image cluster, is never in two."""

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from foundation.configuration.section import Section
from foundation.errors import DataError
from foundation.randomness import numpy_generator
from imaging.listing.manifest import Manifest

Weights = NDArray[np.float64]
_Sites = Annotated[int, Field(ge=1, le=10_000, description="Number of simulated hospitals.")]


class BySite(Section):
    """The real hospitals, as the dataset's own column has them."""

    kind: Literal["site"] = "site"


class Iid(Section):
    """Patients at random, about equally many everywhere: no shift at all, a reference."""

    kind: Literal["iid"]
    sites: _Sites


class Dirichlet(Section):
    """Label skew: each class is shared out by a draw from Dirichlet(alpha) (Yurochkin et al. 2019, sec. 4)."""

    kind: Literal["dirichlet"]
    sites: _Sites
    alpha: float = Field(gt=0.0, le=1e6, description="Small: nearly one class a site; 100 or more: nearly IID.")


class Quantity(Section):
    """Size skew: patients at random, the sites' shares uneven."""

    kind: Literal["quantity"]
    sites: _Sites
    law: Literal["power", "lognormal"] = Field(
        default="lognormal",
        description="power: share of the i-th largest site ~ i^-skew; lognormal: log share ~ N(0, skew^2).",
    )
    skew: float = Field(default=1.0, ge=0.0, le=10.0, description="0: equal sizes.")


PartitionConfig = Annotated[BySite | Iid | Dirichlet | Quantity, Field(discriminator="kind")]


def assign_sites(manifest: Manifest, config: BySite | Iid | Dirichlet | Quantity, seed: int) -> Manifest:
    """The manifest with the column site set for every image; rows and their order stay.

    Simulated sites are called site-1, site-2 ... Every site gets at least one patient. The result depends on the
    seed and on the set of patients and labels, not on the order of rows. DataError, one line: no site column or
    empty cells in it (kind site), fewer patients than sites, missing labels (kind dirichlet), no images.
    """
    if len(manifest) == 0:
        raise DataError("there are no images to divide among sites; check the dataset")
    if isinstance(config, BySite):
        return _checked_real_sites(manifest)
    patients = np.array(sorted(set(manifest.table["patient"])))
    if len(patients) < config.sites:
        raise DataError(
            f"partition.sites is {config.sites}, but there are {len(patients)} {manifest.unit}s and a site needs one;"
            f" set partition.sites to {len(patients)} or fewer"
        )
    generator = numpy_generator(seed, "partition", config.kind)
    site_of = _site_numbers(manifest, config, patients, generator)
    names = _names(config.sites)
    chosen = {patient: names[site] for patient, site in zip(patients, site_of, strict=True)}
    return Manifest(manifest.table.assign(site=manifest.table["patient"].map(chosen)), manifest.root, manifest.unit)


def _names(count: int) -> list[str]:
    """site-1 ...; padded, so that the alphabetical order is the numerical one."""
    width = len(str(count))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def _checked_real_sites(manifest: Manifest) -> Manifest:
    if "site" not in manifest.table:
        raise DataError(
            "partition kind 'site' needs a column site, and this dataset has none;"
            " choose iid, dirichlet or quantity, or add the column"
        )
    if (empty := manifest.table["site"].isna()).any():
        image = manifest.table.loc[empty, "image"].iloc[0]
        raise DataError(
            f"partition kind 'site': {int(empty.sum())} images have no site ({image} first); fill the column site"
        )
    return manifest


def _site_numbers(
    manifest: Manifest,
    config: Iid | Dirichlet | Quantity,
    patients: NDArray[np.str_],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """The site (from 0) of every one of the sorted ``patients``."""
    if isinstance(config, Dirichlet):
        labels = _patient_labels(manifest, patients)
        numbers = np.empty(len(patients), dtype=np.int64)
        for label in sorted(set(labels)):
            of_class = np.flatnonzero(labels == label)
            shares = generator.dirichlet(np.full(config.sites, config.alpha))
            numbers[of_class] = _deal(len(of_class), shares, generator)
    else:
        shares = quantity_shares(config, generator) if isinstance(config, Quantity) else np.ones(config.sites)
        numbers = _deal(len(patients), shares / shares.sum(), generator)
    return _none_empty(numbers, config.sites, generator)


def quantity_shares(config: Quantity, generator: np.random.Generator) -> Weights:
    """The sites' shares of the patients, largest first, sum 1."""
    if config.law == "power":
        weights = np.arange(1, config.sites + 1, dtype=np.float64) ** -config.skew
    else:
        weights = np.sort(np.exp(config.skew * generator.standard_normal(config.sites)))[::-1]
    return np.asarray(weights / weights.sum())


def _deal(count: int, shares: Weights, generator: np.random.Generator) -> NDArray[np.int64]:
    """Site numbers of ``count`` patients in random order; every site has its share, give or take less than one."""
    cuts = np.floor(np.cumsum(shares) / shares.sum() * count + generator.random()).astype(np.int64)
    sizes = np.diff(np.clip(cuts, 0, count), prepend=0)
    sizes[np.argmax(shares)] += count - sizes.sum()
    return generator.permutation(np.repeat(np.arange(len(shares)), sizes))


def _none_empty(numbers: NDArray[np.int64], sites: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Give every empty site a random patient of the site that has most."""
    numbers = numbers.copy()
    for site in range(sites):
        counts = np.bincount(numbers, minlength=sites)
        if counts[site] == 0:
            numbers[generator.choice(np.flatnonzero(numbers == counts.argmax()))] = site
    return numbers


def _patient_labels(manifest: Manifest, patients: NDArray[np.str_]) -> NDArray[np.str_]:
    """Each patient's commonest label as text; of equally common ones the rarer in the set, then the first by name."""
    table = manifest.table
    missing = len(table) if "label" not in table else int(table["label"].isna().sum())
    if missing:
        raise DataError(
            f"partition kind 'dirichlet' needs a label for every image, and {missing} of {len(table)} have none;"
            " choose iid or quantity, or fill the column label"
        )
    labels = table["label"].astype(str)
    overall = labels.value_counts()
    counts = pd.crosstab(table["patient"], labels).loc[list(patients)]
    order = sorted(counts.columns, key=lambda label: (overall[label], label))
    return np.array(counts[order].idxmax(axis=1))
