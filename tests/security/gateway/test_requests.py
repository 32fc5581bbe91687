"""Attacks with requests: smuggled, oversized, ambiguous. Each is answered with 400 and closed, or arrives
once and harmless; the next request is served."""

import asyncio

import pytest

from evergrant_server.core.access import Action
from tests.fakes.api import Api
from tests.fakes.platform.gateway import Gateway, RawUpstream

END = b"\r\n\r\n"


async def prepared(api: Api) -> tuple[bytes, bytes]:
    """The path of a connection, and the header of an app that may use it."""
    connection, key = await api.active_for("agent", Action.PROXY)
    return f"/v1/proxy/{connection.id}".encode(), b"Host: gateway\r\nAuthorization: Bearer " + key.encode()


GET, POST = b"GET %b/x HTTP/1.1\r\n%b\r\n", b"POST %b/x HTTP/1.1\r\n%b\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked" + END
BOTH = POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked" + END
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
HIDDEN = b"GET /v1/proxy/hidden HTTP/1.1\r\nHost: gateway" + END
ATTACKS = {
    "a length beside chunks": BOTH + b"0" + END + HIDDEN,
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 5" + END + b"abcde" + HIDDEN,
    "two lengths that agree": POST + b"Content-Length: 4\r\ncontent-length: 4" + END + b"abcd",
    "xchunked": POST + b"Transfer-Encoding: xchunked" + END + b"0" + END + HIDDEN,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked" + END + b"0" + END,
    "chunks in HTTP/1.0": b"POST %b/x HTTP/1.0\r\n%b\r\nTransfer-Encoding: chunked" + END + b"0" + END,
    "a bare LF": b"GET %b/x HTTP/1.1\r\n%b\nX: y" + END,
    "bare LFs alone": b"GET %b/x HTTP/1.1\n%b\n\n",
    "a bare CR": GET + b"X: a\rb" + END,
    "a NUL": GET + b"X: a\0b" + END,
    "a folded line": GET + b"X: a\r\n b" + END,
    "a space before the colon": GET + b"Content-Length : 4" + END + b"abcd",
    "bare LF in chunks": CHUNKED + b"1\nx\n0\n\n",
    "a bare LF after the last chunk": CHUNKED + b"1\r\nx\r\n0\r\n\n" + HIDDEN,
    "trailers": CHUNKED + b"0\r\nX: y" + END + HIDDEN,
    "trailers with bare LF": CHUNKED + b"0\r\nX: y\n\n" + HIDDEN,
    "a chunk extension of 1 MB": CHUNKED + b"1;" + b"a" * 1_000_000 + b"\r\nx\r\n0" + END,
    "a header of 64 KiB": GET + b"X: " + b"a" * 65_536 + END,
    "10,000 headers": GET + b"" + b"X: y\r\n" * 10_000 + b"\r\n",
    "300 headers": GET + b"" + b"X: y\r\n" * 300 + b"\r\n",
    "two hosts": GET + b"Host: evil" + END,
    "the absolute form": b"GET http://evil.example%b/x HTTP/1.1\r\n%b" + END,
    "the authority form": b"CONNECT evil.example:443 HTTP/1.1\r\nX: %b\r\n%b" + END,
    "the asterisk form": b"OPTIONS * HTTP/1.1\r\nX: %b\r\n%b" + END,
    "an upgrade to websocket": GET + b"Connection: Upgrade\r\nUpgrade: websocket" + END,
    "an upgrade to h2c": GET + H2C + END,
    "a length of letters": POST + b"Content-Length: abc" + END + HIDDEN,
    "a negative length": POST + b"Content-Length: -1" + END + HIDDEN,
    "a length with a sign": POST + b"Content-Length: +4" + END + b"abcd" + HIDDEN,
    "a length in hexadecimal": POST + b"Content-Length: 0x4" + END + b"abcd" + HIDDEN,
    "no length": POST + b"Content-Length: " + END + b"abcd" + HIDDEN,
    "a list of lengths": POST + b"Content-Length: 4, 4" + END + b"abcd" + HIDDEN,
    "a length of 21 digits": POST + b"Content-Length: 100000000000000000000" + END + HIDDEN,
    "a length of 5,000 digits": POST + b"Content-Length: " + b"9" * 5_000 + END + HIDDEN,
    "a chunk size that is none": CHUNKED + b"xyz\r\nabc\r\n0" + END + HIDDEN,
    "a chunk with a negative size": CHUNKED + b"-1\r\nabc\r\n0" + END + HIDDEN,
    "a chunk size in 0x": CHUNKED + b"0x3\r\nabc\r\n0" + END + HIDDEN,
    "a chunk without a size": CHUNKED + b"\r\nabc\r\n0" + END + HIDDEN,
    "a chunk size of 30 digits": CHUNKED + b"f" * 30 + b"\r\nabc\r\n0" + END + HIDDEN,
    "a chunk that is longer than it says": CHUNKED + b"1\r\nabc\r\n0" + END + HIDDEN,
    "a second chunk size that is none": CHUNKED + b"1\r\na\r\nzz\r\n0" + END + HIDDEN,
    "a chunk without an end": CHUNKED + b"1\r\naX\r\n0" + END + HIDDEN,
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\nX: %b\r\n%b\r\n\r\nSM\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_ambiguous_request_is_answered_with_400_and_closed(
    api: Api, gateway: Gateway, upstream: RawUpstream, attack: str
):
    """RFC 9112 sections 2.2, 3.2, 5.1, 5.2, 6.1 and 6.3."""
    path, headers = await prepared(api)
    got = await gateway.raw(ATTACKS[attack] % (path, headers))
    assert got.startswith(b"HTTP/1.1 400 "), got[:200]
    assert got.count(b"HTTP/1.1 ") == 1, "nothing after it was read"
    assert upstream.seen == []
    ours = b"GET %b/next HTTP/1.1\r\n%b\r\nConnection: close" % (path, headers) + END
    assert (await gateway.raw(ours)).startswith(b"HTTP/1.1 200 OK"), "the next request is clean"
    assert [it.target for it in upstream.seen] == ["/api/next"]


async def test_whitespace_around_a_value_is_no_part_of_it(api: Api, gateway: Gateway, upstream: RawUpstream):
    """RFC 9112 section 5.1."""
    path, headers = await prepared(api)
    request = b"GET %b/x HTTP/1.1\r\n%b \t\r\nX-Mine: \t a b\t \r\nConnection: close \r\n\r\n"
    assert (await gateway.raw(request % (path, headers))).startswith(b"HTTP/1.1 200 OK")
    (seen,) = upstream.seen
    assert b"\r\nx-mine: a b\r\n" in seen.head.lower()


async def test_host_and_forwarded_headers_lead_nowhere_else(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    path, headers = await prepared(api)
    evil = b"\r\n".join(
        b"%b: evil.example" % name
        for name in (b"X-Forwarded-Host", b"Forwarded", b"X-Original-URL", b"X-Rewrite-URL", b"X-Host")
    )
    headers = headers.replace(b"Host: gateway", b"Host: evil.example")
    await gateway.raw(b"GET %b/x HTTP/1.1\r\n%b\r\n%b\r\nConnection: close" % (path, headers, evil) + END)
    (seen,) = upstream.seen
    assert seen.values("host") == [upstream.url.removeprefix("http://")]
    assert b"evil" not in seen.head


async def test_connection_and_spellings_neither_remove_nor_double_the_credential(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    path, headers = await prepared(api)
    more = b"Connection: authorization, x-api-key, close\r\nAUTHORIZATION_: a\r\nX_API_KEY: b\r\nX-Mine: c"
    more += b"\r\nAccept-Encoding: br"
    await gateway.raw(b"GET %b/x HTTP/1.1\r\n%b\r\n%b" % (path, headers, more) + END)
    twice = b"GET %b/x HTTP/1.1\r\n%b\r\nAUTHORIZATION: Bearer x\r\nConnection: close" % (path, headers) + END
    assert (await gateway.raw(twice)).startswith(b"HTTP/1.1 401 "), "two credentials of the caller's own"
    (seen,) = upstream.seen
    assert seen.values("authorization") == ["Bearer at-1"]
    assert (seen.values("x-mine"), seen.values("connection")) == (["c"], [])
    assert seen.values("accept-encoding") == ["identity"], "the credential is looked for in what comes back"


@pytest.mark.parametrize(
    ("suffix", "sent"),
    [
        (b"/a%0d%0aX:%20y", None),
        (b"/..%2fx", None),
        (b"/%252e%252e/x", None),
        (b"/a\\b", None),
        (b"//evil.example/", None),
        (b"/../../oauth/token", None),
        (b"/x?q=%0d%0aX:%20y", "/api/x?q=%0d%0aX:%20y"),
        (b"", "/api/"),
    ],
)
async def test_a_path_reaches_what_the_permit_judged_or_nothing(
    api: Api, gateway: Gateway, upstream: RawUpstream, suffix: bytes, sent: str | None
):
    path, headers = await prepared(api)
    got = await gateway.raw(b"GET %b%b HTTP/1.1\r\n%b\r\nConnection: close" % (path, suffix, headers) + END)
    assert got.startswith(b"HTTP/1.1 400 " if sent is None else b"HTTP/1.1 200 "), got[:200]
    assert [it.target for it in upstream.seen] == ([] if sent is None else [sent])
    assert not any(it.values("x") for it in upstream.seen)


async def test_a_head_that_never_ends_is_cut_and_others_are_served(
    api: Api, gateway: Gateway, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergrant_server.gateway.server.HEAD_TIMEOUT_S", 1.0)
    path, headers = await prepared(api)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET %b/x HTTP/1.1\r\n" % path)
    ours = b"GET %b/x HTTP/1.1\r\n%b\r\nConnection: close" % (path, headers) + END
    assert (await gateway.raw(ours)).startswith(b"HTTP/1.1 200 ")
    async with asyncio.timeout(60):
        assert await reader.read() == b"", "closed without an answer"
    writer.close()


async def test_requests_one_after_another_on_one_connection(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    path, headers = await prepared(api)
    one = b"POST %b/a HTTP/1.1\r\n%b\r\nContent-Length: 3" % (path, headers) + END + b"abc"
    last = b"GET %b/b HTTP/1.1\r\n%b\r\nConnection: close" % (path, headers) + END
    got = await gateway.raw(one + one + last)
    assert got.count(b"HTTP/1.1 200 OK") == 3
    assert [(it.target, it.body) for it in upstream.seen] == [("/api/a", b"abc")] * 2 + [("/api/b", b"")]
    assert upstream.connections == 1, "the connection to the provider is kept"


@pytest.mark.parametrize("wrong", [b"zz\r\nabc\r\n", b"1\r\nabc\r\n", b"-1\r\na\r\n"])
@pytest.mark.parametrize("before", [b"", b"1\r\na\r\n"], ids=["as the first chunk", "after a good chunk"])
async def test_a_malformed_chunk_that_comes_later_is_answered_with_400(
    api: Api, gateway: Gateway, upstream: RawUpstream, before: bytes, wrong: bytes
):
    """The head was read before, and the call judged. Nothing of it is sent on (RFC 9112 section 7.1)."""
    path, headers = await prepared(api)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(CHUNKED % (path, headers))
    for part in (before, wrong):
        await writer.drain()
        await asyncio.sleep(0.2)  # so that it is read by itself
        writer.write(part)
    async with asyncio.timeout(60):
        got = await reader.read()
    writer.close()
    assert got.startswith(b"HTTP/1.1 400 "), got[:200]
    assert got.count(b"HTTP/1.1 ") == 1
    assert upstream.seen == []
