"""The site's key: made at the site, private, never overwritten, and what Flower and the study lead need of it."""

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.kit_keys import load_site_key, site_init
from client.site_file import load_site_file
from federation.keys.certificates import (
    CredentialError,
    ca_certificate,
    fingerprint,
    key_of,
    key_openssh,
    new_key,
    read_request,
)
from federation.keys.kit import Kit, kit_ca, write_kit
from federation.study import study_from

PASSPHRASE = b"correct horse battery"


@pytest.fixture
def kit(tmp_path: Path, raw_study: dict[str, Any]) -> Path:
    """The kit of site north, as it came."""
    study = study_from(raw_study, "test")
    about = Kit(site="north", federation="tiny", server="localhost:8443", study=study.training_hash())
    write_kit(tmp_path / "kit-north", about, study.to_yaml(), ca_certificate(new_key(), "tiny", datetime.now(UTC), 9))
    return tmp_path / "kit-north"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the site's images are."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(*arguments: Any, **keywords: Any) -> str:
    with pytest.raises(CredentialError) as caught:
        site_init(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_site_init_makes(kit: Path, data: Path) -> None:
    came = contents(kit)
    lines = site_init(kit, data)
    key = load_site_key(kit)
    assert isinstance(key.curve, ec.SECP384R1)
    assert read_request((kit / "site.csr").read_bytes(), "r") == ("north", key.public_key())
    assert {path: mode(kit / path) for path in ("site.key", "state", "cache")} == {
        "site.key": 0o600,
        "state": 0o700,
        "cache": 0o700,
    }
    assert {name: text for name, text in contents(kit).items() if name in came} == came
    assert set(contents(kit)) - set(came) == {"site.key", "site.csr", "site.yaml"}
    answer = "\n".join(lines)
    assert fingerprint(key.public_key()) in answer
    assert fingerprint(key_of(kit_ca(kit))) in answer
    assert "send it to the study lead" in answer


def test_only_the_key_file_holds_the_key(kit: Path, data: Path) -> None:
    site_init(kit, data)
    number = load_site_key(kit).private_numbers().private_value.to_bytes(48, "big")
    for name, text in contents(kit).items():
        if name != "site.key":
            assert b"PRIVATE KEY" not in text
            assert number not in text


def test_the_site_file(kit: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given counts from where the engineer stands, the rest from the kit."""
    monkeypatch.chdir(tmp_path)
    site_init(kit, Path("images"), state=Path("elsewhere"), device="cpu")
    site = load_site_file(kit / "site.yaml")
    assert (site.site, site.device) == ("north", "cpu")
    assert (site.data, site.state) == (data.resolve(), tmp_path.resolve() / "elsewhere")
    assert site.cache.resolve() == (kit / "cache").resolve()
    assert mode(site.state) == 0o700
    assert not (kit / "state").exists()
    text = (kit / "site.yaml").read_text()
    assert text.startswith("# Private to this hospital, never sent.")
    assert "# Folder for decoded images.\ncache: cache\n" in text


def test_defaults_of_the_site_file(kit: Path, data: Path) -> None:
    site_init(kit, data)
    site = load_site_file(kit / "site.yaml")
    assert (site.state.resolve(), site.device) == ((kit / "state").resolve(), "auto")


def test_a_key_is_never_overwritten(kit: Path, data: Path) -> None:
    site_init(kit, data)
    before = contents(kit)
    for given in (data, None):
        assert refusal(kit, given) == (
            f"{kit / 'site.key'}: this site has a key; to renew, send site.csr again; for a new key move it away first"
        )
    assert contents(kit) == before


def test_a_new_key_keeps_the_site_file(kit: Path, data: Path) -> None:
    site_init(kit, data)
    old = load_site_key(kit).public_key()
    edited = (kit / "site.yaml").read_text().replace("device: auto", "device: cpu")
    (kit / "site.yaml").write_text(edited)
    (kit / "site.key").rename(kit / "site.key.old")
    assert "is there already; edit it, and leave out --data" in refusal(kit, data)
    assert "leave out --data, --state and --device" in refusal(kit, device="cpu")
    site_init(kit)
    new = load_site_key(kit).public_key()
    assert new != old
    assert read_request((kit / "site.csr").read_bytes(), "r") == ("north", new)
    assert (kit / "site.yaml").read_text() == edited


def test_a_site_file_of_another_site_is_refused(kit: Path, data: Path) -> None:
    (kit / "site.yaml").write_text(f"site: south\ndata: {data}\nstate: state\ncache: cache\n")
    assert "is of site 'south', the kit of site 'north'; move the file away" in refusal(kit)
    assert not (kit / "site.key").exists()


def test_images_that_are_not_there(kit: Path, tmp_path: Path) -> None:
    came = contents(kit)
    assert refusal(kit) == "--data is needed; give the site's manifest, or the folder of its images"
    missing = tmp_path / "picturs"
    assert refusal(kit, missing).startswith(f"--data {missing}: is not there; give")
    assert contents(kit) == came


def test_what_fails_can_be_done_again(kit: Path, data: Path, tmp_path: Path) -> None:
    came = contents(kit)
    assert refusal(kit, data, passphrase=b"short").startswith("passphrase of 5 bytes")
    (kit / "state").mkdir(mode=0o755)
    (kit / "state").chmod(0o755)
    assert "state: is open to other users (mode 0755); chmod 700 it" in refusal(kit, data)
    assert contents(kit) == came
    (kit / "state").chmod(0o700)
    site_init(kit, data)
    assert load_site_key(kit)


def test_a_folder_that_is_no_kit(tmp_path: Path, data: Path) -> None:
    assert "is no kit (there is no kit.yaml)" in refusal(data, data)


def test_a_key_with_a_passphrase(kit: Path, data: Path) -> None:
    site_init(kit, data, passphrase=PASSPHRASE)
    assert load_site_key(kit, PASSPHRASE).public_key() == read_request((kit / "site.csr").read_bytes(), "r")[1]
    path = kit / "site.key"
    for passphrase, said in ((None, "none was given; give it"), (b"wrong passphrase", "the passphrase is wrong")):
        with pytest.raises(CredentialError) as caught:
            load_site_key(kit, passphrase)
        assert str(caught.value).startswith(f"{path}: ")
        assert said in str(caught.value)


def test_a_key_that_cannot_be_used_is_refused(kit: Path, data: Path) -> None:
    path = kit / "site.key"

    def said() -> str:
        with pytest.raises(CredentialError) as caught:
            load_site_key(kit)
        return str(caught.value)

    assert said() == f"{path}: is missing; make it with fedpretext site init {kit}"
    site_init(kit, data)
    path.chmod(0o640)
    assert said().startswith(f"{path}: is open to other users (mode 0640)")
    path.chmod(0o600)
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key_openssh(other))
    assert "another kind of key than EC P-384" in said()
    path.write_bytes(b"")
    assert "holds no private key that can be read" in said()


def test_flower_reads_the_key(kit: Path, data: Path) -> None:
    """As flower-supernode does it: OpenSSH format, no passphrase."""
    site_init(kit, data)
    key = load_site_key(kit)
    read = serialization.load_ssh_private_key(key_openssh(key), None)
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert read.private_numbers() == key.private_numbers()
