"""The three formats in which a proxy hands on a client certificate, and everything that is none of them."""

from base64 import b64encode
from urllib.parse import quote

import pytest
from starlette.types import Receive, Scope, Send

from evergrant_server.api.http.client_certificates import TrustedHop, read_header
from evergrant_server.crypto.client_certificates import AppCertificate
from evergrant_server.settings.types import CertificateHeader
from tests.fakes.certificates import Authority

PEM = Authority().issue().certificate
DER = AppCertificate.of_pem(PEM).der
RFC9440 = b":" + b64encode(DER) + b":"
ESCAPED = quote(PEM, safe="").encode()
# as Envoy 1.40 sends it with SANITIZE_SET
XFCC = b'Hash=a1a66e6a5eb45a6c2a38243f1b824dd6c20a70bca1ff526bbc4eead0e7a0f897;Cert="%s"' % ESCAPED


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("rfc9440", RFC9440),
        ("nginx", ESCAPED),
        ("envoy", XFCC),
        ("envoy", b'Cert="%s";Subject="CN=a\\";b,c";URI=urn:a' % ESCAPED),
        ("envoy", b"cert=%s" % ESCAPED),
    ],
)
def test_a_certificate_is_read(header: CertificateHeader, value: bytes) -> None:
    assert read_header(header, value).der == DER


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("rfc9440", b""),
        ("rfc9440", b"::"),
        ("rfc9440", b64encode(DER)),
        ("rfc9440", ESCAPED),
        ("rfc9440", PEM.replace("\n", " ").encode()),
        ("rfc9440", RFC9440 + b", " + RFC9440),
        ("rfc9440", RFC9440 + b";a=1"),
        ("rfc9440", b":" + b64encode(DER + b"\0") + b":"),
        ("rfc9440", b":" + b64encode(DER)[:-2] + b":"),
        ("rfc9440", b":AAAA:"),
        ("nginx", b""),
        ("nginx", RFC9440),
        ("nginx", ESCAPED + b"," + ESCAPED),
        ("nginx", ESCAPED + ESCAPED),
        ("nginx", b"%ff" + ESCAPED),
        ("nginx", b"SUCCESS"),
        ("envoy", b""),
        ("envoy", ESCAPED),
        ("envoy", b"Hash=00"),
        ("envoy", XFCC + b"," + XFCC),
        ("envoy", XFCC + b',Cert="x"'),
        ("envoy", b'Hash=00;Cert="%s";Cert="%s"' % (ESCAPED, ESCAPED)),
        ("envoy", b'Cert="%s' % ESCAPED),
        ("envoy", b'Cert="%s"' % ESCAPED * 40),
    ],
)
def test_anything_else_is_no_certificate(header: CertificateHeader, value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the library's texts
        read_header(header, value)


async def test_the_other_end_of_a_socket_is_this_machine() -> None:
    """So that it can be a trusted proxy, whose X-Forwarded-For counts."""
    seen: list[tuple[str, int]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"])

    for client in (("", 0), None, ("10.0.0.7", 1)):
        scope = {"type": "http", "headers": [], "client": client}
        await TrustedHop(app, "nginx", "")(scope, None, None)  # type: ignore[arg-type]  # neither is used
    assert seen == [("127.0.0.1", 0), ("127.0.0.1", 0), ("10.0.0.7", 1)]
