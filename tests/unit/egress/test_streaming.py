"""The streaming transport against real servers on loopback: what is kept, what is cut, and what is never sent
twice."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import EgressPolicy, StreamingTransport, UpstreamClosed, connection
from evergrant_server.egress.transport import GuardedBackend
from tests.fakes.certificates import Authority
from tests.fakes.http_server import listening
from tests.fakes.patience import eventually
from tests.fakes.ports import free_port

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LENGTH, CHUNKED = [(b"Content-Length", b"6")], [(b"Transfer-Encoding", b"chunked")]


class Server:
    """Answers each request with the next of `answers`, the last one for good. `heads`: what came."""

    def __init__(self, *answers: bytes, closes: bool = False) -> None:
        self.answers, self.closes = list(answers), closes
        self.heads: list[bytes] = []
        self.connections = self.closed = 0

    async def talk(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
                if self.closes:
                    return
        finally:
            self.closed += 1


@asynccontextmanager
async def sending_to(
    talk: Callable[[Reader, Writer], Awaitable[None]], silence_s: float = 60.0
) -> AsyncIterator[tuple[StreamingTransport, str]]:
    async with listening(talk) as port:
        transport = StreamingTransport(EgressPolicy(allow=(f"127.0.0.1:{port}",)), silence_s=silence_s)
        yield transport, f"http://127.0.0.1:{port}"
        await transport.aclose()


async def get(transport: StreamingTransport, url: str, method: str = "GET") -> tuple[int, bytes]:
    async with transport.send(method, url, b"/x", []) as answer:
        return answer.status, b"".join([piece async for piece in answer.chunks])


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        ("GET", OK, b"ok"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n", b"ok"),
    ],
)
async def test_a_connection_is_kept_after_a_response_that_has_ended(method: str, answer: bytes, body: bytes):
    server = Server(answer)
    async with sending_to(server.talk) as (transport, url):
        got = [await get(transport, url, method) for _ in range(3)]
    status = 200 if b" 200 " in answer else int(answer[9:12])
    assert got == [(status, body)] * 3
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        OK + b"nonsense",
    ],
    ids=["closes", "of HTTP/1.0", "with a second response", "with more behind it"],
)
async def test_a_connection_is_not_kept_after_a_response(answer: bytes):
    server = Server(answer)
    async with sending_to(server.talk) as (transport, url):
        assert [await get(transport, url) for _ in range(3)] == [(200, b"ok")] * 3
    assert server.connections == 3


async def test_a_response_without_a_length_ends_with_its_connection():
    server = Server(b"HTTP/1.1 200 OK\r\n\r\nok", closes=True)
    async with sending_to(server.talk) as (transport, url):
        assert await get(transport, url) == (200, b"ok")


async def test_what_comes_unasked_is_never_the_answer_to_the_next_request():
    """Response splitting: a server that sends two responses to one request, the second one a moment later."""
    late = asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await late.wait()
        writer.write(OK.replace(b"ok", b"no"))
        await writer.drain()
        late.clear()
        await reader.read()

    async with sending_to(talk) as (transport, url):
        assert await get(transport, url) == (200, b"ok")
        late.set()

        async def is_sent() -> bool:
            return not late.is_set()

        await eventually(is_sent)
        late.set()
        assert await get(transport, url) == (200, b"ok")


async def test_what_comes_before_a_request_is_not_its_answer():
    """A caller that is slow with its body leaves a server that was tricked into a second response time."""
    asked, written = asyncio.Event(), asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asked.wait()
        writer.write(OK.replace(b"ok", b"no"))
        await writer.drain()
        written.set()
        await reader.read()

    async def slow() -> AsyncIterator[bytes]:
        asked.set()
        await written.wait()
        await asyncio.sleep(0.05)  # it is in the socket: the event loop reads it now
        yield b"abcdef"

    async with sending_to(talk) as (transport, url):
        assert await get(transport, url) == (200, b"ok")
        with pytest.raises(Failure) as caught:
            async with transport.send("POST", url, b"/x", LENGTH, slow()):
                pass
    assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE


@pytest.mark.parametrize(
    ("begun", "endless"),
    [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (OK[:17], b"X: y\r\n"), (OK[:17] + b"X: ", b"a" * 1000)],
    ids=["interim responses", "headers", "a header"],
)
async def test_a_head_without_an_end_is_left(begun: bytes, endless: bytes):
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begun)
        while True:
            writer.write(endless)
            await writer.drain()

    async with sending_to(talk) as (transport, url):
        with pytest.raises(Failure) as caught:
            await get(transport, url)
    assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE


@pytest.mark.parametrize(("begun", "endless"), [(b"1;", b"e" * 1000), (b"", b"0" * 1000)])
async def test_a_chunk_without_a_size_is_left(begun: bytes, endless: bytes):
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + begun)
        while True:
            writer.write(endless)
            await writer.drain()

    async with sending_to(talk) as (transport, url):
        with pytest.raises(UpstreamClosed):
            await get(transport, url)


async def test_a_connection_that_the_server_has_closed_gets_no_request():
    server = Server(OK, closes=True)
    async with sending_to(server.talk) as (transport, url):
        for _ in range(20):
            assert await get(transport, url) == (200, b"ok")
    assert server.connections == len(server.heads) == 20


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "_KEEP_S", 0.05)
    server = Server(OK)
    async with sending_to(server.talk) as (transport, url):
        await get(transport, url)

        async def closed() -> int:
            return server.closed

        assert await eventually(closed) == 1
        await get(transport, url)
    assert server.connections == 2


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED], ids=["a length", "chunks"])
async def test_a_request_whose_answer_was_lost_is_not_sent_again(framing: list[tuple[bytes, bytes]]):
    seen: list[bytes] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        if len(seen) > 1:
            return
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        seen.append(b"again")

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    async with sending_to(talk) as (transport, url):
        await get(transport, url)
        with pytest.raises(Failure) as caught:
            async with transport.send("POST", url, b"/x", framing, body()):
                pass
    assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE
    assert len(seen) == 2, "one request each"


async def test_an_answer_before_the_whole_request_arrives():
    """RFC 9112 section 9.3: the rest isn't sent, and the connection isn't kept."""
    connections = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.Event().wait()  # it reads no more

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65_536)

    async with sending_to(talk) as (transport, url):
        for _ in range(2):
            async with transport.send("POST", url, b"/x", CHUNKED, endless()) as answer:
                assert answer.status == 413
    assert connections == 2


async def test_a_body_of_chunks_arrives_whole():
    got = b""

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal got
        await reader.readuntil(b"\r\n\r\n")
        got = await reader.readuntil(b"0\r\n\r\n")
        writer.write(OK)
        await reader.read()

    async def body() -> AsyncIterator[bytes]:
        for piece in (b"abc", b"", b"d" * 17):
            yield piece

    async with (
        sending_to(talk) as (transport, url),
        transport.send("POST", url, b"/x", CHUNKED, body()) as answer,
    ):
        assert answer.status == 200
    assert got == b"3\r\nabc\r\n11\r\n" + b"d" * 17 + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
async def test_a_silent_server_is_left(begun: bytes):
    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(begun)
        await asyncio.Event().wait()

    async with sending_to(talk, silence_s=0.1) as (transport, url):
        with pytest.raises(UpstreamClosed if begun else Failure, match="in time"):
            await get(transport, url)


async def test_a_server_that_reads_nothing_is_left():
    async def talk(reader: Reader, writer: Writer) -> None:
        await asyncio.Event().wait()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65_536)

    async with sending_to(talk, silence_s=0.2) as (transport, url):
        with pytest.raises(Failure, match="in time"):
            async with transport.send("POST", url, b"/x", CHUNKED, endless()):
                pass


async def test_a_reader_that_waits_stops_the_server():
    """A stream of any length passes in bounded memory: what isn't read yet is held at the server."""
    written = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65_536))
            await writer.drain()
            written += 65_536

    async with sending_to(talk) as (transport, url), transport.send("GET", url, b"/x", []) as answer:
        await asyncio.sleep(0.3)
        held = written
        assert held < 32 << 20, "the sockets' buffers, and no more"
        read = 0
        async for piece in answer.chunks:
            read += len(piece)
            assert len(piece) <= 512 * 1024
            if read > held + (1 << 20):
                break


async def test_leaving_early_closes_the_connection():
    gone = asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await reader.read()
        gone.set()

    async with sending_to(talk) as (transport, url):
        async with transport.send("GET", url, b"/x", []) as answer:
            assert await anext(answer.chunks) == b"abc"
        async with asyncio.timeout(60):
            await gone.wait()


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch):
    async def two(self: GuardedBackend, host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr(GuardedBackend, "checked_addresses", two)
    async with sending_to(Server(OK).talk) as (transport, url):
        assert await get(transport, url) == (200, b"ok")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_a_server_that_is_not_there(host: str):
    port = free_port()
    transport = StreamingTransport(EgressPolicy(allow=(f"{host}:{port}",)), silence_s=60)
    with pytest.raises(Failure) as caught:
        await get(transport, f"http://{host}:{port}")
    assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE


@pytest.mark.parametrize("name", ["localhost", "elsewhere.test"])
async def test_tls_is_verified_by_name(tmp_path: Path, name: str):
    authority = Authority()
    issued = authority.issue(dns=(name,))
    (tmp_path / "chain.pem").write_text(issued.certificate)
    (tmp_path / "key.pem").write_text(issued.private)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    trusting = ssl.create_default_context(cadata=authority.pem)
    trusting.verify_flags &= (
        ~ssl.VERIFY_X509_STRICT
    )  # from Python 3.13 on; this authority has no key identifier
    server = Server(OK)
    async with listening(server.talk, tls=serving) as port:
        transport = StreamingTransport(EgressPolicy(allow=(f"localhost:{port}",)), silence_s=60, tls=trusting)
        url = f"https://localhost:{port}"
        if name == "localhost":
            assert [await get(transport, url) for _ in range(3)] == [(200, b"ok")] * 3
            assert server.connections == 1
        else:
            with pytest.raises(Failure) as caught:
                await get(transport, url)
            assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE
            assert server.heads == []
        await transport.aclose()


@pytest.mark.parametrize("header", [(b"X", b"a\r\nY: b"), (b"X Y", b"a"), (b"X\n", b"a"), (b"X", b"a\0")])
async def test_a_header_that_no_server_reads_as_one_is_not_sent(header: tuple[bytes, bytes]):
    server = Server(OK)
    async with sending_to(server.talk) as (transport, url):
        with pytest.raises(Failure):
            async with transport.send("GET", url, b"/x", [header]):
                pass
    assert server.connections == 0
