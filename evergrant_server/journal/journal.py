"""The journal of one worker, and what it can read in those of the other workers on its host.

An attempt names its journal, not a process: the process that holds the lock of the journal's
directory owns the attempt, and a free lock means that the owner is gone. The kernel releases a
`flock` when its process dies.
"""

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.single_use.attempt import UNSEEN, Attempt, AttemptStatus
from evergrant_server.journal.entry import ENTRY_SUFFIX, SET_ASIDE_SUFFIX, JournalEntry
from evergrant_server.journal.reservation import (
    RESERVATION_SUFFIX,
    JournalReservation,
    read_unsent_header,
    remove_reservation,
    reservation_age_s,
)

P = ParamSpec("P")
T = TypeVar("T")

_MAX_LOCKED = 50  # entries of other workers at a time: each needs a file descriptor
_SET_ASIDE_BATCH = 50
_THREADS = 8


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
            why = f"the journal folder {folder} can't be used: {error.strerror}"
            repair = "Give the worker a folder of its own that it can write: EVERGRANT_DATA_DIR."
            raise Failure(ErrorCode.STORE_UNAVAILABLE, why, repair=repair) from None

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


class Journal:
    """The journals of one host, as the worker sees them that owns one."""

    def __init__(self, folder: Path) -> None:
        """Raises Failure STORE_UNAVAILABLE when the folder can't be used."""
        self._lock = JournalLock(folder)
        self.id = self._lock.id
        self.folder = folder
        self._directory = folder / self.id
        self._live: set[AttemptId] = set()
        # entries of other workers: when they were first seen, in seconds since boot
        self._first_seen: dict[Path, float] = {}
        self._last_set_aside: Path | None = None  # where the next batch begins
        self._threads = ThreadPoolExecutor(_THREADS, "journal")

    def reserve(self, attempt: Attempt) -> JournalReservation:
        """Reserve space for its reply. Raises Failure JOURNAL_UNAVAILABLE when there is none."""
        return JournalReservation(self._directory, attempt, self._live)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking disk work in a thread of the journal: the event loop's are shared with the resolver,
        and a slow name server must not delay a reply. Raises what `work` raises."""
        doing = self._threads.submit(work, *args, **kwargs)
        return await asyncio.wrap_future(doing)

    def status_of(self, attempt: Attempt) -> AttemptStatus:
        """The status of an attempt. The order counts: a dead owner writes no more entries."""
        alive = self._lock.is_held(attempt.journal_id)
        if alive is None:
            return UNSEEN
        mine = attempt.journal_id == self.id
        reservation = self._path(attempt, RESERVATION_SUFFIX)
        under_way = attempt.id in self._live if mine else alive and reservation.exists()
        # a reservation is renamed to an entry: checked in this order, none is missed
        gone = not under_way and (mine or not alive)
        answered = self._path(attempt, ENTRY_SUFFIX).exists()
        answered = answered or (gone and JournalEntry.is_complete(reservation))
        age = reservation_age_s(reservation) if under_way and not mine else None
        return AttemptStatus(
            alive, under_way, answered, gone and read_unsent_header(reservation) is not None, age
        )

    def fence(self, attempt: Attempt) -> bool:
        """Keep its owner from sending, as far as this host can. False while it is sending."""
        if attempt.journal_id == self.id or self._lock.is_held(attempt.journal_id) is not True:
            return True
        return remove_reservation(self._path(attempt, RESERVATION_SUFFIX))

    def owner_of(self, attempt_id: AttemptId) -> str | None:
        """The journal that has its reservation or entry, for an attempt without a row; None: none here."""
        paths = (
            path
            for suffix in (RESERVATION_SUFFIX, ENTRY_SUFFIX)
            for path in self.folder.glob(f"*/{attempt_id}{suffix}")
        )
        return next((path.parent.name for path in paths), None)

    def own_paths(self) -> list[Path]:
        """The entries of this journal, and the reservations that an earlier owner left."""
        return [path for path in _paths_in(self._directory) if attempt_id_of(path) not in self._live]

    @contextmanager
    def abandoned_paths(self) -> Iterator[list[Path]]:
        """Entries and reservations of owners that are gone, locked for the length of the block."""
        paths: list[Path] = []
        locks: list[int] = []
        try:
            for directory in sorted(self.folder.iterdir()):
                if directory.is_dir() and directory != self._directory and _paths_in(directory):
                    fd = try_directory(directory)
                    if fd is not None:
                        locks.append(fd)
                        paths += _paths_in(directory)
            yield paths
        finally:
            for fd in locks:
                os.close(fd)

    @contextmanager
    def overdue_paths(self, after_s: float) -> Iterator[list[Path]]:
        """Old entries of living owners, which are stopped or can't reach the store.

        Each is locked for the length of the block, so that one worker replays it. The owner may
        continue at any moment: its commit then finds that the attempt has ended.
        """
        others = (
            entry for entry in self.folder.glob(f"*/*{ENTRY_SUFFIX}") if entry.parent != self._directory
        )
        since = {entry: self._first_seen.get(entry, seconds_since_boot()) for entry in others}
        self._first_seen = since
        locks: dict[Path, int] = {}
        try:
            for path, seen in since.items():
                if len(locks) == _MAX_LOCKED:
                    break
                if seconds_since_boot() - seen >= after_s and self._lock.is_held(path.parent.name):
                    fd = try_lock(path)
                    if fd is not None:
                        locks[path] = fd
            yield sorted(locks)
        finally:
            for fd in locks.values():
                os.close(fd)

    def set_aside_batch(self) -> list[Path]:
        """Some of the entries that were set aside on this host; the next call returns the following ones."""
        _, set_aside = waiting_paths(self.folder)
        last = self._last_set_aside
        turn = ([path for path in set_aside if last is not None and path > last] or set_aside)[
            :_SET_ASIDE_BATCH
        ]
        self._last_set_aside = turn[-1] if turn else None
        return turn

    def count_waiting(self) -> tuple[int, int]:
        """How many entries of this host wait, and how many were set aside."""
        waiting, aside = waiting_paths(self.folder)
        return len(waiting), len(aside)

    def set_aside(self, path: Path) -> Path:
        """Rename an entry that can't be read; doctor and a metric report it."""
        aside = path.with_suffix(SET_ASIDE_SUFFIX)
        with suppress(FileNotFoundError):  # another worker of this host was faster
            os.rename(path, aside)
        return aside

    def release(self) -> None:
        """Release the directory: any worker of the host may replay its entries."""
        self._lock.release()
        self._threads.shutdown(wait=False)

    def _path(self, attempt: Attempt, suffix: str) -> Path:
        return self.folder / attempt.journal_id / f"{attempt.id}{suffix}"


def _paths_in(directory: Path) -> list[Path]:
    return sorted([*directory.glob(f"*{ENTRY_SUFFIX}"), *directory.glob(f"*{RESERVATION_SUFFIX}")])


def attempt_id_of(path: Path) -> AttemptId:
    return AttemptId(path.stem)


def waiting_paths(folder: Path) -> tuple[list[Path], list[Path]]:
    """The entries that wait and those set aside as unreadable, of all journals below a folder."""
    return sorted(folder.glob(f"*/*{ENTRY_SUFFIX}")), sorted(folder.glob(f"*/*{SET_ASIDE_SUFFIX}"))
