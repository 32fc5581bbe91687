"""Which certificates of servers are trusted: the machine's authorities, and those of one more file."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from evergrant_server.core.errors import Failure
from evergrant_server.egress import Egress, EgressPolicy, StreamingTransport
from tests.fakes.certificates import loopback_tls
from tests.fakes.http_server import listening


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    await writer.drain()


async def streamed(transport: StreamingTransport, url: str) -> bytes:
    async with transport.send("GET", url, b"/", []) as answer:
        return b"".join([chunk async for chunk in answer.chunks])


async def test_a_private_authority_is_trusted_where_its_file_is_named(tmp_path: Path):
    """By the gateway and by workers, from one setting; its certificate is not among the machine's."""
    tls = loopback_tls(tmp_path)
    async with listening(talk, tls=tls.server) as port:
        url, allowed = f"https://127.0.0.1:{port}", (f"127.0.0.1:{port}",)
        for trusted, is_trusted in ((None, False), (tls.authorities, True)):
            policy = EgressPolicy(allowed, ca_file=trusted)
            transport = StreamingTransport(policy, silence_s=60)
            async with Egress(policy).client() as client:
                if is_trusted:
                    assert await streamed(transport, url) == b"ok"
                    assert (await client.get(url)).text == "ok"
                else:
                    with pytest.raises(Failure):
                        await streamed(transport, url)
                    with pytest.raises(httpx2.ConnectError):
                        await client.get(url)
            await transport.aclose()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_authorities_that_has_none_is_named_at_the_start(tmp_path: Path, content: str | None):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Failure, match=f"EVERGRANT_TRUSTED_CA_FILE: {file}"):
        Egress(EgressPolicy(ca_file=file))
