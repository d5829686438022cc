"""The site file: what stays private to one hospital."""

from pathlib import Path

from pydantic import Field

from federation.records import SITE_NAME
from federation.study import checked, read_yaml
from foundation.machine import DeviceName
from imaging.config import Section


class SiteFile(Section):
    """Where a site's pictures are, where it keeps state, and on what it computes. Never leaves the site."""

    site: str = Field(pattern=SITE_NAME, description="The site's name in the federation.")
    data: Path = Field(description="Manifest (CSV or Parquet) or a folder of pictures.")
    state: Path = Field(description="Folder for jobs, momentum encoders, optimizer state and the site's log.")
    cache: Path = Field(description="Folder for decoded pictures.")
    device: DeviceName = Field(default="auto", description="auto, cpu, cuda or mps.")


def load_site_file(path: Path) -> SiteFile:
    """Read a site file; relative paths in it count from its folder."""
    site = checked(SiteFile, read_yaml(path), str(path))
    here = path.resolve().parent
    return site.model_copy(update={name: here / getattr(site, name) for name in ("data", "state", "cache")})
