"""Client certificates of apps: how one is read, and what it must hold (RFC 5280, RFC 8705, X.509-SVID).

The trust anchors are always those that an admin registered, never the system's store. Revocation lists are
not read: an admin withdraws a certificate by removing its credential.
"""

import hashlib
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from ipaddress import ip_address
from typing import NoReturn, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

NAME_KINDS = ("subject_dn", "san_dns", "san_uri", "san_ip", "san_email")  # RFC 8705 section 2.1.2
_UNREADABLE = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_CLIENT_USES = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}

E = TypeVar("E", bound=x509.ExtensionType)


class CertificateRefused(Exception):
    """A client certificate doesn't prove the identity; the message names the rule, and quotes nothing."""


class UnknownAuthority(CertificateRefused):
    """No path leads to a registered authority."""


@dataclass(frozen=True)
class AppCertificate:
    """The certificate whose private key a caller's TLS connection proved. `der` is exactly its encoding."""

    der: bytes
    parsed: x509.Certificate

    @classmethod
    def of_der(cls, der: bytes) -> "AppCertificate":
        """Raises ValueError for anything but one certificate that can be read whole."""
        return cls(der, _read(der))

    @classmethod
    def of_pem(cls, pem: str) -> "AppCertificate":
        """Raises ValueError for anything but one certificate that can be read whole."""
        (one,) = certificates_of_pem(pem)
        return cls(one.public_bytes(Encoding.DER), one)

    @cached_property
    def thumbprint(self) -> str:
        """The member `x5t#S256` of a token's `cnf` (RFC 8705 section 3.1)."""
        return urlsafe_b64encode(hashlib.sha256(self.der).digest()).rstrip(b"=").decode()

    @property
    def valid_until(self) -> datetime:
        return self.parsed.not_valid_after_utc


def _read(der: bytes) -> x509.Certificate:
    """Raises ValueError also for what the library would only notice later."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        _ = parsed.subject, parsed.extensions, parsed.not_valid_after_utc
    except _UNREADABLE as error:
        raise ValueError("is no certificate") from error
    return parsed


def certificates_of_pem(pem: str) -> list[x509.Certificate]:
    """The certificates of a text that holds certificates alone. Raises ValueError."""
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode("ascii"))
    except _UNREADABLE as error:
        raise ValueError("is no PEM of certificates") from error
    # blocks of other kinds and text around them are skipped by the parser: what it read must be all
    if _bare(pem) != "".join(_bare(one.public_bytes(Encoding.PEM).decode()) for one in certificates):
        raise ValueError("must hold certificates alone")
    return [_read(one.public_bytes(Encoding.DER)) for one in certificates]


def _bare(pem: str) -> str:
    return "".join(pem.split())


def authorities_of_pem(pem: str) -> list[x509.Certificate]:
    """The authorities of a text of certificates alone (RFC 5280 section 4.2.1.9). Raises ValueError."""
    certificates = certificates_of_pem(pem)
    if not all(map(_is_authority, certificates)):
        raise ValueError("is no authority: its basic constraints don't say CA")
    return certificates


def authorities_of_bundle(encoded: Iterable[str]) -> list[x509.Certificate]:
    """The authorities among certificates (base64 of DER) that a trust domain publishes."""
    certificates: list[x509.Certificate] = []
    for one in encoded:
        with suppress(ValueError):
            certificates.append(_read(b64decode(one, validate=True)))
    return [certificate for certificate in certificates if _is_authority(certificate)]


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def verify_path(certificate: AppCertificate, anchors: Sequence[x509.Certificate], now: datetime) -> None:
    """Check dates, signatures and uses up to one of `anchors` (RFC 5280 section 6).

    Raises CertificateRefused.
    """
    require_valid(certificate, now)
    _require_client(certificate.parsed)
    if not anchors:
        raise UnknownAuthority("no authority is known")
    verifier = (
        PolicyBuilder()
        .store(Store(list(anchors)))
        .time(now)
        .extension_policies(ca_policy=_AUTHORITY, ee_policy=_CLIENT)
        .build_client_verifier()
    )
    try:
        verifier.verify(certificate.parsed, [])
    except VerificationError:  # its text names the subject
        raise UnknownAuthority("there is no path to the registered authority") from None


def require_valid(certificate: AppCertificate, now: datetime) -> None:
    """Raise CertificateRefused outside its dates."""
    if now < certificate.parsed.not_valid_before_utc:
        raise CertificateRefused("the certificate is not valid yet")
    if certificate.valid_until <= now:
        raise CertificateRefused("the certificate has expired")


def _require_client(leaf: x509.Certificate) -> None:
    """A certificate that may sign others is no client's, nor one for other uses (RFC 5280 section 4.2.1)."""
    constraints = _extension(leaf, x509.BasicConstraints)
    usage = _extension(leaf, x509.KeyUsage)
    uses = _extension(leaf, x509.ExtendedKeyUsage)
    if constraints is not None and constraints.ca:
        _refuse("a certificate of an authority is no client's")
    if usage is not None and (usage.key_cert_sign or not usage.digital_signature):
        _refuse("the key usage is not a client's")
    if uses is not None and not _CLIENT_USES & set(uses):
        _refuse("the extended key usage is not clientAuth")


def require_name(certificate: AppCertificate, kind: str, value: str) -> None:
    """Raise CertificateRefused unless the certificate has the name (RFC 8705 section 2.1.2).

    `kind` is one of NAME_KINDS; the whole name must be equal.
    """
    if kind == "subject_dn":
        if certificate.parsed.subject != parse_subject(value):
            _refuse("the subject is not the registered one")
        return
    if value not in _alternative_names(certificate.parsed, kind):
        _refuse("no subject alternative name is the registered one")


def normal_name(kind: str, value: str) -> str:
    """The name as certificates are compared with it. Raises ValueError for one that no certificate has."""
    match kind:
        case "subject_dn":
            return parse_subject(value).rfc4514_string()
        case "san_ip":
            return str(ip_address(value))
        case "san_dns":
            if "*" in value:
                raise ValueError("names one host: a wildcard is no identity")
            return x509.DNSName(value.lower()).value
        case "san_email":
            return x509.RFC822Name(value).value
        case _:
            return x509.UniformResourceIdentifier(value).value


def parse_subject(text: str) -> x509.Name:
    """A distinguished name of RFC 4514. Raises ValueError."""
    name = x509.Name.from_rfc4514_string(text)
    if not list(name):
        raise ValueError("is empty")
    return name


def require_svid(certificate: AppCertificate, spiffe_id: str) -> None:
    """Check the leaf as the X.509-SVID standard demands (its sections 2, 4 and 5).

    Raises CertificateRefused.
    """
    uris = _alternative_names(certificate.parsed, "san_uri")
    if len(uris) != 1:
        _refuse(f"an X.509-SVID has exactly one URI name, and this has {len(uris)}")
    usage = _extension(certificate.parsed, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        _refuse("an X.509-SVID has the key usage digitalSignature")
    if usage.crl_sign:
        _refuse("a leaf with the key usage cRLSign is no client's")
    if uris[0] != spiffe_id:
        _refuse("its SPIFFE ID is not the registered one")


def _alternative_names(certificate: x509.Certificate, kind: str) -> list[str]:
    extension = _extension(certificate, x509.SubjectAlternativeName)
    if extension is None:
        return []
    match kind:
        case "san_dns":
            return [name.lower() for name in extension.get_values_for_type(x509.DNSName)]
        case "san_uri":
            return extension.get_values_for_type(x509.UniformResourceIdentifier)
        case "san_ip":
            return [str(address) for address in extension.get_values_for_type(x509.IPAddress)]
        case _:
            return extension.get_values_for_type(x509.RFC822Name)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _refuse(why: str) -> NoReturn:
    raise CertificateRefused(why)


def _signs_certificates(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the authority's key usage is not keyCertSign")


# The library's defaults are those of web servers: they refuse private authorities, which leave out key ids
# (RFC 5280 section 4.2.1.1), and subjects without alternative names. `_require_client` checks the leaf.
_CLIENT = ExtensionPolicy.permit_all()
_AUTHORITY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
)
