"""``fedpretext client``: joins a federation and stays in it, through reboots, cut lines and a server that goes away."""

import time
from pathlib import Path

from client.approval import approve, approved_study
from client.kit_keys import load_site_key
from client.policy import is_listed
from client.processes.supernode import SuperNode
from client.processes.worker import serve
from client.site_file import AUDIT, CLIENT_LOCK, SITE_FILE, SiteFile, load_site_file
from client.site_identity import SiteKeys, hand_over
from client.site_log import check_own_log
from federation.audit.log import AuditLog
from federation.keys.certificates import PrivateKey
from federation.keys.kit import STUDY, Kit, host_and_port, kit_ca, read_kit
from federation.keys.signing import Authority
from foundation.errors import StudyError
from foundation.exclusive import alone_in
from foundation.service_log import ServiceLog

_WAITS_S = (2.0, 5.0, 15.0, 30.0)
_LASTED_S = 120.0  # a connection that held so long was a good one
_LOOK_S, _PATIENCE_S, _REPEAT_S = 2.0, 20.0, 600.0


def join(kit_folder: Path, passphrase: bytes | None = None) -> None:
    """Take part in the kit's study until this program is ended. One line says why a connection was lost.

    StudyError when the study is not approved here; CredentialError for a kit or key that cannot be used; RunError when
    another client works with the same state.
    """
    kit = read_kit(kit_folder)
    site_file = load_site_file(kit_folder / SITE_FILE)
    key = load_site_key(kit_folder, passphrase)
    _check_approved(kit_folder, kit, site_file)
    log = ServiceLog(site_file.state / "client.jsonl")
    check_own_log(site_file)
    hand_over(kit_folder, SiteKeys(key, kit_ca(kit_folder)))
    with alone_in(site_file.state, CLIENT_LOCK, "another client works with this state; stop it first"):
        log.write("info", f"site {kit.site}: joining the federation {kit.federation} at {kit.server}")
        failures, logged = 0, ""
        while True:
            lasted, reason = _connected(kit_folder, kit, key, site_file, log)
            failures = 0 if lasted > _LASTED_S else failures + 1
            if failures == 0 or reason != logged:  # one row, not one a minute for as long as it lasts
                AuditLog(site_file.state / AUDIT, site_file.site).append("connection lost", reason=reason)
                logged = reason
            wait = _WAITS_S[min(failures, len(_WAITS_S) - 1)]
            log.write("info", f"trying again in {wait:.0f} s")
            time.sleep(wait)


def _check_approved(kit_folder: Path, kit: Kit, site_file: SiteFile) -> None:
    if is_listed(site_file.policy, kit.study) and approved_study(site_file, kit.study) is None:
        approve(kit_folder / STUDY, site_file, "this site's policy, which lists the study", lambda _: True)
    if approved_study(site_file, kit.study) is None:
        raise StudyError(
            f"site {kit.site}: the study {kit.study[:12]} is not approved here; look at what it would do with: "
            f"fedpretext site approve {kit_folder / STUDY} --site {kit_folder / SITE_FILE}"
        )


def _connected(kit_folder: Path, kit: Kit, key: PrivateKey, site_file: SiteFile, log: ServiceLog) -> tuple[float, str]:
    """One life of the SuperNode, from start to end; how long it lasted, in seconds, and why it ended."""
    started = time.monotonic()
    with SuperNode(kit_folder, kit, key, site_file.state / "supernode") as node:
        line = _Line(node, kit, log)
        # Whose messages this site acts on: the server's that the kit names, by the CA that it holds.
        authority = Authority(kit_ca(kit_folder), host_and_port(kit.server)[0])
        serve(node.endpoint, node.secret, kit_folder / SITE_FILE, authority, line.ended)
        reason = node.reason()
        log.write("warning", f"site {kit.site}: {reason}")
    return time.monotonic() - started, reason


class _Line:
    """The line to the server, looked at while the worker waits: a person is told when it comes and goes."""

    def __init__(self, node: SuperNode, kit: Kit, log: ServiceLog) -> None:
        self._node, self._kit, self._log = node, kit, log
        self._holds, self._looked, self._started = False, float("-inf"), time.monotonic()

    def ended(self) -> bool:
        """Whether the SuperNode has ended."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self._poll(patient=now - self._started < _PATIENCE_S)
        return self._node.ended()

    def _poll(self, patient: bool) -> None:
        site, server, holds = self._kit.site, self._kit.server, self._node.connected()
        if holds and not self._holds:
            self._log.write("info", f"site {site}: connected; rounds are trained as the server asks for them")
        if not holds and (self._holds or not patient):
            self._log.write(
                "warning", f"site {site}: no answer from {server}; what is trained is kept, and it goes on trying"
            )
            self._started = time.monotonic() + _REPEAT_S - _PATIENCE_S
        self._holds = holds


def unit(kit_folder: Path, program: Path) -> str:
    """A systemd unit that keeps the client running, with as few rights as it needs."""
    kit, site_file = kit_folder.resolve(), load_site_file(kit_folder / SITE_FILE)
    return f"""\
[Unit]
Description=fedpretext client ({read_kit(kit_folder).site})
After=network-online.target
Wants=network-online.target

[Service]
ExecStart="{program}" client "{kit}"
Restart=always
RestartSec=30
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ReadWritePaths="{site_file.state.resolve()}" "{site_file.cache.resolve()}"
ReadOnlyPaths="{site_file.data.resolve()}"

[Install]
WantedBy=multi-user.target
"""
