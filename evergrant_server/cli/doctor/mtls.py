"""Checks of the trusted hop: what listens there, and what the proxy in front of it lets through."""

import asyncio
import ssl
import stat

import httpx2

from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.mtls_listener import SOCKET_MODE, require_usable_files
from evergrant_server.egress.transport import default_tls_context
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.settings.types import CERTIFICATE_HEADER_NAMES

_START = f"{COMMAND} serve --mtls"
_NOT_USED = "no proxy hands on certificates of apps"
_EXAMPLES = "Configure it as deploy/mtls does"


async def listener(settings: Settings) -> str:
    """Only the proxy can reach it."""
    if settings.mtls_socket is not None:
        path = settings.mtls_socket
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            raise CheckFailed(f"{path}: {error.strerror}", _START) from None
        if mode & ~SOCKET_MODE:
            raise CheckFailed(f"{path} is open to others (mode {mode:04o})", f"chmod {SOCKET_MODE:o} {path}")
        await _expect_alive(httpx2.AsyncHTTPTransport(uds=str(path)), "http://evergrant", str(path))
        return f"{path}, mode {mode:04o}, {settings.mtls_header}"
    if settings.mtls_port is None:
        return _NOT_USED
    try:
        require_usable_files(settings)
    except BadSettings as error:
        raise CheckFailed(str(error), "Correct the named file") from None
    host, port = settings.mtls_host, settings.mtls_port
    await _expect_certificate_demanded(host, port)
    return f"{host}:{port} demands the proxy's certificate, {settings.mtls_header}"


async def proxy(settings: Settings) -> str:
    """The proxy reaches Evergrant, and doesn't hand on a header of a client's own."""
    if not settings.mtls_url:
        if settings.mtls_header is not None:
            raise CheckFailed("no metadata tells apps of the proxy", "EVERGRANT_MTLS_URL=https://…")
        return _NOT_USED
    url = settings.mtls_url
    trust = httpx2.AsyncHTTPTransport(verify=default_tls_context(settings.trusted_ca_file))
    if settings.mtls_header is None:
        await _expect_alive(trust, url, url)
        return f"{url} reaches Evergrant"
    name = CERTIFICATE_HEADER_NAMES[settings.mtls_header]
    if await _expect_alive(trust, url, url, {name: "forged by doctor"}) == 400:
        raise CheckFailed(f"{url} hands on a client's own {name}: a client may be any app", _EXAMPLES)
    return f"{url} reaches Evergrant, and drops a client's own {name}"


async def _expect_alive(
    transport: httpx2.AsyncHTTPTransport, base_url: str, name: str, headers: dict[str, str] | None = None
) -> int:
    try:
        async with httpx2.AsyncClient(transport=transport, timeout=3) as http:
            answer = await http.get(f"{base_url}/livez", headers=headers)
    except httpx2.HTTPError as error:
        raise CheckFailed(f"{name} can't be reached ({type(error).__name__})", _START) from None
    if answer.status_code != 400 and answer.text != '{"status":"ok"}':
        raise CheckFailed(f"{name} answers {answer.status_code}, not as Evergrant does", _START)
    return answer.status_code


async def _expect_certificate_demanded(host: str, port: int) -> None:
    """Raise CheckFailed when a connection without a certificate is answered."""
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=anyone)
    except ssl.SSLError:
        return
    except OSError as error:
        raise CheckFailed(f"{host}:{port} can't be reached ({error.strerror})", _START) from None
    try:  # with TLS 1.3 the refusal comes after the handshake
        writer.write(b"GET /livez HTTP/1.1\r\nHost: evergrant\r\n\r\n")
        await writer.drain()
        answered = await reader.read(1)
    except OSError:
        answered = b""
    finally:
        writer.close()
    if answered:
        raise CheckFailed(f"{host}:{port} answers without a certificate: a client may be any app", _START)
