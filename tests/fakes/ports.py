"""Ports of the loopback interface, for servers that can't choose one and say which."""

import os
import random
import socket
from collections.abc import Iterator

# Below the range that systems hand out themselves: a free port is not given to
# another process's connection, or to a server that binds port 0, before its server has come up.
_FIRST, _PAST = 20_000, 32_000
_OF_ONE_PROCESS = 500


def _of_this_process() -> Iterator[int]:
    """Round and round, so that a port comes again as late as possible; no other test process has them."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + number * _OF_ONE_PROCESS % (_PAST - _FIRST)
    # A process that a test starts has the test's number: it begins somewhere else.
    at = random.randrange(_OF_ONE_PROCESS)
    while True:
        yield first + at
        at = (at + 1) % _OF_ONE_PROCESS


_ports = _of_this_process()


def free_port() -> int:
    """A free port that is given out only once."""
    for _ in range(_OF_ONE_PROCESS):
        port = next(_ports)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of {_OF_ONE_PROCESS} ports is free")
