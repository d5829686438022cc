"""Keys, requests and certificates of a federation: pure functions, no file is touched and no clock is read.

One kind of key throughout: EC P-384, which Flower's node authentication takes as well.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.site_names import SITE_NAME
from foundation.errors import FedpretextError

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
_EARLIER = timedelta(minutes=5)  # a certificate made now is valid on a machine whose clock is a little slow
_PASSPHRASE_BYTES = range(12, 1001)  # shorter ones are guessed from a stolen file; longer ones OpenSSL does not take
_GUESS_COST = 64  # rounds of bcrypt in an encrypted OpenSSH file: half a second a guess


class CredentialError(FedpretextError):
    """A key, certificate, request, kit or record of a site is not what it has to be."""


def new_key() -> PrivateKey:
    """A fresh private key from the operating system's secure source."""
    return ec.generate_private_key(ec.SECP384R1())


def fingerprint(public: PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo: 64 hexadecimal digits in groups of 4, to be read out by telephone."""
    state = hashes.Hash(hashes.SHA256())
    state.update(public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    digits = state.finalize().hex()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def is_fingerprint(said: str, public: PublicKey) -> bool:
    """Whether ``said`` is the key's whole fingerprint; case, spaces, colons and dashes do not count."""
    return re.sub(r"[\s:-]", "", said).lower() == fingerprint(public).replace(" ", "")


def public_pem(public: PublicKey) -> str:
    """The key as SubjectPublicKeyInfo in PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def key_pem(key: PrivateKey) -> bytes:
    """The private key as PKCS #8 in PEM, not encrypted."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def key_openssh(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """The private key in OpenSSH's format, as Flower reads it, encrypted where there is a passphrase."""
    form = serialization.PrivateFormat.OpenSSH
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = form.encryption_builder().kdf_rounds(_GUESS_COST).build(_long_enough(passphrase))
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


def _long_enough(passphrase: bytes) -> bytes:
    if len(passphrase) not in _PASSPHRASE_BYTES:
        first, last = _PASSPHRASE_BYTES[0], _PASSPHRASE_BYTES[-1]
        raise CredentialError(f"passphrase of {len(passphrase)} bytes: take {first} to {last}, or none at all")
    return passphrase


def read_key(data: bytes, passphrase: bytes | None, place: str) -> PrivateKey:
    """The private key in a PKCS #8 or OpenSSH file; ``place`` names it in errors (CredentialError)."""
    openssh = data.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    try:
        key = load(data, passphrase)
    except TypeError as error:
        if passphrase is None:
            raise CredentialError(f"{place}: is protected by a passphrase and none was given; give it") from error
        raise CredentialError(f"{place}: has no passphrase, yet one was given; leave it out") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is None:
            raise CredentialError(f"{place}: holds no private key that can be read; restore the file") from error
        raise CredentialError(f"{place}: the passphrase is wrong, or the file is damaged; try again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CredentialError(f"{place}: holds another kind of key than EC P-384; use the key that was made for it")
    return key


def read_public_key(pem: str, place: str) -> PublicKey:
    """The public key in PEM; CredentialError when it is none, or not on P-384."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CredentialError(f"{place}: holds no public key that can be read; restore it") from error
    return _on_p384(key, place)


def _on_p384(key: PublicKeyTypes, place: str) -> PublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CredentialError(f"{place}: is for another kind of key than EC P-384; make it with fedpretext site init")
    return key


def certificate_pem(certificate: x509.Certificate) -> str:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def read_certificate(pem: str, place: str) -> x509.Certificate:
    """The one certificate in PEM text; CredentialError when it is none, or its key is not on P-384."""
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        public = certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CredentialError(f"{place}: holds no certificate that can be read; restore it") from error
    if len(certificates) != 1:
        raise CredentialError(f"{place}: holds {len(certificates)} certificates instead of 1; restore it")
    _on_p384(public, place)
    return certificates[0]


def key_of(certified: x509.Certificate | x509.CertificateSigningRequest) -> PublicKey:
    """The public key of a certificate or request that was read here."""
    return _on_p384(certified.public_key(), "the certificate")


def request_pem(key: PrivateKey, site: str) -> bytes:
    """A request (PKCS #10) for a certificate of ``site``, signed with the site's key, which proves its possession."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(site))
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def read_request(data: bytes, place: str) -> tuple[str, PublicKey]:
    """Site name and public key of a request whose signature proves possession of the key; else CredentialError."""
    try:
        request = x509.load_pem_x509_csr(data)
        public, proven = request.public_key(), request.is_signature_valid
        names = [str(attribute.value) for attribute in request.subject]
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CredentialError(f"{place}: holds no certificate request (PEM); ask the site for its site.csr") from error
    if not proven:
        raise CredentialError(f"{place}: its signature is not by the key it names; ask the site for its site.csr again")
    if len(names) != 1 or not re.fullmatch(SITE_NAME, names[0]) or request.subject != _name(names[0]):
        raise CredentialError(f"{place}: its subject is not the name of one site; make it with fedpretext site init")
    return names[0], _on_p384(public, place)


def ca_certificate(key: PrivateKey, name: str, now: datetime, days: int) -> x509.Certificate:
    """A self-signed certificate that may sign others, but no further authority; valid ``days`` from ``now``."""
    builder = _builder(_name(f"{name} CA"), _name(f"{name} CA"), key.public_key(), key.public_key())
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        builder.not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )


def server_certificate(
    ca: x509.Certificate, ca_key: PrivateKey, public: PublicKey, hosts: Sequence[str], now: datetime, days: int
) -> x509.Certificate:
    """A certificate with which a server shows that it is one of ``hosts`` (DNS names, IP addresses)."""
    # The subject is fixed: a common name holds 64 characters, a DNS name 253, and only SAN counts.
    builder = _leaf(ca, _name("fedpretext server"), public, ExtendedKeyUsageOID.SERVER_AUTH, now, days)
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return builder.add_extension(names, critical=False).sign(ca_key, hashes.SHA384())


def site_certificate(
    ca: x509.Certificate, ca_key: PrivateKey, public: PublicKey, site: str, now: datetime, days: int
) -> x509.Certificate:
    """A certificate that ``public`` is the key of ``site``; it cannot stand for a server."""
    return _leaf(ca, _name(site), public, ExtendedKeyUsageOID.CLIENT_AUTH, now, days).sign(ca_key, hashes.SHA384())


def not_certified(certificate: x509.Certificate, ca: x509.Certificate, public: PublicKey, site: str) -> str:
    """Why ``certificate`` does not say that ``public`` is the key of ``site``; empty where it does, whatever the time.

    A verb phrase: "is not signed by this federation's CA".
    """
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return "has a certificate that is not signed by this federation's CA"
    if certificate.subject != _name(site):
        return "has a certificate of another name"
    if _purposes(certificate) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        return "has a certificate that is not a site's"
    if certificate.public_key() != public:
        return "has a key that its certificate does not certify"
    return ""


def not_servers(certificate: x509.Certificate, ca: x509.Certificate, host: str) -> str:
    """Why ``certificate`` is not that of a server at ``host``; empty where it is, whatever the time. A verb phrase."""
    try:
        certificate.verify_directly_issued_by(ca)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature):
        return "has a certificate that is not signed by this federation's CA"
    except x509.ExtensionNotFound:
        return "has a certificate that is not a server's"
    if _purposes(certificate) != [ExtendedKeyUsageOID.SERVER_AUTH]:
        return "has a certificate that is not a server's"
    return "" if _general_name(host) in names else "has a certificate of another server"


def not_now(certificate: x509.Certificate, now: datetime) -> str:
    """Why the certificate does not hold at ``now``; empty where it does. A verb phrase with the date."""
    if now < certificate.not_valid_before_utc:
        return f"has a certificate that is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if now > certificate.not_valid_after_utc:
        return f"has a certificate that expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return ""


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        return []


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _leaf(
    ca: x509.Certificate,
    subject: x509.Name,
    public: PublicKey,
    purpose: x509.ObjectIdentifier,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    """A certificate for one purpose, at most until the CA ends."""
    if now >= ca.not_valid_after_utc:
        raise CredentialError(f"the CA expired on {ca.not_valid_after_utc:%Y-%m-%d}; provision the federation again")
    return (
        _builder(subject, ca.subject, public, key_of(ca))
        .not_valid_before(now - _EARLIER)
        .not_valid_after(min(now + timedelta(days=days), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )


def _builder(subject: x509.Name, issuer: x509.Name, public: PublicKey, issued_by: PublicKey) -> x509.CertificateBuilder:
    # Both key identifiers: Python 3.13 verifies strictly by RFC 5280, which wants them.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issued_by), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, **never)
