"""The egress guard: refused addresses and URLs, and its limits against real servers on loopback."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import LIMITS
from evergrant_server.egress import ANSWER_TIMEOUT_S, Egress, EgressPolicy, SendObserver
from evergrant_server.egress.transport import default_tls_context
from tests.fakes.http_server import listening

Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def a_server(respond: Respond, heads: list[bytes] | None = None) -> AsyncIterator[int]:
    """A loopback server that reads one request head and lets `respond` write."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        await respond(writer)
        await writer.drain()

    async with listening(talk) as port:
        yield port


def answering(body: bytes, *headers: str, status: str = "200 OK") -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return respond


async def get(egress: Egress, url: str, **options: object) -> httpx2.Response:
    async with egress.client(**options) as client:
        return await client.get(url)


def egress_to(port: int, **limits: float) -> Egress:
    return Egress(EgressPolicy(allow=(f"127.0.0.1:{port}",)), **limits)  # type: ignore[arg-type]  # floats


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://localhost./",
        "http://example.com/",
        "https://example.com:22/",
        "https://user:pass@example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
    ],
)
async def test_a_non_public_url_is_refused_in_any_notation(url: str) -> None:
    # a notation that the resolver doesn't know fails to resolve, which is also a refusal
    with pytest.raises(
        (Failure, httpx2.UnsupportedProtocol, httpx2.ConnectError, httpx2.InvalidURL)
    ) as raised:
        await get(Egress(EgressPolicy()), url)
    if isinstance(raised.value, Failure):
        assert raised.value.code is ErrorCode.EGRESS_REFUSED


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://localhost:8000/o", "localhost:8000"),
        ("https://10.0.0.7:8443/", "10.0.0.7:8443"),
        ("https://idp.example:9000/", "idp.example:9000"),
        ("https://[::1]/", "[::1]:443"),
    ],
)
def test_a_refusal_says_how_the_host_is_allowed(url: str, allowed: str) -> None:
    with pytest.raises(Failure) as refused:
        EgressPolicy().check_endpoint(url)
    assert refused.value.problem.startswith(allowed)
    assert refused.value.repair.endswith(f" start Evergrant anew with: EVERGRANT_EGRESS_ALLOW={allowed}")
    EgressPolicy(allow=(allowed,)).check_endpoint(url)


def test_the_line_to_type_keeps_what_is_allowed_and_crosses_temporal() -> None:
    """A worker's refusal reaches a caller as one text, whose repair is at its end."""
    kept = ("localhost:9000", "idp.internal:8443")
    with pytest.raises(Failure) as refused:
        EgressPolicy(kept, "make dev").check_endpoint("http://LOCALHOST:9001/x")
    crossed = Failure(ErrorCode.EGRESS_REFUSED, refused.value.detail)
    assert crossed.problem == "localhost:9001 is not https"
    assert crossed.repair.endswith(
        "EVERGRANT_EGRESS_ALLOW=localhost:9000,idp.internal:8443,localhost:9001 make dev"
    )
    many = tuple(f"host-{n}.example:9000" for n in range(50))
    with pytest.raises(Failure) as long:
        EgressPolicy(many, "make dev").check_endpoint("http://localhost:9001/x")
    assert "add localhost:9001 to EVERGRANT_EGRESS_ALLOW" in long.value.detail
    assert len(long.value.detail) < 300, "Temporal cuts it, and a line that is cut would allow less"


@pytest.mark.parametrize("tail", ["; rm -rf x", " $(x)", " make dev; x", " sh x"])
def test_no_other_command_is_taken_for_a_repair(tail: str) -> None:
    """Who writes in Temporal's namespace chooses a refusal's text."""
    start = "a:1 is x; if it is a server of yours, start Evergrant anew with: EVERGRANT_EGRESS_ALLOW=a:1"
    assert tail not in Failure(ErrorCode.EGRESS_REFUSED, start + tail).repair


async def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the name is resolved once, so the second, private answer is never used."""
    answers = [["93.184.215.14"], ["127.0.0.1"]]
    dialled: list[str] = []

    async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, port)) for address in answers.pop(0)]

    async def dial(*, remote_host: str, **_: object) -> None:
        dialled.append(remote_host)
        raise OSError("refused")

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    monkeypatch.setattr("anyio.connect_tcp", dial)
    with pytest.raises(httpx2.ConnectError):
        await get(Egress(EgressPolicy()), "https://rebinding.example/")
    assert (dialled, len(answers)) == (["93.184.215.14"], 1)


async def test_one_private_address_among_public_ones_refuses_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    with pytest.raises(Failure, match="private"):
        await get(Egress(EgressPolicy()), "https://mixed.example/")


async def test_an_allowance_is_for_exactly_one_host_and_port() -> None:
    async with a_server(answering(b"hi")) as port:
        assert (await get(egress_to(port), f"http://127.0.0.1:{port}/")).content == b"hi"
        for other in (f"http://localhost:{port}/", "http://127.0.0.1:9/"):
            with pytest.raises(Failure) as raised:
                await get(egress_to(port), other)
            assert raised.value.code is ErrorCode.EGRESS_REFUSED


@pytest.mark.parametrize("entry", ["localhost", "http://localhost:80", ":80", "host:0", "host:99999", ""])
def test_a_malformed_allowance_is_an_error(entry: str) -> None:
    with pytest.raises(Failure, match="host:port"):
        EgressPolicy(allow=(entry,))


async def test_redirects_are_not_followed() -> None:
    async with a_server(answering(b"", "Location: https://evil.example/", status="302 Found")) as port:
        assert (await get(egress_to(port), f"http://127.0.0.1:{port}/")).status_code == 302


async def test_ambient_proxies_and_netrc_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password canary\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    heads: list[bytes] = []
    async with a_server(answering(b"direct"), heads) as port:
        assert (await get(egress_to(port), f"http://127.0.0.1:{port}/")).content == b"direct"
    assert b"authorization" not in heads[0].lower()
    assert f"host: 127.0.0.1:{port}".encode() in heads[0].lower()


async def test_a_proxy_can_not_be_configured() -> None:
    with pytest.raises(TypeError, match="proxy"):
        Egress(EgressPolicy()).client(proxy="http://127.0.0.1:1")


@pytest.mark.parametrize(
    "respond",
    [answering(b"x" * 2_000_000), answering(gzip.compress(b"\0" * 20_000_000), "Content-Encoding: gzip")],
    ids=["large", "gzip bomb"],
)
async def test_a_body_over_the_limit_is_refused(respond: Respond) -> None:
    async with a_server(respond) as port:
        with pytest.raises(Failure, match="larger than 1048576") as raised:
            await get(egress_to(port), f"http://127.0.0.1:{port}/")
        assert raised.value.code is ErrorCode.REPLY_UNREADABLE


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"not gzip", "gzip"), (gzip.compress(b"cut")[:-4], "gzip"), (b"x", "br")],
    ids=["not gzip", "cut off", "unknown"],
)
async def test_a_broken_encoding_is_refused(body: bytes, encoding: str) -> None:
    async with a_server(answering(body, f"Content-Encoding: {encoding}")) as port:
        with pytest.raises(Failure) as raised:
            await get(egress_to(port), f"http://127.0.0.1:{port}/")
        assert raised.value.code is ErrorCode.REPLY_UNREADABLE


async def test_unrequested_gzip_is_decoded() -> None:
    async with a_server(answering(gzip.compress(b"hello"), "Content-Encoding: gzip")) as port:
        assert (await get(egress_to(port), f"http://127.0.0.1:{port}/")).text == "hello"


async def test_a_slow_response_ends_at_the_limit_for_the_whole_exchange() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with a_server(drip) as port:
        with pytest.raises(httpx2.ReadTimeout):
            await get(egress_to(port, answer_timeout_s=0.3), f"http://127.0.0.1:{port}/")


async def test_an_observer_sees_a_sent_byte_only_after_the_connection() -> None:
    async with a_server(answering(b"")) as port:
        observer = SendObserver()
        async with httpx2.AsyncClient(transport=egress_to(port).transport(observer)) as client:
            await client.get(f"http://127.0.0.1:{port}/")
        assert observer.sent
    observer = SendObserver()
    async with httpx2.AsyncClient(transport=egress_to(port).transport(observer)) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/")
    assert not observer.sent


async def test_no_request_is_sent_to_plain_http_behind_https() -> None:
    """The server of an https URL doesn't speak TLS."""
    heads: list[bytes] = []
    async with a_server(answering(b""), heads) as port:
        observer = SendObserver()
        async with httpx2.AsyncClient(
            transport=egress_to(port, connect_timeout_s=0.3).transport(observer)
        ) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(f"https://127.0.0.1:{port}/secret")
        assert not observer.sent
    assert b"secret" not in b"".join(heads)


def test_certificates_are_checked_and_limits_fit_the_protocol() -> None:
    assert default_tls_context().verify_mode is ssl.CERT_REQUIRED
    assert LIMITS.answer.total_seconds() > ANSWER_TIMEOUT_S
