"""Makes a TLS context that presents an integration's client certificate (mutual TLS)."""

import secrets
import ssl
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from evergrant_server.core.connections.credentials import ClientCertificate
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress.network import default_tls_context


def tls_with_certificate(trusting: ssl.SSLContext, certificate: ClientCertificate) -> ssl.SSLContext:
    """A new context with the authorities of `trusting`; no other integration presents the certificate.

    The standard library loads keys only from files. Meanwhile the key is on disk, encrypted with a
    random password. Raises Failure CLIENT_REJECTED when the certificate can't be used, and
    JOURNAL_UNAVAILABLE when it can't be written.
    """
    authorities = trusting.get_ca_certs(binary_form=True)
    context = (
        ssl.create_default_context(cadata=b"".join(authorities)) if authorities else default_tls_context()
    )
    password = secrets.token_bytes(32).hex()
    try:
        key = load_pem_private_key(certificate.private.reveal().encode(), None)
        sealed = key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
        )
        with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
            chain, private = Path(folder) / "chain.pem", Path(folder) / "key.pem"
            chain.write_text(certificate.certificate, encoding="ascii")
            private.write_bytes(sealed)
            context.load_cert_chain(chain, private, password)
    except (ValueError, TypeError, ssl.SSLError):  # the library's message may quote the key
        raise Failure(
            ErrorCode.CLIENT_REJECTED, "the integration's client certificate can't be used"
        ) from None
    except OSError as error:
        detail = f"a client certificate's key can't be written: {error.strerror or type(error).__name__}"
        raise Failure(ErrorCode.JOURNAL_UNAVAILABLE, detail) from None
    return context
