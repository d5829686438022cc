"""The only door of a server: nginx, which lets hospitals reach Flower's fleet paths and nothing else.

Flower's SuperLink serves three interfaces on one port: Fleet (for SuperNodes), Control (registers nodes, starts and
stops runs) and Runtime (hands out tasks). Self-hosted, it has no accounts: whoever reaches the port may use all three.
So it listens on this machine only, and this proxy in front of it is what the world sees.
"""

import os
import shutil
from pathlib import Path

from foundation.errors import RunError
from foundation.files import write_text
from foundation.wording import words

LARGEST_BODY = "16m"  # Flower sends arrays in chunks of 5 MiB
FLEET_PATHS = words("""
    activate-node deactivate-node send-node-heartbeat pull-messages push-messages get-run get-fab push-object
    pull-object confirm-message-received
""")
"""All that a registered SuperNode calls. Not ``register-node`` and ``unregister-node``: the study lead admits sites."""


def nginx() -> str | None:
    """The path of nginx on this machine, None where it is not installed."""
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))


def needed_nginx() -> str:
    """The path of nginx, or a RunError with the remedy."""
    found = nginx()
    if found is None:
        raise RunError(
            "nginx is not installed, and a server without a proxy in front would let every hospital control it; "
            "install it (Debian: apt install nginx-light; it needs no root to run), then start again"
        )
    return found


def write_proxy(place: Path, listen: tuple[str, int], upstream: int, federation: Path) -> Path:
    """Write nginx's configuration and folders below ``place``; the configuration file.

    ``listen``: address and port that hospitals reach; ``upstream``: the SuperLink's port on this machine;
    ``federation``: the folder with proxy.crt, proxy.key and ca.crt.
    """
    (place / "temporary").mkdir(parents=True, exist_ok=True)
    path = place / "nginx.conf"
    write_text(path, configuration(place.resolve(), listen, upstream, federation.resolve()))
    return path


def configuration(place: Path, listen: tuple[str, int], upstream: int, federation: Path) -> str:
    """nginx's configuration: TLS 1.2 or newer, POST to the fleet paths, all else 403 before it reaches Flower."""
    host, port = listen
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    paths = "|".join(FLEET_PATHS)
    temporary = "".join(
        f"    {kind}_temp_path {_quoted(place / 'temporary' / kind)};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
# Written by fedpretext server at each start; changes here are lost.
daemon off;
worker_processes 1;
pid {_quoted(place / "nginx.pid")};
error_log {_quoted(place / "nginx-error.log")} warn;

events {{ worker_connections 512; }}

http {{
{temporary}    access_log {_quoted(place / "nginx-access.log")};
    server_tokens off;
    client_max_body_size {LARGEST_BODY};
    client_body_timeout 120s;
    client_header_timeout 20s;
    limit_conn_zone $binary_remote_addr zone=address:1m;

    server {{
        listen {address} ssl;
        ssl_certificate {_quoted(federation / "proxy.crt")};
        ssl_certificate_key {_quoted(federation / "proxy.key")};
        ssl_protocols TLSv1.2 TLSv1.3;
        limit_conn address 64;

        location / {{ return 403; }}

        location ~ ^/v1/fleet/(?<call>{paths})\\z {{
            limit_except POST {{ deny all; }}
            # The path that was checked, not as it was sent: no other reading of dots and slashes can matter behind.
            proxy_pass https://127.0.0.1:{upstream}/v1/fleet/$call;
            proxy_ssl_trusted_certificate {_quoted(federation / "ca.crt")};
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_set_header X-Forwarded-For "";
            proxy_set_header X-Forwarded-Proto "";
            proxy_request_buffering off;
            proxy_read_timeout 300s;
            proxy_intercept_errors off;
        }}
    }}
}}
"""


def _quoted(path: Path) -> str:
    """A path as nginx's configuration takes it: quoted, variables and quotes inside it made plain."""
    text = str(path)
    if any(character in text for character in '$"\\\n'):
        raise RunError(f"{text!r}: nginx cannot use a folder with $, quotes or backslashes in its name; choose another")
    return f'"{text}"'
