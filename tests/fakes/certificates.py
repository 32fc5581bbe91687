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


@dataclass(frozen=True)
class OwnCertificate:
    """A certificate of a client's own, and its private key; both PEM."""

    certificate: str
    private: str


def own_certificate(name: str = "client-1", *, days: float = 1) -> OwnCertificate:
    """Self-signed, an hour old, good for `days` more."""
    certificate, private = _self_signed(name, days)
    return OwnCertificate(certificate.decode(), private.decode())


def _self_signed(name: str, days: float, *extensions: x509.ExtensionType) -> tuple[bytes, bytes]:
    """A certificate that is its own authority, and its private key; PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    building = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    for extension in extensions:
        building = building.add_extension(extension, critical=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return building.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), private


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


def loopback_tls(folder: Path) -> LoopbackTls:
    """A certificate for 127.0.0.1 that is its own authority, an hour old and good for a day."""
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    serves = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate, key = _self_signed("loopback of a test", 1, loopback, serves)
    authorities, private = folder / "authorities.pem", folder / "server-key.pem"
    authorities.write_bytes(certificate)
    private.write_bytes(key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authorities, private)
    trust = ssl.create_default_context(cafile=str(authorities))
    return LoopbackTls(server, trust, authorities)
