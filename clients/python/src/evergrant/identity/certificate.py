"""The client certificate that an app presents in TLS, to which its tokens are bound (RFC 8705)."""

import base64
import hashlib
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx2

from evergrant.errors import BadRequest

_PEM_LINES = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----")


class Certificate:
    """Proves an app's identity with a client certificate; the URL is that of the proxy that asks for it.

    `file` is the certificate in PEM, perhaps with intermediate ones, and its private key unless `key` is the
    file of that. Both are read for every token, so they may be replaced: one file with both in one step.
    """

    def __init__(self, app_id: str, file: Path, key: Path | None = None) -> None:
        self.app_id, self.file, self.key = app_id, file, key

    def __repr__(self) -> str:
        return f"Certificate({self.app_id!r}, {str(self.file)!r})"

    def __call__(self, issuer: str) -> Mapping[str, str]:
        return {"client_id": self.app_id}


class CertificateTls:
    """The TLS context of one client, whose new connections present the identity's certificate.

    Without a context of the caller's own it trusts the authorities of httpx2, or those of SSL_CERT_FILE.
    Raises BadRequest when the files can't be used.
    """

    def __init__(self, identity: Certificate, context: ssl.SSLContext | None) -> None:
        self._identity = identity
        self.context = context or httpx2.create_ssl_context()
        self._loaded = b""
        self.renew()

    def renew(self) -> bool:
        """Load the files if they have changed, and say whether they have."""
        identity = self._identity
        files = [identity.file] if identity.key is None else [identity.file, identity.key]
        content = hashlib.sha256(b"\0".join(_read(file) for file in files)).digest()
        if content == self._loaded:
            return False
        try:
            # on trial: a context that was given half of a pair would fail at its next connection
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.context):
                context.load_cert_chain(identity.file, identity.key, password=_no_password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or "they are no certificate and private key in PEM"
            raise _unusable(f"{', '.join(str(file) for file in files)}: {reason}") from None
        self._loaded = content
        return True


def thumbprint(pem: str) -> str:
    """`x5t#S256` of a certificate in PEM (RFC 8705 section 3.1). Raises BadRequest."""
    lines = pem.split()
    try:
        if (" ".join(lines[:2]), " ".join(lines[-2:])) != _PEM_LINES:
            raise ValueError
        der = base64.b64decode("".join(lines[2:-2]), validate=True)
    except ValueError:
        raise _unusable("it is not one certificate in PEM") from None
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def _no_password() -> str:
    """OpenSSL would otherwise ask for one on the terminal."""
    raise ValueError("the private key has a password")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(f"{path}: {error.strerror}") from None


def _unusable(reason: str) -> BadRequest:
    return BadRequest(
        f"the certificate can't be used: {reason}",
        code="certificate_unusable",
        repair="Give the certificate and its private key in PEM, without a password.",
    )
