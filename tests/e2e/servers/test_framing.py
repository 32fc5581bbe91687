"""Requests whose body has no reading, at the server of the API: answered with 400 (RFC 9112 section 7.1).

tests/security/gateway/test_requests.py has those of the gateway, whose server is another one.
"""

import asyncio
import json
from contextlib import suppress

import pytest

from bench.processes import python_module, running_process
from evergrant_server.cli.process import settings_environment
from evergrant_server.core.access import Action
from tests.fakes.api import Api
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

HEAD = (
    b"POST %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
WRONG = {
    "a length of letters": (b"Content-Length: abc\r\n\r\n",),
    "a negative length": (b"Content-Length: -1\r\n\r\n",),
    "a list of lengths": (b"Content-Length: 2, 2\r\n\r\n{}",),
    "a chunk size that is none": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",),
    "a chunk that is longer than it says": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n",),
    "a later chunk size that is none": (CHUNKED, b"1\r\n{\r\n", b"zz\r\n"),
}


async def raw(port: int, *parts: bytes) -> bytes:
    """Send the parts one after another; all that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = bytearray()

    async def read() -> None:
        with suppress(ConnectionError):  # it is closed with a part unread
            while data := await reader.read(65_536):
                got.extend(data)

    reading = asyncio.create_task(read())
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.2)  # so that it is read by itself
    async with asyncio.timeout(PATIENCE_S):
        await reading
    writer.close()
    return bytes(got)


async def test_a_body_without_a_reading_is_answered_with_400(api: Api):
    """On a route that reads its body by itself, on the lease's and on a page."""
    _, key = await api.active_for("pipeline", Action.TOKEN, Action.CONNECT)
    port = free_port()
    places = {"data_dir": str(api.parts.settings.data_dir), "public_url": f"http://127.0.0.1:{port}"}
    settings = api.parts.settings.model_copy(update={**places, "port": port})
    environment = settings_environment(settings)
    serve = python_module("evergrant_server", api.parts.settings.data_dir, "serve", env=environment)
    async with running_process(serve, port=port):
        for path in (b"/v1/lease", b"/v1/connections", b"/oauth/token"):
            head = HEAD % (path, key.encode())
            for name, (first, *later) in WRONG.items():
                got = await raw(port, head + first, *later)
                assert got.startswith(b"HTTP/1.1 400 "), (path, name, got[:300])
                assert got.count(b"HTTP/1.1 ") == 1, (path, name)
                if first.startswith(CHUNKED):
                    assert isinstance(json.loads(got.partition(b"\r\n\r\n")[2]), dict), (path, name, got)


@pytest.mark.parametrize("before", [(), ({"type": "http.request", "body": b"{", "more_body": True},)])
async def test_a_body_that_is_cut_off_is_no_failure_of_ours(
    api: Api, before: tuple[dict[str, object], ...], caplog: pytest.LogCaptureFixture
):
    """granian tells an application of a malformed chunk as of a caller that has gone."""
    _, key = await api.active_for("pipeline", Action.TOKEN)
    messages, sent = [*before, {"type": "http.disconnect"}], list[dict[str, object]]()

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    headers = [(b"host", b"evergrant.test"), (b"authorization", f"Bearer {key}".encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/lease",
        "raw_path": b"/v1/lease",
        "headers": headers,
    }
    scope |= {"query_string": b"", "scheme": "https", "http_version": "1.1", "root_path": "", "state": {}}
    await api.app({**scope, "client": ("127.0.0.1", 1), "server": ("evergrant.test", 443)}, receive, send)
    assert sent[0]["status"] == 400
    assert "Traceback" not in caplog.text
