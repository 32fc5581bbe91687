"""A network of its own for each PostgreSQL server, so that one can be cut off: its packets vanish.

It needs root, `unshare`, `nsenter` and `ip`; the proof itself runs in a namespace that forwards between them.
"""

import os
import pwd
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.fakes.patience import PATIENCE_S
from tests.fakes.postgresql.program import SYSTEM_USER, make_system_user

_PROGRAMS = ("unshare", "nsenter", "ip")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_INSIDE = "EVERGRANT_PROOF_HAS_A_NETWORK"


def enter_own_network() -> bool:
    """Go on in a network of this process's own, where the system lets it; False: it stays where it is."""
    if os.environ.get(_INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        _FORWARD.write_text("1")
        return True
    if os.geteuid() or not all(shutil.which(program) for program in _PROGRAMS):
        return False
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        return False
    os.environ[_INSIDE] = "yes"
    os.execvp("unshare", ["unshare", "-n", *sys.orig_argv])


class Segment:
    """A namespace with one address; what runs `within` it reaches the other segments and the proof."""

    def __init__(self, number: int) -> None:
        self.address, self._gateway = f"10.203.{number}.2", f"10.203.{number}.1"
        self._outside, self._inside = f"evg-out{number}", f"evg-in{number}"
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
        self._path = f"/proc/{self._holder.pid}/ns/net"
        self._wait_until_apart()
        _ip("link", "add", self._outside, "type", "veth", "peer", "name", self._inside)
        _ip("link", "set", self._inside, "netns", str(self._holder.pid))
        _ip("addr", "add", f"{self._gateway}/30", "dev", self._outside)
        _ip("link", "set", self._outside, "up")
        self._ip("link", "set", "lo", "up")
        self._ip("addr", "add", f"{self.address}/30", "dev", self._inside)
        self.join()

    @property
    def within(self) -> tuple[str, ...]:
        """Words before a command that runs here, as the user of PostgreSQL."""
        make_system_user(SYSTEM_USER)
        user = pwd.getpwnam(SYSTEM_USER)
        return ("nsenter", f"--net={self._path}", f"--setuid={user.pw_uid}", f"--setgid={user.pw_gid}")

    def cut(self) -> None:
        """From now on every packet from and to this address is lost."""
        self._ip("link", "set", self._inside, "down")

    def join(self) -> None:
        """Undo `cut`."""
        self._ip("link", "set", self._inside, "up")
        self._ip("route", "replace", "default", "via", self._gateway)

    def cut_from(self, other: "Segment") -> None:
        """From now on the two lose what they send each other; everyone else reaches both."""
        for one, far in ((self, other), (other, self)):
            one._ip("route", "add", "blackhole", f"{far.address}/32")

    def join_to(self, other: "Segment") -> None:
        """Undo `cut_from`."""
        for one, far in ((self, other), (other, self)):
            one._ip("route", "del", "blackhole", f"{far.address}/32")

    def close(self) -> None:
        _ip("link", "del", self._outside)  # both ends, now: the system ends a namespace when it has time
        self._holder.kill()
        self._holder.wait(PATIENCE_S)

    def _ip(self, *words: str) -> None:
        subprocess.run(["nsenter", f"--net={self._path}", "ip", *words], check=True)

    def _wait_until_apart(self) -> None:
        """The holder is in this namespace until its `unshare` has run."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with suppress(OSError):
                if os.readlink(self._path) != os.readlink("/proc/self/ns/net"):
                    return
            time.sleep(0.01)
        raise TimeoutError("unshare made no network namespace")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
