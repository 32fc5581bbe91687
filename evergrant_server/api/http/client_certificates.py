"""The client certificate of a request, as the proxy of a trusted hop hands it on (RFC 9440 section 2).

Only a listener that no one but the proxy reaches has this middleware (`cli.serve`). At any other listener no
code reads these headers: routes see a certificate only where the middleware has put it.
"""

import logging
import re
from base64 import b64decode
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from evergrant_server.access.authentication import CERTIFICATE
from evergrant_server.crypto.client_certificates import AppCertificate
from evergrant_server.problems import invalid_request, problem_response
from evergrant_server.settings.types import CERTIFICATE_HEADER_NAMES, CertificateHeader
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

_SOCKET_PEER = ("127.0.0.1", 0)  # at the other end of a unix socket is this machine
_MAX_BYTES = 16_384  # of a header; a certificate has about 1,000
_BYTE_SEQUENCE = re.compile(rb":([A-Za-z0-9+/]+={0,2}):")  # RFC 8941 section 3.3.5
_XFCC_PAIR = re.compile(rb'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;,"]*)(?:;|\Z)')


class TrustedHop:
    """ASGI middleware of the trusted hop: reads the one header that its proxy sets.

    Answers 400 to two values, and to a value in any other format.
    """

    def __init__(self, app: ASGIApp, header: CertificateHeader, base_url: str) -> None:
        self._app = app
        self._header = header
        self._name = CERTIFICATE_HEADER_NAMES[header]
        self._raw_name = self._name.lower().encode()
        self._base_url = base_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not (scope.get("client") or ("",))[0]:
                scope["client"] = _SOCKET_PEER
            values = [value for name, value in scope["headers"] if name == self._raw_name]
            if values:
                try:
                    (value,) = values
                    scope[CERTIFICATE] = read_header(self._header, value)
                except ValueError:
                    why = f"{self._name}: the proxy must send one certificate, in the format {self._header}."
                    log_event(log, logging.WARNING, LogEvent.CERTIFICATE_UNREADABLE, why)
                    response = problem_response(invalid_request(self._name, why), self._base_url)
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)


@lru_cache(maxsize=1024)
def read_header(header: CertificateHeader, value: bytes) -> AppCertificate:
    """The certificate that a header of this format holds. Raises ValueError."""
    if len(value) > _MAX_BYTES:
        raise ValueError("is too long")
    return _READERS[header](value)


def _rfc9440(value: bytes) -> AppCertificate:
    """`:base64 of the DER:` (RFC 9440 section 2.1)."""
    sequence = _BYTE_SEQUENCE.fullmatch(value)
    if sequence is None:
        raise ValueError("is no byte sequence")
    return AppCertificate.of_der(b64decode(sequence[1], validate=True))


def _escaped_pem(value: bytes) -> AppCertificate:
    """URL-encoded PEM, as nginx's variable `$ssl_client_escaped_cert` has it."""
    return AppCertificate.of_pem(unquote_to_bytes(value).decode("ascii"))


def _envoy(value: bytes) -> AppCertificate:
    """The `Cert` of a header with one element: a second would be another proxy's, or the client's own."""
    certificates: list[bytes] = []
    end = 0
    while pair := _XFCC_PAIR.match(value, end):
        end = pair.end()
        if pair[1].lower() == b"cert":
            certificates.append(pair[2])
    if end != len(value) or len(certificates) != 1:
        raise ValueError("is not one element with one Cert")
    return _escaped_pem(certificates[0].strip(b'"'))


_READERS: dict[CertificateHeader, Callable[[bytes], AppCertificate]] = {
    "rfc9440": _rfc9440,
    "nginx": _escaped_pem,
    "envoy": _envoy,
}
