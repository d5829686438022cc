"""Which sites are admitted, and which are there: the study lead's registry held against the SuperLink's nodes."""

import time
from datetime import UTC, datetime

from federation.audit.log import AuditLog
from federation.flower.private_control import ControlPlane
from foundation.messages import logger
from server.enrolment.registry import Registry

_EVERY_S = 1.0


class Fleet:
    """Keeps the SuperLink's list of nodes equal to the registry: who is revoked or expired is out within seconds."""

    def __init__(self, registry: Registry, control: ControlPlane, audit: AuditLog) -> None:
        self._registry, self._control, self._audit = registry, control, audit
        self._admitted: dict[str, bytes] = {}
        self._online: dict[str, int] = {}
        self._looked = float("-inf")

    def admitted(self) -> list[str]:
        """Names of the sites that may take part now, sorted."""
        return sorted(self._admitted)

    def online(self) -> dict[str, int]:
        """The node of every admitted site that is there, by name."""
        return dict(self._online)

    def refresh(self) -> None:
        """Look again, at most once a second."""
        if time.monotonic() - self._looked < _EVERY_S:
            return
        self._looked = time.monotonic()
        records = self._registry.admitted(datetime.now(UTC))
        self._admitted = {site: record.public_key.strip().encode() for site, record in records.items()}
        site_of = {key: site for site, key in self._admitted.items()}
        nodes = {node.public_key.strip(): node for node in self._control.nodes()}
        for key, node in nodes.items():
            if key not in site_of:
                self._control.unregister(node.node_id)
                self._audit.append("site revoked", site=node.name or "unknown", node=str(node.node_id))
                logger.warning(
                    f"site {node.name or 'unknown'}: is no longer admitted (revoked, expired or another key)"
                )
        for key, site in site_of.items():
            if key not in nodes:
                self._control.register(site, key + b"\n")
                self._audit.append("site enrolled", site=site)
                logger.info(f"site {site}: is admitted")
        self._online = {site_of[key]: node.node_id for key, node in nodes.items() if key in site_of and node.online}
