"""A certificate authority of the test's own, for servers on loopback that must speak TLS."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Dates = tuple[datetime.datetime, datetime.datetime]
Extensions = tuple[x509.ExtensionType, ...]

IS_AUTHORITY: Extensions = (x509.BasicConstraints(ca=True, path_length=None),)


@dataclass(frozen=True)
class OwnCertificate:
    """A certificate of a client's own, and its private key; both PEM."""

    certificate: str
    private: str


class Authority:
    """A private authority that issues certificates to apps."""

    def __init__(
        self,
        name: str = "authority of a test",
        *,
        now: datetime.datetime | None = None,
        hours: tuple[float, float] = (-1, 48),
        extensions: Extensions = IS_AUTHORITY,
    ) -> None:
        self._now = now or datetime.datetime.now(datetime.UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        dates = self._dates(hours)
        made = _certificate(self._name, self._name, self._key, self._key, dates, extensions)
        self.pem = made.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self,
        name: str = "app",
        *,
        hours: tuple[float, float] = (-1, 24),
        uris: tuple[str, ...] = (),
        dns: tuple[str, ...] = (),
        extensions: Extensions = (),
    ) -> OwnCertificate:
        """A certificate for clients, valid between `hours` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        alternative = (x509.SubjectAlternativeName(names),) if names else ()
        made = _certificate(
            _named(name), self._name, key, self._key, self._dates(hours), (*alternative, *extensions)
        )
        return OwnCertificate(made.public_bytes(serialization.Encoding.PEM).decode(), _pem_of(key))

    def svid(self, *uris: str, hours: tuple[float, float] = (-1, 24)) -> OwnCertificate:
        """An X.509-SVID."""
        return self.issue(hours=hours, uris=uris, extensions=(key_usage("digital_signature"),))

    def _dates(self, hours: tuple[float, float]) -> Dates:
        first, last = hours
        return self._now + datetime.timedelta(hours=first), self._now + datetime.timedelta(hours=last)


def key_usage(*uses: str) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: name in uses for name in names})


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    dates: Dates,
    extensions: Extensions,
) -> x509.Certificate:
    building = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates[0])
        .not_valid_after(dates[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints)
        building = building.add_extension(extension, critical=critical)
    return building.sign(issuer_key, hashes.SHA256())


def own_certificate(name: str = "client-1", *, days: float = 1) -> OwnCertificate:
    """Self-signed, an hour old, good for `days` more."""
    certificate, private = _self_signed(name, days)
    return OwnCertificate(certificate.decode(), private.decode())


def _self_signed(name: str, days: float, *extensions: x509.ExtensionType) -> tuple[bytes, bytes]:
    """A certificate that is its own authority, and its private key; PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    dates = (now - datetime.timedelta(hours=1), now + datetime.timedelta(days=days))
    made = _certificate(_named(name), _named(name), key, key, dates, (*IS_AUTHORITY, *extensions))
    return made.public_bytes(serialization.Encoding.PEM), _pem_of(key).encode()


@dataclass(frozen=True)
class LoopbackTls:
    """`server` for who listens on 127.0.0.1; `trust` and the file `authorities` for who connects."""

    server: ssl.SSLContext
    trust: ssl.SSLContext
    authorities: Path

    def demanding(self, client: OwnCertificate) -> "LoopbackTls":
        """For a server that accepts only the owner of this certificate (RFC 8705)."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(self.authorities, self.authorities.parent / "server-key.pem")
        server.load_verify_locations(cadata=client.certificate)
        server.verify_mode = ssl.CERT_REQUIRED
        return LoopbackTls(server, self.trust, self.authorities)


def loopback_tls(folder: Path, *more: str) -> LoopbackTls:
    """A certificate for 127.0.0.1 and `more` addresses that is its own authority, an hour old and good for a
    day."""
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", *more)]
    loopback = x509.SubjectAlternativeName(addresses)
    serves = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate, key = _self_signed("loopback of a test", 1, loopback, serves)
    authorities, private = folder / "authorities.pem", folder / "server-key.pem"
    authorities.write_bytes(certificate)
    private.write_bytes(key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authorities, private)
    trust = ssl.create_default_context(cafile=str(authorities))
    return LoopbackTls(server, trust, authorities)
