"""Who is in and who is out: the SuperLink's nodes follow the study lead's registry, and each change is on record."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

import server.enrolment.fleet
from federation.audit.log import AuditLog
from federation.flower.private_control import NodeFacts
from federation.keys.certificates import PrivateKey, new_key, public_pem, request_pem
from foundation.files import read_jsonl
from server.enrolment.federation_folder import record_path
from server.enrolment.fleet import Fleet
from server.enrolment.provision import accept, provision, revoke
from server.enrolment.registry import Registry

KEYS = {"north": new_key(), "south": new_key()}


class Nodes:
    """The SuperLink's list of nodes, in place of its control interface."""

    def __init__(self) -> None:
        self.there: dict[int, NodeFacts] = {}

    def nodes(self) -> list[NodeFacts]:
        return list(self.there.values())

    def register(self, name: str, public_key: bytes, online: bool = False) -> int:
        number = 100 + len(self.there)
        self.there[number] = NodeFacts(number, name, public_key, online)
        return number

    def unregister(self, node_id: int) -> None:
        del self.there[node_id]

    def come_online(self) -> None:
        """All SuperNodes connect."""
        facts = self.there.values()
        self.there = {each.node_id: NodeFacts(each.node_id, each.name, each.public_key, True) for each in facts}


class World:
    """A federation folder of north and south, its fleet and its audit log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, Nodes()
        self.audit = AuditLog(folder / "audit.jsonl", "server")
        self.fleet = Fleet(Registry(folder), self.nodes, self.audit)  # type: ignore[arg-type]

    def accept(self, site: str, key: PrivateKey | None = None) -> None:
        path = self.folder.parent / f"{site}.csr"
        path.write_bytes(request_pem(key or KEYS[site], site))
        accept(self.folder, path)

    def changes(self) -> list[tuple[str, str]]:
        rows = read_jsonl(self.audit.path)
        return [(row["event"], row["site"]) for row in rows if row["event"] in ("site enrolled", "site revoked")]


@pytest.fixture
def world(tmp_path: Path, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(server.enrolment.fleet, "_EVERY_S", 0.0)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw_study))
    provision(tmp_path / "study.yaml", server="localhost:8443", sites=list(KEYS), out=tmp_path / "kits")
    return World(tmp_path / "kits" / "server")


def test_invited_sites_are_not_admitted(world: World) -> None:
    """Defends the federation against a kit that was intercepted: without an accepted key it opens nothing."""
    world.fleet.refresh()
    assert world.fleet.admitted() == [] and world.nodes.nodes() == [] and world.changes() == []


def test_an_accepted_key_is_registered_and_a_revoked_one_is_out_at_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defends the federation against a site that is excluded while it is connected; both changes are on record."""
    for site in KEYS:
        world.accept(site)
    world.fleet.refresh()
    assert world.fleet.admitted() == ["north", "south"] and world.fleet.online() == {}
    keys = {node.name: node.public_key.decode() for node in world.nodes.nodes()}
    assert keys == {site: public_pem(key.public_key()) for site, key in KEYS.items()}
    world.nodes.come_online()
    world.fleet.refresh()
    assert sorted(world.fleet.online()) == ["north", "south"]
    revoke(world.folder, "south", "left the study")
    world.fleet.refresh()
    assert (world.fleet.admitted(), sorted(world.fleet.online())) == (["north"], ["north"])
    assert [node.name for node in world.nodes.nodes()] == ["north"]
    assert world.changes() == [("site enrolled", "north"), ("site enrolled", "south"), ("site revoked", "south")]
    said = [line for line in capsys.readouterr().err.splitlines() if "south" in line]
    assert len(said) == 2 and "no longer admitted" in said[1]


def test_a_node_that_nobody_accepted_is_removed(world: World) -> None:
    """Defends the federation against a key that got into the SuperLink's database beside the registry."""
    world.accept("north")
    world.nodes.register("south", public_pem(KEYS["south"].public_key()).encode(), online=True)
    world.fleet.refresh()
    assert [node.name for node in world.nodes.nodes()] == ["north"]
    assert ("site revoked", "south") in world.changes()


def test_the_name_that_a_node_goes_by_counts_for_nothing(world: World) -> None:
    """Defends against a forged site name: a node is the site whose accepted key it has, whatever it is called."""
    world.accept("north")
    key = public_pem(KEYS["north"].public_key()).encode()
    number = world.nodes.register("south", key, online=True)
    world.fleet.refresh()
    assert world.fleet.online() == {"north": number}


def test_a_changed_key_takes_the_old_ones_place(world: World) -> None:
    world.accept("north")
    world.fleet.refresh()
    replaced = new_key()
    (world.folder.parent / "new.csr").write_bytes(request_pem(replaced, "north"))
    accept(world.folder, world.folder.parent / "new.csr", replace=True)
    world.fleet.refresh()
    assert [node.public_key.decode() for node in world.nodes.nodes()] == [public_pem(replaced.public_key())]


@pytest.mark.parametrize("days", [-2, 366])
def test_a_site_certificate_out_of_time_is_not_admitted(
    world: World, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Defends the federation against a certificate that has expired, or is of a time to come; the node is cut off."""
    world.accept("north")
    world.fleet.refresh()
    assert world.fleet.admitted() == ["north"]

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(UTC) + timedelta(days=days)

    monkeypatch.setattr(server.enrolment.fleet, "datetime", Later)
    world.fleet.refresh()
    assert world.fleet.admitted() == [] and world.nodes.nodes() == []
    assert world.changes()[-1] == ("site revoked", "north")


def key_of_another(text: str) -> str:
    """The key swapped for one that the CA never saw, fingerprint and certificate left."""
    raw = yaml.safe_load(text)
    return yaml.safe_dump(raw | {"public_key": public_pem(KEYS["south"].public_key())})


@pytest.mark.parametrize("edit", [key_of_another, lambda text: text.replace("-----BEGIN", "-----BEGUN")])
def test_a_record_that_was_edited_shuts_its_site_out_and_no_other(world: World, edit: Callable[[str], str]) -> None:
    """Defends the registry: what counts is what the CA has signed, not what somebody wrote into a file."""
    for site in KEYS:
        world.accept(site)
    world.fleet.refresh()
    path = record_path(world.folder, "north")
    path.write_text(edit(path.read_text()))
    world.fleet.refresh()
    assert world.fleet.admitted() == ["south"]
    assert [node.name for node in world.nodes.nodes()] == ["south"]


def test_looks_at_most_once_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane that is asked at each poll would have nothing else to do."""
    monkeypatch.setattr(server.enrolment.fleet, "_EVERY_S", 1000.0)
    world.fleet.refresh()
    world.accept("north")
    world.fleet.refresh()
    assert world.fleet.admitted() == []
