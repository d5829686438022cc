"""Keys, requests and certificates: what is accepted is proven by real TLS handshakes, what is not is refused."""

import hashlib
import ipaddress
import itertools
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from federation.keys.certificates import (
    CredentialError,
    PrivateKey,
    ca_certificate,
    certificate_pem,
    fingerprint,
    is_fingerprint,
    key_of,
    key_openssh,
    key_pem,
    new_key,
    not_certified,
    not_now,
    public_pem,
    read_certificate,
    read_key,
    read_public_key,
    read_request,
    request_pem,
    server_certificate,
    site_certificate,
)
from federation.site_names import SITE_NAME

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
KEY, CA_KEY = new_key(), new_key()
OWN_CA = ca_certificate(CA_KEY, "study", NOW, 3650)
SITES = st.from_regex(SITE_NAME, fullmatch=True).filter(lambda name: re.fullmatch(SITE_NAME, name) is not None)
PASSPHRASE = b"correct horse battery"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(CredentialError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- keys and fingerprints


def test_a_fingerprint_is_the_sha256_of_the_public_key_in_groups_of_four() -> None:
    der = x509.load_pem_x509_csr(request_pem(KEY, "a")).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    digits = hashlib.sha256(der).hexdigest()
    assert fingerprint(KEY.public_key()).split(" ") == [digits[i : i + 4] for i in range(0, 64, 4)]
    assert len(digits) == 64


@given(place=st.integers(0, 63), separator=st.sampled_from([" ", "", ":", "-", "\n", "  "]), upper=st.booleans())
def test_a_fingerprint_is_compared_whole_and_only_by_its_digits(place: int, separator: str, upper: bool) -> None:
    shown = fingerprint(KEY.public_key())
    said = shown.replace(" ", separator)
    said = said.upper() if upper else said
    assert is_fingerprint(said, KEY.public_key())
    digits = shown.replace(" ", "")
    other = digits[:place] + ("0" if digits[place] != "0" else "1") + digits[place + 1 :]
    assert not is_fingerprint(other, KEY.public_key())
    assert not is_fingerprint(digits[:place], KEY.public_key())
    assert not is_fingerprint(digits + digits[place], KEY.public_key())


def key_pkcs8(key: PrivateKey, passphrase: bytes | None) -> bytes:
    """As a person may have protected a key with other tools."""
    if passphrase is None:
        return key_pem(key)
    encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
@pytest.mark.parametrize(("form", "begins"), [(key_pkcs8, "PRIVATE KEY"), (key_openssh, "OPENSSH PRIVATE KEY")])
def test_a_key_comes_back_from_its_file(
    form: Callable[[PrivateKey, bytes | None], bytes], begins: str, passphrase: bytes | None
) -> None:
    data = form(KEY, passphrase)
    encrypted = passphrase is not None and form is key_pkcs8
    assert data.startswith(f"-----BEGIN {'ENCRYPTED ' if encrypted else ''}{begins}-----\n".encode())
    assert read_key(data, passphrase, "k").private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize("form", [key_pkcs8, key_openssh])
def test_what_is_wrong_with_a_passphrase_is_said(form: Callable[[PrivateKey, bytes | None], bytes]) -> None:
    locked, plain = form(KEY, PASSPHRASE), form(KEY, None)
    assert refusal(lambda: read_key(locked, None, "k")) == (
        "k: is protected by a passphrase and none was given; give it"
    )
    wrong = refusal(lambda: read_key(locked, b"another passphrase", "k"))
    assert wrong == "k: the passphrase is wrong, or the file is damaged; try again"
    assert refusal(lambda: read_key(plain, PASSPHRASE, "k")) == "k: has no passphrase, yet one was given; leave it out"
    assert refusal(lambda: read_key(plain[:90], None, "k")).startswith("k: holds no private key that can be read")


@pytest.mark.parametrize("length", [0, 11, 1001])
def test_a_passphrase_that_is_soon_guessed_is_refused(length: int) -> None:
    said = refusal(lambda: key_openssh(KEY, b"x" * length))
    assert said == f"passphrase of {length} bytes: take 12 to 1000, or none at all"


@pytest.mark.parametrize("length", [12, 1000])
def test_the_shortest_and_the_longest_passphrase(length: int) -> None:
    assert read_key(key_openssh(KEY, b"x" * length), b"x" * length, "k").public_key() == KEY.public_key()


OTHERS = [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)]


@pytest.mark.parametrize("other", [*OTHERS, ed25519.Ed25519PrivateKey.generate()], ids=["p256", "rsa", "ed25519"])
def test_other_kinds_of_keys_are_refused(
    other: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.OpenSSH):
        data = other.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        assert "another kind of key than EC P-384" in refusal(lambda data=data: read_key(data, None, "k"))
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert "another kind of key than EC P-384" in refusal(lambda: read_public_key(public.decode(), "p"))


def test_a_public_key_comes_back() -> None:
    assert read_public_key(public_pem(KEY.public_key()), "p") == KEY.public_key()
    assert refusal(lambda: read_public_key("no key", "p")) == "p: holds no public key that can be read; restore it"


# ---- requests


@given(site=SITES)
def test_a_request_says_site_and_key(site: str) -> None:
    assert read_request(request_pem(KEY, site), "r") == (site, KEY.public_key())


def test_no_byte_of_a_request_can_be_changed() -> None:
    """Neither the name, nor the key, nor the signature; and what cannot be parsed is an error of one line too."""
    der = x509.load_pem_x509_csr(request_pem(KEY, "north")).public_bytes(serialization.Encoding.DER)
    accepted = []
    for place, change in itertools.product(range(len(der)), (0x01, 0x80)):
        changed = bytearray(der)
        changed[place] ^= change
        pem = ssl.DER_cert_to_PEM_cert(bytes(changed)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
        try:
            accepted.append(read_request(pem.encode(), "r"))
        except CredentialError as error:
            assert str(error).startswith("r: ")
            assert "\n" not in str(error)
    # A signature that ends in a 0 bit may say that this bit is padding: other bytes, the same signature.
    assert accepted in ([], [("north", KEY.public_key())])


def signed(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *names: tuple[x509.ObjectIdentifier, str]) -> bytes:
    subject = x509.Name([x509.NameAttribute(kind, value) for kind, value in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no certificate request"),
        (b"\xff\xfe", "holds no certificate request"),
        (certificate_pem(OWN_CA).encode(), "holds no certificate request"),
        (key_pem(KEY), "holds no certificate request"),
        (signed(KEY), "its subject is not the name of one site"),
        (signed(KEY, (NameOID.COMMON_NAME, "../a")), "its subject is not the name of one site"),
        (signed(KEY, (NameOID.COMMON_NAME, "a\n")), "its subject is not the name of one site"),
        (signed(KEY, (NameOID.COMMON_NAME, "a" * 41)), "its subject is not the name of one site"),
        (signed(KEY, (NameOID.ORGANIZATION_NAME, "a")), "its subject is not the name of one site"),
        (signed(KEY, (NameOID.COMMON_NAME, "a"), (NameOID.COMMON_NAME, "b")), "its subject is not the name of one"),
        (signed(OTHERS[0], (NameOID.COMMON_NAME, "a")), "another kind of key than EC P-384"),
        (signed(OTHERS[1], (NameOID.COMMON_NAME, "a")), "another kind of key than EC P-384"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(data: bytes, said: str) -> None:
    text = refusal(lambda: read_request(data, "site.csr"))
    assert text.startswith("site.csr: ")
    assert said in text


# ---- certificates


def test_what_the_ca_may_do() -> None:
    """Sign certificates and revocation lists, once and no further; as RFC 5280 wants it."""
    extensions = OWN_CA.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
    assert not usage.value.digital_signature
    assert OWN_CA.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert OWN_CA.not_valid_after_utc == NOW + 3650 * DAY
    OWN_CA.verify_directly_issued_by(OWN_CA)


HOSTS = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{2,8}){0,3}", fullmatch=True),
    st.ip_addresses().map(str),
)


@given(hosts=st.lists(HOSTS, min_size=1, max_size=3, unique=True))
def test_a_server_is_certified_for_its_addresses(hosts: list[str]) -> None:
    certificate = server_certificate(OWN_CA, CA_KEY, KEY.public_key(), hosts, NOW, 365)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [str(_address(host)) for host in hosts]
    assert all(isinstance(name, x509.DNSName) == isinstance(_address(name.value), str) for name in names)
    assert key_of(read_certificate(certificate_pem(certificate), "c")) == KEY.public_key()


def _address(host: str) -> object:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return host


@given(days=st.integers(1, 4000), after=st.integers(0, 3600))
def test_no_certificate_outlives_the_ca(days: int, after: int) -> None:
    made = NOW + after * DAY
    certificate = site_certificate(OWN_CA, CA_KEY, KEY.public_key(), "a", made, days)
    assert certificate.not_valid_after_utc == min(made + days * DAY, NOW + 3650 * DAY)
    assert certificate.not_valid_before_utc == made - timedelta(minutes=5)


def test_a_ca_that_has_expired_signs_nothing() -> None:
    said = refusal(lambda: site_certificate(OWN_CA, CA_KEY, KEY.public_key(), "a", NOW + 3650 * DAY, 365))
    assert said == f"the CA expired on {NOW + 3650 * DAY:%Y-%m-%d}; provision the federation again"


def test_when_a_certificate_holds() -> None:
    certificate = site_certificate(OWN_CA, CA_KEY, KEY.public_key(), "a", NOW, 2)
    assert not_now(certificate, NOW) == not_now(certificate, NOW + 2 * DAY) == ""
    late = NOW + 2 * DAY
    assert not_now(certificate, late + timedelta(seconds=1)) == (
        f"has a certificate that expired on {late:%Y-%m-%d %H:%M} UTC"
    )
    early = NOW - timedelta(minutes=5)
    assert not_now(certificate, early) == ""
    assert not_now(certificate, early - timedelta(seconds=1)) == (
        f"has a certificate that is not valid before {early:%Y-%m-%d %H:%M} UTC"
    )


def test_whom_a_certificate_names() -> None:
    own = site_certificate(OWN_CA, CA_KEY, KEY.public_key(), "a", NOW, 365)
    public = KEY.public_key()
    assert not_certified(own, OWN_CA, public, "a") == ""
    assert not_certified(own, OWN_CA, public, "b") == "has a certificate of another name"
    assert not_certified(own, OWN_CA, new_key().public_key(), "a") == "has a key that its certificate does not certify"
    server = server_certificate(OWN_CA, CA_KEY, public, ["h"], NOW, 365)
    assert not_certified(server, OWN_CA, public, "fedpretext server") == "has a certificate that is not a site's"
    assert not_certified(OWN_CA, OWN_CA, CA_KEY.public_key(), "study CA") == "has a certificate that is not a site's"
    # A CA of the same name, and somebody who only says that this CA signed.
    impostor = new_key()
    twin = ca_certificate(impostor, "study", NOW, 3650)
    for authority in (twin, OWN_CA):
        forged = site_certificate(authority, impostor, public, "a", NOW, 365)
        said = not_certified(forged, OWN_CA, public, "a")
        assert said == "has a certificate that is not signed by this federation's CA"


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        ("", "c: holds no certificate that can be read; restore it"),
        (certificate_pem(OWN_CA)[:200], "c: holds no certificate that can be read; restore it"),
        (certificate_pem(OWN_CA) * 2, "c: holds 2 certificates instead of 1; restore it"),
    ],
)
def test_what_is_no_certificate_is_said(pem: str, said: str) -> None:
    assert refusal(lambda: read_certificate(pem, "c")) == said


# ---- handshakes


class Party:
    """Certificate and key in files of a folder of their own, as TLS takes them."""

    def __init__(self, place: Path, certificate: x509.Certificate, key: PrivateKey) -> None:
        folder = Path(tempfile.mkdtemp(dir=place))
        self.certificate, self.key = folder / "crt", folder / "key"
        self.certificate.write_text(certificate_pem(certificate))
        self.key.write_bytes(key_pem(key))


def handshake(server: Party, ca: Path, host: str, client: Party | None = None) -> str:
    """Shake hands on loopback as Python 3.13 does, strictly; empty, or what was wrong with the certificate."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate, server.key)
    asking = ssl.create_default_context(cafile=ca)
    if client:
        serving.load_verify_locations(ca)
        serving.verify_mode = ssl.CERT_REQUIRED
        asking.load_cert_chain(client.certificate, client.key)
    for context in (serving, asking):
        context.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve(listener: socket.socket) -> str:
        raw, _ = listener.accept()
        with raw:
            try:
                with serving.wrap_socket(raw, server_side=True) as tls:
                    tls.sendall(b"!")
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except OSError:  # the other side hung up, and says why
                pass
        return ""

    def ask(port: int) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            try:
                with asking.wrap_socket(raw, server_hostname=host) as tls:
                    return "" if tls.recv(1) == b"!" else "nothing came"
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except OSError:
                return "hung up"

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(serve, listener)
        said = ask(listener.getsockname()[1])
        return answer.result(timeout=20) or said


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text(certificate_pem(OWN_CA))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., Party]:
    """``server(authority, authority_key, now=...)``: a server certified for localhost, 127.0.0.1 and ::1."""

    def make(ca: x509.Certificate = OWN_CA, ca_key: PrivateKey = CA_KEY, now: datetime = NOW, days: int = 365) -> Party:
        hosts = ["localhost", "127.0.0.1", "::1"]
        certificate = server_certificate(ca, ca_key, KEY.public_key(), hosts, now, days)
        return Party(tmp_path, certificate, KEY)

    return make


@pytest.fixture
def client(tmp_path: Path) -> Callable[..., Party]:
    """``client(authority, authority_key, now=...)``: the site ``north_1``."""
    own = new_key()

    def make(ca: x509.Certificate = OWN_CA, ca_key: PrivateKey = CA_KEY, now: datetime = NOW, days: int = 365) -> Party:
        certificate = site_certificate(ca, ca_key, own.public_key(), "north_1", now, days)
        return Party(tmp_path, certificate, own)

    return make


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_server_and_site_know_each_other(
    server: Callable[..., Party], client: Callable[..., Party], ca_file: Path, host: str
) -> None:
    assert handshake(server(), ca_file, host) == ""
    assert handshake(server(), ca_file, host, client()) == ""


@pytest.mark.parametrize("host", ["example.org", "127.0.0.2", "localhost.example.org"])
def test_another_address_is_refused(server: Callable[..., Party], ca_file: Path, host: str) -> None:
    assert "mismatch" in handshake(server(), ca_file, host)


OLD_CA = ca_certificate(CA_KEY, "study", NOW - 500 * DAY, 3650)


def test_a_server_whose_time_is_over_or_has_not_come_is_refused(server: Callable[..., Party], tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.crt"
    ca_file.write_text(certificate_pem(OLD_CA))
    assert handshake(server(OLD_CA, now=NOW - 366 * DAY), ca_file, "localhost") == "certificate has expired"
    assert handshake(server(OLD_CA, now=NOW + DAY), ca_file, "localhost") == "certificate is not yet valid"
    assert handshake(server(OLD_CA, now=NOW - 364 * DAY), ca_file, "localhost") == ""


def test_a_site_whose_time_is_over_or_has_not_come_is_refused(
    server: Callable[..., Party], client: Callable[..., Party], tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.crt"
    ca_file.write_text(certificate_pem(OLD_CA))
    served = server(OLD_CA)
    assert handshake(served, ca_file, "localhost", client(OLD_CA, now=NOW - 366 * DAY)) == "certificate has expired"
    assert handshake(served, ca_file, "localhost", client(OLD_CA, now=NOW + DAY)) == "certificate is not yet valid"
    assert handshake(served, ca_file, "localhost", client(OLD_CA)) == ""


def test_an_expired_ca_vouches_for_nobody(server: Callable[..., Party], tmp_path: Path) -> None:
    over = ca_certificate(CA_KEY, "study", NOW - 40 * DAY, 30)
    (tmp_path / "ca.crt").write_text(certificate_pem(over))
    served = server(over, now=NOW - 35 * DAY)
    assert handshake(served, tmp_path / "ca.crt", "localhost") == "certificate has expired"


@pytest.mark.parametrize("name", ["study", "another"])
def test_another_ca_is_refused_also_one_of_the_same_name(
    server: Callable[..., Party], client: Callable[..., Party], ca_file: Path, name: str
) -> None:
    other_key = new_key()
    other = ca_certificate(other_key, name, NOW, 3650)
    refused = ("unable to get local issuer certificate", "certificate signature failure", "self-signed certificate")
    assert handshake(server(other, other_key), ca_file, "localhost").startswith(refused)
    assert handshake(server(), ca_file, "localhost", client(other, other_key)).startswith(refused)


def test_a_site_cannot_stand_for_the_server_nor_the_server_for_a_site(
    server: Callable[..., Party], client: Callable[..., Party], ca_file: Path
) -> None:
    served, site = server(), client()
    assert handshake(site, ca_file, "north_1") != ""
    assert "purpose" in handshake(served, ca_file, "localhost", served)


def test_a_site_cannot_vouch_for_others(ca_file: Path, tmp_path: Path) -> None:
    """A site signs a server certificate with its own key and sends its own as the link to the CA."""
    own, false = new_key(), new_key()
    site = site_certificate(OWN_CA, CA_KEY, own.public_key(), "north", NOW, 365)
    forged = server_certificate(site, own, false.public_key(), ["localhost"], NOW, 30)
    party = Party(tmp_path, forged, false)
    party.certificate.write_text(certificate_pem(forged) + certificate_pem(site))
    assert handshake(party, ca_file, "localhost").startswith("invalid CA certificate")


def test_openssl_agrees(server: Callable[..., Party], client: Callable[..., Party], ca_file: Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl, to hear another's opinion")
    verify = [program, "verify", "-x509_strict", "-CAfile", str(ca_file)]
    as_server = [*verify, "-purpose", "sslserver", "-verify_hostname", "localhost", str(server().certificate)]
    assert subprocess.run(as_server, capture_output=True, check=False).returncode == 0
    site = str(client().certificate)
    as_client = [*verify, "-purpose", "sslclient", site]
    assert subprocess.run(as_client, capture_output=True, check=False).returncode == 0
    wrong = [*verify, "-purpose", "sslserver", site]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode != 0
