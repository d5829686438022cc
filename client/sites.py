"""Which site and study a message is about: one process may be many sites, of one study after the other."""

from pathlib import Path

from flwr.app import Context, Message

from client.approval import approved_study
from client.site import Site
from client.site_file import SiteFile
from client.training.workbench import Workbench
from federation.flower.records import study_asked_for
from federation.keys.key_source import open_vault
from federation.study import Study, load_study
from foundation.errors import StudyError


class Sites:
    """The sites of this process. Those of a simulation take turns with one model."""

    def __init__(self) -> None:
        self._sites: dict[tuple[str, SiteFile], Site] = {}
        self._workbench = Workbench()

    def of(self, message: Message, context: Context, site_file: SiteFile) -> Site:
        """The site for the study that the message is about: a simulation's own file, at a hospital what it approved."""
        asked = study_asked_for(message.content)
        place = str(context.run_config.get("study", ""))
        key = (place or asked, site_file)
        if key not in self._sites:
            # Another study's sites are over, and so is a site whose file was changed.
            for other in [other for other in self._sites if other[0] != key[0] or other[1].state == site_file.state]:
                del self._sites[other]
            study = _simulated_study(Path(place)) if place else _approved(site_file, asked)
            vault = open_vault(site_file.key, [site_file.state, site_file.cache])
            self._sites[key] = Site(site_file, study, vault, self._workbench)
        return self._sites[key]


def site_file_path(context: Context) -> Path:
    """The node's own site file; in Flower's simulation, where nodes have only a number, the number-th of the folder."""
    if "site-file" in context.node_config:
        return Path(str(context.node_config["site-file"]))
    files = sorted(Path(str(context.run_config["site-files"])).glob("*/site.yaml"))
    return files[int(context.node_config["partition-id"])]


def _simulated_study(place: Path) -> Study:
    study = load_study(place)
    if study.simulation is not None:
        raise StudyError(f"{place}: has a `simulation` section, which only `fedpretext simulate` acts on")
    return study


def _approved(site_file: SiteFile, asked: str) -> Study:
    study = approved_study(site_file, asked)
    if study is None:
        raise StudyError(f"site {site_file.site}: the study {asked[:12]} that the server asks for is not approved here")
    return study
