"""A process that was paused past the limit still reads a response that has arrived meanwhile."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest

from evergrant_server.egress import Egress, EgressPolicy, SendObserver
from tests.fakes.patience import PATIENCE_S

LIMIT_S = 0.2

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@contextmanager
def a_server_of_its_own(answer: bytes) -> Iterator[tuple[int, Callable[[], None]]]:
    """A server in a thread, which runs while this process's event loop is paused; its port, and the pause:
    until past the limit, with the answer sent."""

    def serve() -> None:
        connection, _ = there.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            sent.set()
            ended.wait(PATIENCE_S)

    def stopped() -> None:
        assert sent.wait(PATIENCE_S)
        time.sleep(LIMIT_S * 1.5)

    there, sent, ended = socket.create_server(("127.0.0.1", 0)), threading.Event(), threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield there.getsockname()[1], stopped
    finally:
        ended.set()
        thread.join()
        there.close()


async def post(port: int, stopped: Callable[[], None]) -> httpx2.Response:
    """Send a request; the process is paused after its last byte."""
    egress = Egress(EgressPolicy(allow=(f"127.0.0.1:{port}",)), answer_timeout_s=LIMIT_S)
    async with egress.client(SendObserver(lambda: stopped)) as client:
        return await client.post(f"http://127.0.0.1:{port}/", content=b"x")


async def test_a_response_that_arrived_during_the_pause_is_read():
    """The response to a single-use credential can't be requested again."""
    with a_server_of_its_own(ANSWER) as (port, stopped):
        assert (await post(port, stopped)).text == "hello"


@pytest.mark.parametrize("so_far", [b"", ANSWER[:-1]], ids=["nothing", "not all of it"])
async def test_an_incomplete_response_times_out(so_far: bytes):
    with a_server_of_its_own(so_far) as (port, stopped), pytest.raises(httpx2.ReadTimeout):
        await post(port, stopped)
