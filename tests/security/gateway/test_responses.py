"""Attacks by a provider's API: it echoes the credential, redirects, floods, breaks off. Its own call alone
ends badly, with an end that the caller sees."""

import asyncio
import base64
import gzip
import logging
import zlib

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.fakes.patience import eventually
from tests.fakes.platform.gateway import OK, Gateway, RawUpstream, Seen, answer, running_gateway
from tests.security.gateway.test_calls import code_of

TOKEN = "evg-canary/7Zq+Token_with~all=kinds"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def prepared(api: Api) -> tuple[str, str]:
    connection = await api.active(await api.integration(), TOKEN)
    return f"/v1/proxy/{connection.id}/x", await api.app_with("agent", Action.PROXY)


async def test_a_redirect_is_returned_and_not_followed(api: Api, gateway: Gateway, upstream: RawUpstream):
    path, key = await prepared(api)
    upstream.responses = [answer(b"", "302 Found", f"Location: {upstream.url}/elsewhere")]
    moved = await gateway.get(path, key)
    assert (moved.status_code, moved.headers["location"]) == (302, f"{upstream.url}/elsewhere")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    "echo",
    [
        TOKEN.encode(),
        base64.b64encode(b"Bearer " + TOKEN.encode()),
        base64.b64encode(b"x" + TOKEN.encode()),
        base64.urlsafe_b64encode(b"xy" + TOKEN.encode()),
        TOKEN.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D").encode(),
        TOKEN.replace("/", "\\/").encode(),
    ],
)
async def test_an_echoed_credential_never_arrives(
    api: Api, gateway: Gateway, upstream: RawUpstream, caplog: pytest.LogCaptureFixture, echo: bytes
):
    path, key = await prepared(api)
    half = len(echo) // 2
    zipped = gzip.compress(b"<" + echo + b">")
    upstream.responses = [
        answer(
            b"<" + echo + b">", "200 OK", f"X-Echo: {echo.decode()}", f"{echo.decode().translate(PLAIN)}: 1"
        ),
        SSE + chunk(b"data: " + echo[:half]) + chunk(echo[half:] + b"\n\n") + b"0\r\n\r\n",
        answer(zipped, "200 OK", "Content-Encoding: gzip"),
    ]
    with caplog.at_level(logging.ERROR):
        answers = [await gateway.get(path, key) for _ in range(3)]
    for it in answers:
        everything = it.content + repr(it.headers.raw).encode()
        assert echo not in everything
        assert b"*" * 20 in it.content
    assert len(answers[0].content) == len(echo) + 2, "its length stays what the header says"
    records = await eventually(lambda: api.records(AuditAction.PROXY_ANSWERED), lambda it: len(it) == 3)
    assert all(it.detail["echoes"] >= 1 for it in records)
    assert caplog.text.count("credential echoed") == 3
    assert TOKEN not in caplog.text


PLAIN = str.maketrans(dict.fromkeys("/+=\\%", "-"))  # characters that no header's name can have


async def test_a_compressed_bomb_streams_in_bounded_pieces_and_others_are_served(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    path, key = await prepared(api)
    bomb = zlib.compressobj(9, wbits=31)
    zeros = bomb.compress(bytes(64 << 20)) + bomb.flush()
    upstream.responses = [answer(zeros, "200 OK", "Content-Encoding: gzip"), OK]
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.client.stream("GET", path, headers=headers) as streamed:
        assert "content-encoding" not in streamed.headers
        pieces = streamed.aiter_raw()
        assert len(await anext(pieces)) <= 128 * 1024
        assert (await gateway.get(path, key)).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
        answer(b"x", "200 OK", "Content-Encoding: br"),
    ],
)
async def test_a_response_that_cannot_be_read_is_a_typed_failure(
    api: Api, gateway: Gateway, upstream: RawUpstream, wrong: bytes
):
    path, key = await prepared(api)

    async def once(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(wrong)
        writer.close()

    upstream.handler = once
    status, code = code_of(await gateway.get(path, key))
    assert (status, code) in ((503, "provider_unreachable"), (424, "reply_unreadable"))
    upstream.handler = None
    assert (await gateway.get(path, key)).status_code == 200


@pytest.mark.parametrize(
    "begun", [SSE + chunk(b"data: 1\n\n"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]
)
async def test_a_response_that_breaks_off_has_no_end_here_either(
    api: Api, gateway: Gateway, upstream: RawUpstream, begun: bytes
):
    path, key = await prepared(api)

    async def break_off(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        await writer.drain()
        writer.close()

    upstream.handler = break_off
    with pytest.raises(httpx2.RemoteProtocolError):
        await gateway.get(path, key)
    (record,) = await eventually(lambda: api.records(AuditAction.PROXY_ANSWERED))
    assert record.detail["outcome"] == "provider_unreachable"


async def test_an_address_that_the_guard_refuses_is_never_connected(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    path, key = await prepared(api)
    elsewhere = f"http://localhost:{upstream.url.rpartition(':')[2]}/api"  # allowed is 127.0.0.1, by its name
    for base in (
        elsewhere,
        "http://169.254.169.254/latest",
        "https://127.1/api",
        "https://[::ffff:10.0.0.1]/api",
    ):
        async with running_gateway(api, upstream, api_base_url=base) as guarded:
            assert code_of(await guarded.get(path, key)) == (424, "egress_refused")
    assert upstream.connections == 0


async def test_no_secret_is_in_the_log_the_records_or_a_refusal(
    api: Api, gateway: Gateway, upstream: RawUpstream, caplog: pytest.LogCaptureFixture
):
    """The canary hunt: the credential, the app's key, and what the query holds."""
    path, key = await prepared(api)
    challenge = f'WWW-Authenticate: Bearer error="insufficient_scope", scope="a", error_description="{TOKEN}"'
    upstream.responses = [
        answer(TOKEN.encode(), "500 Oops", "Content-Encoding: br"),
        answer(b"", "403 Forbidden", challenge),
        answer(TOKEN.encode(), f"500 {TOKEN}"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\nX: " + TOKEN.encode() + b"\r\n\r\nab",
    ]
    with caplog.at_level(logging.DEBUG):
        seen = [await gateway.get(f"{path}?password=hush-hush", key) for _ in range(4)]
        raw = await gateway.raw(f"GET {path} HTTP/1.1\r\nAuthorization: Bearer {key}\n\r\n\r\n".encode())
    records = await eventually(lambda: api.records(AuditAction.PROXY_ANSWERED), lambda it: len(it) == 4)
    written = caplog.text + repr(records) + repr(await api.records())
    said = b"".join([raw, *(it.content + repr(it.headers.raw).encode() for it in seen)])
    for secret in (TOKEN, key, "hush-hush"):
        assert secret not in written
        assert secret.encode() not in said
