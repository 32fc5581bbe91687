"""Free ports of the loopback interface."""

import socket

from bench.load import HOST


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
