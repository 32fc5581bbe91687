"""A process that was stopped past the limit reads what has come meanwhile, and waits for nothing else."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from evergrant_server.egress import Egress, EgressPolicy, SendObserver

LIMIT_S = 0.2
STOPPED_S = 1.0  # past the limit, and for longer than a busy machine is late

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@contextmanager
def a_server_of_its_own(answer: bytes) -> Iterator[int]:
    """In a thread: it goes on while this process's event loop stands still."""

    def serve() -> None:
        connection, _ = there.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            ended.wait(30)

    there, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield there.getsockname()[1]
    finally:
        ended.set()
        thread.join()
        there.close()


def stopped() -> None:
    time.sleep(STOPPED_S)


async def post(port: int) -> httpx2.Response:
    """The process is stopped once it has sent the last byte."""
    egress = Egress(EgressPolicy(allow=(f"127.0.0.1:{port}",)), answer_timeout_s=LIMIT_S)
    async with egress.client(SendObserver(lambda: stopped)) as client:
        return await client.post(f"http://127.0.0.1:{port}/", content=b"x")


async def test_an_answer_that_came_while_the_process_stood_still_is_read():
    """An answer to a single-use credential can't be asked for again."""
    with a_server_of_its_own(ANSWER) as port:
        assert (await post(port)).text == "hello"


@pytest.mark.parametrize("so_far", [b"", ANSWER[:-1]], ids=["nothing", "not all of it"])
async def test_what_has_not_come_by_then_is_given_up(so_far: bytes):
    with a_server_of_its_own(so_far) as port, pytest.raises(httpx2.ReadTimeout):
        await post(port)
