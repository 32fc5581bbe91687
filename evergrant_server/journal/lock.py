"""The directory whose lock shows that a worker is alive.

An attempt names its journal, not a process: the process that holds the directory's lock owns
the attempt, and a free lock means that the owner is gone. The kernel releases a `flock` when
its process dies.
"""

import fcntl
import os
import secrets
from pathlib import Path

from evergrant_server.core.errors import ErrorCode, Failure


class JournalLock:
    """Holds one directory below `folder` for this process's life."""

    def __init__(self, folder: Path) -> None:
        """Lock a free directory, or make one. Raises Failure STORE_UNAVAILABLE."""
        self._folder = folder
        try:
            # `mode` doesn't apply to parents that are created
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            self.id, self._fd = self._claim_directory()
        except OSError as error:
            raise Failure(
                ErrorCode.STORE_UNAVAILABLE, f"the journal folder {folder} can't be used: {error.strerror}"
            ) from None

    def is_held(self, journal_id: str) -> bool | None:
        """True while its owner is alive, False when it died, None when this host has no such journal."""
        if journal_id == self.id:
            return True
        named = "/" not in journal_id and journal_id not in ("", ".", "..")  # "" is the folder itself
        if not named or not (self._folder / journal_id).is_dir():
            return None
        fd = try_directory(self._folder / journal_id)
        if fd is None:
            return True
        os.close(fd)
        return False

    def release(self) -> None:
        os.close(self._fd)

    def _claim_directory(self) -> tuple[str, int]:
        for directory in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            fd = try_directory(directory)
            if fd is not None:
                return directory.name, fd
        directory = self._folder / f"jrn_{secrets.token_hex(8)}"
        directory.mkdir(mode=0o700)
        fd = try_directory(directory)
        return (directory.name, fd) if fd is not None else self._claim_directory()


def try_lock(path: Path, *, create: bool = False) -> int | None:
    """Lock a file until the descriptor is closed; None when it is locked or doesn't exist."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        if create:
            raise
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def try_directory(directory: Path) -> int | None:
    """Lock a journal until the descriptor is closed; None while its owner is alive."""
    return try_lock(directory / "lock", create=True)
