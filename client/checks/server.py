"""Whether the server can be reached from this machine, is the server that the kit names, and has the same time."""

import errno
import http.client
import math
import socket
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from federation.keys.kit import host_and_port
from imaging.inspection.finding import Finding, Level, Table

TIMEOUT_S = 10.0
CLOCK_WARNING_S, CLOCK_ERROR_S = 60.0, 240.0
FLOWER_CLOCK_S = 300
"""Flower refuses a message whose signed time is further off than this."""
_EXPIRES_SOON_DAYS = 14
_OUT_OF_TIME = {9: "is not valid yet", 10: "has expired"}
_OTHER_NAME = {62, 64}  # OpenSSL: a host name, or an address, that the certificate is not for
_TELEPHONE = "compare the CA's fingerprint with the study lead by telephone"


@dataclass
class Reached:
    """What was found on the way to the server."""

    findings: list[Finding] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def error(self, kind: str, text: str, remedy: str) -> None:
        """Add an error."""
        self.findings.append(Finding("error", "server", kind, text, remedy))

    def table(self) -> Table:
        """The facts."""
        return Table("Server", "server", ("", ""), tuple(self.rows))


def reach(server: str, root_certificate: Path | None, timeout: float = TIMEOUT_S) -> Reached:
    """Connect to ``server`` (HOST:PORT) by TCP, then TLS, and ask for the time; nothing is sent but a HEAD request.

    root_certificate: the kit's CA; None: those that this machine trusts.
    """
    found = Reached([], [("server", server)])
    try:
        host, port = host_and_port(server)
    except ValueError as error:
        found.error("server address", str(error), "take the address from the kit")
        return found
    context = _context(root_certificate, found)
    if context is None:
        return found
    started = time.perf_counter()
    plain = _connected(host, port, timeout, found)
    if plain is None:
        return found
    found.rows.append(("connected in", f"{(time.perf_counter() - started) * 1000:.0f} ms"))
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                _certificate(secure, found)
                _clock(_date(secure, host), found)
        except ssl.SSLCertVerificationError as error:
            _refused_certificate(error, host, port, timeout, found)
        except (OSError, http.client.HTTPException) as error:
            _no_tls(error, host, port, timeout, found)
    return found


def _context(root_certificate: Path | None, found: Reached) -> ssl.SSLContext | None:
    try:
        return ssl.create_default_context(cafile=None if root_certificate is None else str(root_certificate))
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificate"
        found.error(
            "root certificate",
            f"{root_certificate}: cannot be used as the server's root certificate ({reason})",
            "ask the study lead for the kit again",
        )
        return None


def _connected(host: str, port: int, timeout: float, found: Reached) -> socket.socket | None:
    """A TCP connection, or the one finding that says why there is none."""
    place, allow = f"{host}:{port}", f"ask the network team to let this machine open TCP connections to {host}:{port}"
    try:
        return socket.create_connection((host, port), timeout=timeout)
    except socket.gaierror as error:
        reason = error.strerror or "no reason given"
        found.error(
            "unknown host",
            f"the name {host} cannot be looked up ({reason})",
            "check the address in the kit, and whether this machine may look up names outside the hospital",
        )
    except ConnectionRefusedError:
        found.error(
            "refused",
            f"{place} refuses connections",
            f"ask the study lead whether the server runs; if it does, {allow}",
        )
    except TimeoutError:
        found.error("no answer", f"{place} does not answer within {timeout:g} s", f"{allow} (a firewall drops them)")
    except OSError as error:
        routes = (errno.ENETUNREACH, errno.EHOSTUNREACH)
        what = "there is no route to" if error.errno in routes else f"{error.strerror or error} on connecting to"
        found.error("unreachable", f"{what} {place}", allow)
    return None


def _refused_certificate(
    error: ssl.SSLCertVerificationError, host: str, port: int, timeout: float, found: Reached
) -> None:
    """Why the server's certificate does not count."""
    if error.verify_code in _OTHER_NAME:
        found.error(
            "other name",
            f"the server's certificate is not for the name {host}",
            "take the address from the kit; if it is that, the study lead must renew the certificate for this name",
        )
    elif error.verify_code in _OUT_OF_TIME:
        found.error(
            "certificate out of time",
            f"the server's certificate {_OUT_OF_TIME[error.verify_code]}, by this machine's clock",
            "set the clock if it is wrong; else ask the study lead to renew the certificate",
        )
        _clock(_unverified_date(host, port, timeout), found)
    else:
        found.error(
            "wrong CA",
            f"the server's certificate is not signed by the CA of the kit ({error.verify_message})",
            f"do not join: the kit may be of another federation, or something in between opens TLS; {_TELEPHONE}",
        )


def _no_tls(error: Exception, host: str, port: int, timeout: float, found: Reached) -> None:
    if _speaks_plain_http(host, port, timeout):
        found.error(
            "plain HTTP",
            f"{host}:{port} answers in plain HTTP, not TLS",
            "do not join: ask the study lead for the address with TLS",
        )
    else:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        found.error(
            "no TLS",
            f"{host}:{port} accepts a connection but no TLS ({str(reason).lower().replace('_', ' ')})",
            "ask the network team whether a firewall or proxy in between breaks TLS, and the study lead for the port",
        )


def _speaks_plain_http(host: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=timeout) as plain:
            plain.sendall(_head(host))
            return plain.recv(5) == b"HTTP/"
    except OSError:
        return False


def _head(host: str) -> bytes:
    return f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def _certificate(secure: ssl.SSLSocket, found: Reached) -> None:
    """TLS version and how long the certificate lasts."""
    certificate = secure.getpeercert() or {}
    expires = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = math.floor((expires - time.time()) / 86400)
    until = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d}"
    found.rows += [("TLS", f"{secure.version()}, verified"), ("certificate valid until", until)]
    if days < _EXPIRES_SOON_DAYS:
        text = f"the server's certificate expires in {days} days, on {until}"
        found.findings.append(
            Finding("warning", "server", "certificate expires", text, "ask the study lead to renew it before")
        )


def _date(secure: socket.socket, host: str) -> float | None:
    """The server's time in its Date header (seconds since 1970), None where it sends none."""
    secure.sendall(_head(host))
    response = http.client.HTTPResponse(secure, method="HEAD")
    try:
        response.begin()
        date = response.getheader("Date")
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OSError, http.client.HTTPException):
        return None  # it closes such connections without a word, or speaks another protocol
    finally:
        response.close()


def _unverified_date(host: str, port: int, timeout: float) -> float | None:
    """The time of a server whose certificate does not count now: it may be this machine's clock that is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return _date(secure, host)
    except OSError:
        return None


def _clock(server: float | None, found: Reached) -> None:
    """Compare this machine's clock with the server's, which tells whole seconds."""
    if server is None:
        found.rows.append(("clock", "not compared: the server sends no time"))
        return
    ahead = time.time() - (server + 0.5)
    side = "ahead of" if ahead > 0 else "behind"
    off = abs(ahead)
    found.rows.append(("clock", f"{max(0.0, off - 0.5):.0f} s {side} the server's" if off > 1.5 else "as the server's"))
    if off > CLOCK_WARNING_S:
        text = (
            f"this machine's clock is {off:,.0f} s {side} the server's; beyond {FLOWER_CLOCK_S} s nothing is accepted"
        )
        level: Level = "error" if off > CLOCK_ERROR_S else "warning"
        found.findings.append(
            Finding(
                level, "server", "clock", text, "set the clock, and keep it right by NTP (timedatectl set-ntp true)"
            )
        )
