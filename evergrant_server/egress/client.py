"""Makes HTTP transports and clients that connect only through the guard, with client certificates (mTLS)."""

import hashlib
import logging
import secrets
import ssl
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx2
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from evergrant_server.core.connections.credentials import ClientCertificate
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.transport import GuardedTransport, SendObserver, default_tls_context

CONNECT_TIMEOUT_S = 5.0
_MOST_CONTEXTS = 100
ANSWER_TIMEOUT_S = 30.0  # for the whole exchange; less than core.attempt.LIMITS.answer

# False while an activity runs whose row in `core.messages.jobs` says that it calls nobody outside
may_call_out: ContextVar[bool] = ContextVar("may_call_out", default=True)

TransportWrapper = Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport]

# httpx2 logs every URL at INFO, and some providers require the secret in the query of a GET.
# httpcore2 logs response headers at DEBUG. A filter is kept when a level is lowered again.
_NOISY = (
    "httpx2",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "httpcore2.proxy",
    "httpcore2.socks",
)


class Egress:
    """Makes the transports of one process. Reads the TLS context once, and keeps those with a certificate;
    connections are never shared (ADR 0086).

    `wrapper` wraps every transport, for example to trace requests; the guard stays the innermost.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        tls: ssl.SSLContext | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        wrapper: TransportWrapper | None = None,
    ) -> None:
        self.policy = policy
        self._tls = tls or default_tls_context(policy.ca_file)
        self._with_certificate: dict[bytes, ssl.SSLContext] = {}  # by the digest of certificate and key
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._wrapper = wrapper

    def transport(
        self, observer: SendObserver | None = None, certificate: ClientCertificate | None = None
    ) -> httpx2.AsyncBaseTransport:
        """A guarded transport. `observer.sent` says whether a byte may have left.

        This transport alone presents `certificate` to servers that request one. Raises Failure
        CLIENT_REJECTED when the certificate can't be used, and RuntimeError in an activity without a turn.
        """
        if not may_call_out.get():
            raise RuntimeError(
                "an activity calls out without a turn: give its row in core/messages/jobs.py one"
            )
        guarded = GuardedTransport(
            self.policy,
            tls=self._context(certificate) if certificate else self._tls,
            connect_timeout_s=self._connect_timeout_s,
            answer_timeout_s=self._answer_timeout_s,
            observer=observer,
        )
        return self._wrapper(guarded) if self._wrapper else guarded

    def _context(self, certificate: ClientCertificate) -> ssl.SSLContext:
        """The context that presents it: no other certificate and key have the same."""
        text = certificate.certificate + certificate.private.reveal()
        digest = hashlib.sha256(text.encode()).digest()
        context = self._with_certificate.pop(digest, None)
        context = context or tls_with_certificate(self._tls, certificate, self.policy.ca_file)
        self._with_certificate[digest] = context
        if len(self._with_certificate) > _MOST_CONTEXTS:
            del self._with_certificate[next(iter(self._with_certificate))]  # used longest ago
        return context

    def client(
        self,
        observer: SendObserver | None = None,
        certificate: ClientCertificate | None = None,
        **options: Any,
    ) -> httpx2.AsyncClient:
        """An httpx2 client on a guarded transport. An `observer` is for one request.

        It follows no redirects and reads neither proxies nor .netrc from the environment; `options`
        can't change that. Use as `async with`. Raises as `transport`.
        """
        transport = self.transport(observer, certificate)
        options.update(transport=transport, trust_env=False, follow_redirects=False, timeout=None)
        for option in ("mounts", "proxy"):
            if option in options:
                raise TypeError(f"{option} would go around the egress guard")
        return httpx2.AsyncClient(**options)


def tls_with_certificate(
    trusting: ssl.SSLContext, certificate: ClientCertificate, ca_file: Path | None = None
) -> ssl.SSLContext:
    """A new context with the authorities of `trusting`; no other integration presents the certificate.

    The standard library loads keys only from files. Meanwhile the key is on disk, encrypted with a
    random password. Raises Failure CLIENT_REJECTED when the certificate can't be used, and
    JOURNAL_UNAVAILABLE when it can't be written.
    """
    authorities = trusting.get_ca_certs(binary_form=True)
    context = (
        ssl.create_default_context(cadata=b"".join(authorities))
        if authorities and ca_file is None
        else default_tls_context(ca_file)
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


def _warnings_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def silence_http_debug_logs() -> None:
    """Let the HTTP libraries log nothing below WARNING. Doing it twice changes nothing."""
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.addFilter(_warnings_only)
