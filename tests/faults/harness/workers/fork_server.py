"""The fork server: imports once, with the points marked, and forks a worker for each connection.

python -m tests.faults.harness.workers.fork_server SOCKET [BROKEN...]
"""

import ctypes
import gc
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def serve(path: str) -> None:
    """Fork a worker for every connection but the first, which rehearses here."""
    from tests.faults.harness.workers import worker

    worker.shorten()
    worker.read_catalogue()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    print("warm", flush=True)
    worker.rehearse(listening.accept()[0])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the dead away
    gc.freeze()
    while True:
        line, _ = listening.accept()
        if os.fork():
            line.close()
            continue
        listening.close()
        _dies_with_its_parent()
        try:
            worker.main(line)
        finally:
            os._exit(0)


def _dies_with_its_parent() -> None:
    """A killed harness leaves no process behind, not even a stopped one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(path: str, *broken: str) -> None:
    from tests.faults.harness.instrumentation import broken_builds, points

    _dies_with_its_parent()
    points.install(dict(broken_builds.BUILDS[name] for name in broken))
    serve(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
