"""The resource over TLS: a gateway sends tokens to https alone. The certificate is its own authority."""

import datetime
import ipaddress
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from examples.authorization_server.configuration import HOST

_GOOD_FOR = datetime.timedelta(days=1)


@dataclass(frozen=True)
class SecureApi:
    """Where the resource is, and the file of the authority that its clients have to trust."""

    url: str
    authorities: Path


@contextmanager
def secure_api(
    plain: ThreadedWSGIServer, handler: type[WSGIRequestHandler], folder: Path
) -> Iterator[SecureApi]:
    """Serve the application of `plain` on a second port, over TLS, with a new certificate in `folder`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authorities = _certificate(folder)
    context.load_cert_chain(authorities, folder / "tls-key.pem")
    server = ThreadedWSGIServer((HOST, 0), handler)
    server.set_app(plain.get_app())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    serving.start()
    try:
        yield SecureApi(f"https://{HOST}:{server.server_port}/api", authorities)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def _certificate(folder: Path) -> Path:
    """Write a certificate for loopback and its key. Returns the certificate's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _GOOD_FOR)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(folder / "tls-key.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    path = folder / "authorities.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path
