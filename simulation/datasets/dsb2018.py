"""Nuclei under many microscopes, with a map of instances; how an image was acquired stands for its site."""

from pathlib import Path

from pydantic import Field

from foundation.configuration.section import Section
from imaging.listing.manifest import Manifest
from simulation.datasets.busi import with_clusters
from simulation.datasets.dataset import Dataset
from simulation.datasets.lgg_mri import read_index

COLUMNS = {"image", "label_map", "acquisition_group"}
STAINED = "-stained"


class Dsb2018Options(Section):
    """Which of the images, since a study's images all have the same number of channels."""

    colour: bool = Field(
        default=False,
        description="false: the 557 grey images (fluorescence and brightfield), 1 channel; true: the 107 stained "
        "ones, 3 channels, all of one acquisition group.",
    )


def list_dsb2018(root: Path | None, workspace: Path, seed: int, options: Dsb2018Options) -> Manifest:
    """``root``/index.csv; mask = the map of instances, 0 where there is no nucleus (in all of five images).

    The set knows neither hospitals nor patients. Its ``acquisition_group``, the original size and look of an image,
    is in the column site: a proxy for the microscope, not a place. Unit "image cluster".
    """
    table, folder = read_index(root, COLUMNS, "dsb2018")
    table = table[table["acquisition_group"].str.endswith(STAINED) == options.colour]
    table = table.rename(columns={"label_map": "mask", "acquisition_group": "site"})
    images = table[["image", "site", "mask"]].assign(patient=table["image"])
    return with_clusters(Manifest(images, folder, "image cluster"))


DSB2018 = Dataset(
    name="dsb2018",
    summary="Nuclei under microscopes, 664 images (option: colour), instance masks; acquisition groups as sites.",
    source="BBBC038, Data Science Bowl 2018 stage 1, fixes by lopuhin; Caicedo et al. 2019; CC0",
    options=Dsb2018Options,
    listing=list_dsb2018,
)
