"""The site's own key, made at the site from its kit; it never leaves."""

from pathlib import Path

import yaml

from client.site_file import SITE_FILE, SiteFile, load_site_file
from federation.keys.certificates import (
    CredentialError,
    PrivateKey,
    fingerprint,
    key_of,
    key_openssh,
    new_key,
    read_key,
    request_pem,
)
from federation.keys.kit import kit_ca, read_kit
from federation.keys.secret_files import private_folder, read_secret, write_secret
from foundation.files import write_bytes, write_text
from foundation.machine import DeviceName

KEY, REQUEST = "site.key", "site.csr"
LEDGER = "ledger.jsonl"


def site_init(
    kit_folder: Path,
    data: Path | None = None,
    state: Path | None = None,
    device: DeviceName = "auto",
    passphrase: bytes | None = None,
) -> list[str]:
    """Make key, request, site file, state and cache in a kit; the lines to print. A key is never overwritten.

    ``state``: folder for jobs and the site's log (default: ``state`` in the kit). A site file that is there already
    stays as it is, and then nothing it says may be given here.
    """
    kit = read_kit(kit_folder)
    if (kit_folder / KEY).exists():
        raise CredentialError(
            f"{kit_folder / KEY}: this site has a key; to renew, send {REQUEST} again; for a new key move it away first"
        )
    key = new_key()
    private = key_openssh(key, passphrase)
    site_file = kit_folder / SITE_FILE
    there = site_file.exists()
    site = _kept(site_file, kit.site, data, state, device) if there else _chosen(kit.site, data, state, device)
    for folder in (site.state, site.cache):
        private_folder(kit_folder / folder)
    if not there:
        write_text(site_file, _explained(site))
    # The key comes last: cut off before it, site init is run again and makes all of it anew.
    write_bytes(kit_folder / REQUEST, request_pem(key, kit.site))
    write_secret(kit_folder / KEY, private)
    return [
        f"{kit_folder / KEY}: the key of site {kit.site}; secret, it stays here",
        f"{kit_folder / REQUEST}: send it to the study lead",
        "Then telephone the study lead and compare both fingerprints, all of them.",
        f"  this site's key:  {fingerprint(key.public_key())}",
        f"  the server's CA:  {fingerprint(key_of(kit_ca(kit_folder)))}",
    ]


def load_site_key(kit_folder: Path, passphrase: bytes | None = None) -> PrivateKey:
    """The site's private key; CredentialError when it is missing, open to others, locked or of another kind."""
    path = kit_folder / KEY
    if not path.exists():
        raise CredentialError(f"{path}: is missing; make it with fedpretext site init {kit_folder}")
    return read_key(read_secret(path), passphrase, str(path))


def _kept(path: Path, name: str, data: Path | None, state: Path | None, device: DeviceName) -> SiteFile:
    """The site file that is there, if it is this site's."""
    if (data, state, device) != (None, None, "auto"):
        raise CredentialError(f"{path}: is there already; edit it, and leave out --data, --state and --device")
    there = load_site_file(path)
    if there.site != name:
        raise CredentialError(f"{path}: is of site {there.site!r}, the kit of site {name!r}; move the file away")
    return there


def _chosen(name: str, data: Path | None, state: Path | None, device: DeviceName) -> SiteFile:
    """A new site file. What is given counts from the folder where one stands, what is not, from the kit."""
    if data is None or not data.exists():
        place = "is needed" if data is None else f"{data}: is not there"
        raise CredentialError(f"--data {place}; give the site's manifest, or the folder of its images")
    return SiteFile(
        site=name,
        data=data.resolve(),
        state=state.resolve() if state else Path("state"),
        cache=Path("cache"),
        ledger=Path(LEDGER),
        device=device,
    )


def _explained(site: SiteFile) -> str:
    """The site file with a comment above each key."""
    values = site.model_dump(mode="json")
    lines = ["# Private to this hospital, never sent. Relative paths count from this file's folder."]
    for key, field in SiteFile.model_fields.items():
        text = yaml.safe_dump({key: values[key]}, sort_keys=False, allow_unicode=True)
        lines.append(f"# {field.description}\n{text}")
    return "\n".join(lines)
