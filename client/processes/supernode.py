"""Flower's SuperNode of one site: it talks to the server, and hands every task to this site's own worker."""

import os
import re
import secrets
import sys
from pathlib import Path

from federation.flower.private import Endpoint
from federation.flower.private_control import sign_off
from federation.keys.certificates import PrivateKey, key_openssh
from federation.keys.kit import CA, Kit
from federation.keys.secret_files import write_secret
from foundation.process_group import ProcessGroup, flower_environment, free_port, options
from foundation.service_log import rotate

_REASONS = {
    r"certificate has expired|certificate is not yet valid": "the server's certificate is not valid now: {found}; "
    "ask the study lead to renew it (fedpretext renew), and check this machine's clock",
    r"Hostname mismatch|IP address mismatch": "the server shows a certificate for another address: {found}; "
    "ask the study lead for a kit with the right address",
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed": "the server's certificate is not of this kit's "
    "federation: {found}; do not go on before the study lead has explained it",
    r"WRONG_VERSION_NUMBER|wrong version number|RECORD_LAYER_FAILURE|record layer failure": "the server does not speak "
    "TLS at this address; nothing is sent without it",
    r"\[code: 2004\]|401 Unauthorized|terminated gracefully": "the server does not admit this site "
    "now: its key is not accepted yet, revoked or expired, this machine's clock is wrong, or another client with this "
    "key is still connected (a killed one counts for a minute); ask the study lead",
    r"403 Forbidden|RunNotRunningException": "the server refused the request; ask the study lead whether this is the "
    "right address",
    r"(?<=error ')[45]\d\d [^']{1,60}|(?<=response ')3\d\d [^']{1,60}|Invalid protobuf": "what answers at the server's "
    "address does not answer as a server of this version does: {found}; ask the study lead",
    r"BadZipFile|Invalid TOML|There is no item named|FAB hash mismatch": "the server sent an app that is none "
    "({found}); nothing of it was run; ask the study lead",
}
_NOISE = re.compile(r"^(\s|$|Traceback|INFO|WARNING|DEBUG|For more information)")


class SuperNode:
    """The SuperNode, running while the ``with`` block does. Its key goes to it through a pipe, never onto the disk."""

    def __init__(self, kit_folder: Path, kit: Kit, key: PrivateKey, place: Path) -> None:
        self._kit_folder, self._kit, self._key, self._place = kit_folder.resolve(), kit, key, place.resolve()
        self._port = free_port()
        self.endpoint = Endpoint(f"127.0.0.1:{self._port}")
        self.secret = secrets.token_bytes(32)
        self._group = ProcessGroup(flower_environment(self._place / "flwr"))
        self.log = self._place / "supernode.log"
        self._log_from = 0

    def __enter__(self) -> "SuperNode":
        self._place.mkdir(parents=True, exist_ok=True)
        rotate(self.log)
        self._sign_off()
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        self._group.begin(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._group.stop()
        (self._place / "executor.secret").unlink(missing_ok=True)

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._group.ended() is not None

    def connected(self) -> bool:
        """Whether the server has let it in since it was started, and has not been out of reach since then."""
        said = self._said()
        good = max(
            said.rfind(words) for words in ("SuperNode ID:", "Receiving:", "Sent successfully", "successful after")
        )
        return good > said.rfind("Connection attempt failed")

    def reason(self) -> str:
        """Why it ended, in one line with the remedy, going by its log."""
        text = self._said()
        for pattern, words in _REASONS.items():
            if (found := re.search(pattern, text)) is not None:
                return words.format(found=found[0].strip(" '\""))
        lines = [line.strip() for line in text.splitlines() if not _NOISE.match(line)]
        return f"the SuperNode ended ({lines[-1][-200:] if lines else 'it wrote nothing'}); its log is {self.log}"

    def _said(self) -> str:
        """What it has written since it was started, without colours."""
        with self.log.open("rb") as handle:
            handle.seek(self._log_from)
            return re.sub(r"\x1b\[[0-9;]*m", "", handle.read().decode(errors="replace"))

    def _sign_off(self) -> None:
        """Take back the place of a SuperNode that was killed, whose number its log tells."""
        if not self.log.exists():
            return
        numbers = re.findall(r"SuperNode ID: (\d+)", self.log.read_text(errors="replace"))
        if numbers:
            sign_off(self._kit.server, (self._kit_folder / CA).read_bytes(), self._key, int(numbers[-1]))

    def _start(self) -> None:
        secret = self._place / "executor.secret"
        write_secret(secret, self.secret, replace=True)
        reading, writing = os.pipe()
        arguments = options(
            root_certificates=self._kit_folder / CA,
            superlink=self._kit.server,
            auth_supernode_private_key=f"/dev/fd/{reading}",
            isolation="process",
            superexec_auth_secret_file=secret,
            host="127.0.0.1",
            port=self._port,
        )
        try:
            os.write(writing, key_openssh(self._key))  # not encrypted, as flower-supernode reads it: never on a disk
            os.close(writing)
            with self.log.open("ab") as output:
                program = (sys.executable, "-P", "-m", "client.processes.flower_supernode")
                self._group.launch(
                    "SuperNode", *program, *arguments, output=output, folder=self._place, keep=(reading,)
                )
        finally:
            os.close(reading)
