"""A request that got no answer says which host it was for and what failed, and quotes nothing else."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from evergrant_server.egress import Egress, EgressPolicy, why_unreachable
from tests.fakes.certificates import loopback_tls


@pytest.fixture
async def ports(tmp_path: Path) -> AsyncIterator[dict[str, int]]:
    """Servers on this machine that fail in one way each."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no HTTP at all\r\n\r\n")
        await writer.drain()
        writer.close()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with AsyncExitStack() as stack:
        ports: dict[str, int] = {}
        for name, handler, tls in (
            ("closes", close, None),
            ("nonsense", nonsense, None),
            ("silent", silent, None),
            ("sealed", close, loopback_tls(tmp_path).server),
        ):
            server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
            stack.callback(server.close)
            ports[name] = server.sockets[0].getsockname()[1]
        bound = stack.enter_context(socket.socket())  # nobody listens: each connection is refused
        bound.bind(("127.0.0.1", 0))
        yield {**ports, "refuses": bound.getsockname()[1]}


@pytest.mark.parametrize(
    ("scheme", "server", "words"),
    [
        ("http", "refuses", "{host} refused the connection"),
        ("http", "closes", "{host} closed the connection without an answer"),
        ("http", "nonsense", "{host} did not answer in HTTP"),
        ("http", "silent", "{host} did not answer in time"),
        ("https", "nonsense", "{host} does not answer in TLS"),
        ("https", "sealed", "the certificate of {host} is not trusted (self-signed certificate"),
    ],
)
async def test_the_host_and_what_failed_are_named(
    ports: dict[str, int], scheme: str, server: str, words: str
) -> None:
    host = f"127.0.0.1:{ports[server]}"
    egress = Egress(EgressPolicy(allow=(host,)), answer_timeout_s=0.3)
    with pytest.raises(httpx2.TransportError) as raised:
        async with egress.client() as http:
            await http.post(f"{scheme}://{host}/canary?code=canary")
    why = why_unreachable(raised.value)
    assert why.startswith(words.format(host=host))
    assert "canary" not in why


async def test_a_name_without_an_address_is_told() -> None:
    with pytest.raises(httpx2.TransportError) as raised:
        async with Egress(EgressPolicy()).client() as http:
            await http.get("https://login.evergrant.invalid/canary")
    assert why_unreachable(raised.value) == "login.evergrant.invalid has no address in DNS"


def test_an_error_of_no_request_has_words_too() -> None:
    assert why_unreachable(httpx2.ReadTimeout("")) == "the server did not answer in time"
