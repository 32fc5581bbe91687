"""What commands need of this machine: ports that are free, and files that only this user reads."""

import os
import socket
from pathlib import Path

from evergrant_server.settings import BadSettings


def require_free_port(setting: str, host: str, port: int) -> None:
    """Raise BadSettings when another process listens on the port."""
    if (problem := port_problem(host, port)) is not None:
        repair = "stop the process that listens there, or choose another port"
        raise BadSettings(f"{setting}: {problem}; {repair}")


def port_problem(host: str, port: int) -> str | None:
    """Why the port can't be listened on; None when it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}:{port} can't be used ({error.strerror})"
    return None


def free_port_after(host: str, port: int) -> int | None:
    """A port that can be listened on, ten or more above the one that can't."""
    return next(
        (candidate for candidate in range(port + 10, 65536, 10) if port_problem(host, candidate) is None),
        None,
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, replacing an existing one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
