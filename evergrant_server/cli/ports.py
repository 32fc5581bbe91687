"""Whether a port can be listened on, before a process is started that would."""

import socket

from evergrant_server.settings import BadSettings


def require_free_port(setting: str, host: str, port: int) -> None:
    """Raise BadSettings when another process listens on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadSettings(
                f"{setting}: {host}:{port} can't be used ({error.strerror}); "
                "stop the process that listens there, or choose another port"
            ) from None
