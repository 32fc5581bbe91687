"""The space reserved on disk for a reply, before its credential is sent.

A file `<attempt>.room` says that its attempt is in flight. Once the reply is written to it, it is
renamed to `<attempt>.entry` (`evergrant_server.journal.entry`).
"""

import errno
import fcntl
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.single_use.attempt import Attempt
from evergrant_server.crypto import SealingKey, seal
from evergrant_server.journal.entry import ENTRY_SUFFIX, EntryHeader, JournalEntry

RESERVATION_SUFFIX = ".room"
RESERVED_BYTES = 256 * 1024  # three tokens of the longest kind, and the rest of a reply
_UNSENT, _SENT = b" unsent\n", b" sent  \n"


class JournalReservation:
    """Reserved space for the reply of one attempt. Blocking calls: use a thread."""

    def __init__(self, directory: Path, attempt: Attempt, live: set[AttemptId]) -> None:
        """Reserve the space. `live` holds the attempt's id for as long as the reservation is used.

        Raises Failure JOURNAL_UNAVAILABLE: a full disk is found before anything is sent.
        """
        self._directory = directory
        self._live = live
        self._path = directory / f"{attempt.id}{RESERVATION_SUFFIX}"
        self.header = EntryHeader.of(attempt)
        live.add(attempt.id)  # before the file exists: a sweep deletes reservations that are not live
        try:
            self._fd: int | None = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            live.discard(attempt.id)
            raise _journal_full(directory, error) from None
        try:
            os.posix_fallocate(self._fd, 0, RESERVED_BYTES)
            # not synced: its mark is void after a crash of the machine, and a reply is synced with its name
            os.pwrite(self._fd, _boot_id() + _UNSENT + self.header.model_dump_json().encode() + b"\n", 0)
        except OSError as error:
            self.release()
            raise _journal_full(directory, error) from None

    @property
    def is_open(self) -> bool:
        """False once an entry was written, or it was released."""
        return self._fd is not None

    def begin_send(self) -> bool:
        """Begin to send; False when another worker of this host has fenced this attempt off.

        Locked until `end_send`: meanwhile it can't be fenced off.
        """
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # it is being fenced off now
        if os.fstat(self._fd).st_nlink == 0:
            self.end_send()
            return False
        os.pwrite(self._fd, _SENT, len(_boot_id()))  # from here on it counts as sent
        return True

    def end_send(self) -> None:
        """The bytes are written, or won't be."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write_entry(self, key: SealingKey, reply: bytes) -> JournalEntry:
        """Seal the reply, fsync it, rename the file and fsync the directory. Raises OSError.

        A worker that dies before it renames the file leaves a complete entry all the same.
        """
        if self._fd is None:
            raise OSError(errno.EBADF, "this reservation was released")
        sealed = seal(key, self.header.associated_data, reply)
        if os.fstat(self._fd).st_nlink == 0:  # fenced off after it was sent: the reply is late
            self._close_file()
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        header = self.header.with_digest_of(sealed)
        content = header.model_dump_json().encode() + b"\n" + sealed
        os.ftruncate(self._fd, len(content))  # first: from the last byte on the file is complete
        written = 0
        while written < len(content):
            written += os.pwrite(self._fd, content[written:], written)
        os.fsync(self._fd)
        path = self._path.with_suffix(ENTRY_SUFFIX)
        os.rename(self._path, path)
        sync_directory(self._directory)
        self._close()
        return JournalEntry(path, header, sealed)

    def release(self) -> None:
        """Delete the reservation. Does nothing once an entry was written."""
        if self._fd is not None:
            self._close()
            with suppress(OSError):  # the next owner deletes it
                self._path.unlink(missing_ok=True)

    def abandon(self, error: BaseException) -> None:
        """Release it after the intent failed with `error`: nothing was sent.

        The intent may be committed all the same, if it was cancelled or the store's answer was lost:
        then the file stays, and shows that the credential was not used.
        """
        if isinstance(error, Failure) and error.code is not ErrorCode.STORE_UNAVAILABLE:
            self.release()
        else:
            self._close()

    def _close(self) -> None:
        self._close_file()
        self._live.discard(self.header.attempt_id)

    def _close_file(self) -> None:
        fd, self._fd = self._fd, None  # its number may be another file's from here on, also when this fails
        if fd is not None:
            with suppress(OSError):  # what counts was synced
                os.close(fd)


def read_unsent_header(path: Path) -> EntryHeader | None:
    """The header of a reservation whose owner is gone and certainly sent nothing; None otherwise.

    The mark is valid within one boot of the machine: after a crash of the machine nothing is certain.
    """
    return _header(path, (_UNSENT,))


def reservation_age_s(path: Path) -> float | None:
    """Age of a reservation, in seconds since boot; None when it isn't known."""
    header = _header(path, (_UNSENT, _SENT))
    return None if header is None or header.began_at is None else seconds_since_boot() - header.began_at


def _header(path: Path, marks: tuple[bytes, ...]) -> EntryHeader | None:
    """The header, if the file has one of these marks and was made since this boot."""
    try:
        with path.open("rb") as file:
            if file.read(len(_boot_id() + _UNSENT)) not in [_boot_id() + mark for mark in marks]:
                return None
            return EntryHeader.model_validate_json(file.readline())
    except (OSError, ValidationError):
        return None


def rename_complete(path: Path) -> Path | None:
    """Name a reservation of a dead owner an entry, if it holds a complete reply; None: it holds none.

    Raises OSError.
    """
    if not JournalEntry.is_complete(path):
        return None
    entry = path.with_suffix(ENTRY_SUFFIX)
    os.rename(path, entry)
    sync_directory(path.parent)
    return entry


def remove_reservation(path: Path) -> bool:
    """Delete the reservation of another worker's attempt, so that it can't send any more.

    False while it is between its check and its last byte.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # its section has ended
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def sync_directory(directory: Path) -> None:
    """Make a rename durable: it is, once its directory is on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@cache
def _boot_id() -> bytes:
    """The id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _journal_full(directory: Path, error: OSError) -> Failure:
    why = error.strerror or type(error).__name__
    return Failure(ErrorCode.JOURNAL_UNAVAILABLE, f"The journal {directory} has no space for a reply: {why}.")
