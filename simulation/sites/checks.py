"""What is wrong with a study's sites and images, in words and before anything is trained.

A hospital answers the server with a category only. Here all sites are on one machine, so a person gets the reason.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client.training.round import check_amount, check_site
from federation.algorithms import build_algorithm
from federation.privacy.config import SitePrivacyConfig
from federation.secure_aggregation.thresholds import check_sites as check_secure_sites
from federation.site_names import SITE_NAME
from federation.study import Study
from foundation.errors import DataError, FedpretextError, QuorumError, StudyError
from foundation.messages import logger
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from simulation.config import SimulationConfig
from ssl_methods import INSTALLED

_LOG_OF_SITES = "sites/*/state/site.log"


def check_runtime(study: Study, config: SimulationConfig) -> None:
    """Refuse a runtime that cannot do what the study asks for."""
    if study.secure_aggregation is not None and config.runtime == "ray":
        raise StudyError(
            "simulation.runtime ray: a site's keys live in its process from stage to stage of a secure sum, and Ray "
            "moves sites from process to process: set in-process, or leave out secure_aggregation"
        )
    if study.method.name not in INSTALLED and config.runtime == "ray":
        raise StudyError(
            f"simulation.runtime ray: method {study.method.name!r} is registered in this process, and Ray's know what "
            "is installed: set in-process"
        )


def check_sites(study: Study, training: Manifest) -> None:
    """Refuse sites that the study cannot train on, going by their manifests; names the first in order of the names.

    StudyError: fewer sites than the algorithm needs, more than ``privacy`` says, a name that no site may have.
    DataError: a site with too few images or patients.
    """
    sizes = training.table.groupby("site")["patient"].agg(["size", "nunique"])
    fewest = build_algorithm(study.algorithm).fewest_replies
    if len(sizes) < fewest:
        raise StudyError(
            f"algorithm {study.algorithm.name!r} needs at least {fewest} sites; there are {len(sizes)}: choose another "
            "algorithm or simulation.partition"
        )
    if study.secure_aggregation is not None:
        check_secure_sites(len(sizes))
    if isinstance(study.privacy, SitePrivacyConfig) and len(sizes) > study.privacy.sites:
        raise StudyError(
            f"privacy.sites {study.privacy.sites}: there are {len(sizes)} sites, and privacy.delta is judged by their "
            "number: set it to that"
        )
    for site, (images, patients) in zip(sizes.index, sizes.to_numpy().tolist(), strict=True):
        if not re.fullmatch(SITE_NAME, str(site)):
            raise StudyError(
                f"site {str(site)[:50]!r}: a site's name is at most 40 letters, digits, dots, dashes, underscores; "
                "rename it in the manifest"
            )
        with _naming(str(site)):
            check_amount(study, images, patients)


def decode_images(study: Study, training: Manifest, images: Manifest, store: Path) -> None:
    """Decode every site's training images, then all, into the run's store, where training and evaluation find them.

    DataError naming the site whose images cannot be used; skipped ones are counted on standard error.
    """
    for site in sorted(set(training.table["site"])):
        with _naming(site):
            own = TensorStore.build(training.where(training.table["site"] == site), study.image, store)
            check_site(study, own)
        if own.skipped:
            listed = own.folder / "skipped.csv"
            logger.warning(
                f"site {site}: {len(own.skipped)} images cannot be read and are left out; listed in {listed}"
            )
    TensorStore.build(images, study.image, store)


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"site {site}: {error} (simulation.splits.left_out leaves a site out)") from error


@contextmanager
def telling_reasons(federation: Path) -> Iterator[None]:
    """Add to an error of the server what the first failing site wrote into its own log meanwhile."""
    started = time.time()
    try:
        yield
    except (QuorumError, StudyError) as error:
        logs = sorted(log for log in federation.glob(_LOG_OF_SITES) if log.stat().st_mtime >= started)
        kind: type[FedpretextError] = type(error)
        raise kind(f"{error}{_last_words(logs)}") from error


def _last_words(logs: Iterable[Path]) -> str:
    """The text of the last error in the first log that has one."""
    for log in logs:
        lines = [line for line in log.read_text().splitlines() if line and not line.startswith(" ")]
        if lines:
            text = re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1])
            return f"; {log.parent.parent.name}'s log says: {text} ({log})"
    return ""
