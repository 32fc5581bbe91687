"""One answer on disk: room reserved before the intent, filled at once, dropped after the commit.

A file `<attempt>.room` says that its attempt is under way. Filled, it is renamed to
`<attempt>.entry`: whole, or not there. The first line is the header in clear, ids alone; the
rest is one sealed value, bound to tenant, attempt and generation (see `Header.place`).
"""

import errno
import fcntl
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind
from evergrant_server.crypto import AssociatedData, Sealed, SealingKey, seal

RESERVATION_SUFFIX, ENTRY_SUFFIX, SET_ASIDE_SUFFIX = ".room", ".entry", ".set-aside"
RESERVED_BYTES = 256 * 1024  # three tokens of the longest kind, and what else a reply says
_FORMAT = 1
_UNSENT, _SENT = b" unsent\n", b" sent  \n"


class EntryHeader(BaseModel):
    """Whose answer it is. In clear, so that its key can be found; no secret."""

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    tenant: Tenant
    connection_id: ConnectionId
    attempt_id: AttemptId
    kind: AttemptKind
    from_generation: int
    began_at: float | None = None  # when its room was made, see `core.clock.elapsed`

    @classmethod
    def of(cls, attempt: Attempt) -> "EntryHeader":
        return cls(
            began_at=seconds_since_boot(),
            tenant=attempt.tenant,
            connection_id=attempt.connection_id,
            attempt_id=attempt.id,
            kind=attempt.kind,
            from_generation=attempt.from_generation,
        )

    @property
    def associated_data(self) -> AssociatedData:
        """What the seal is bound to: a header that was changed opens nothing."""
        column = f"answer:{self.connection_id}:{self.kind}:{self.format}"
        return AssociatedData(self.tenant, "journal", self.attempt_id, column, self.from_generation)


class JournalEntry:
    """A sealed answer that waits for the store."""

    def __init__(self, path: Path, header: EntryHeader, sealed: Sealed) -> None:
        self.path = path
        self.header = header
        self.sealed = sealed

    @classmethod
    def read(cls, path: Path) -> "JournalEntry":
        """Raises Failure SEAL_BROKEN when it is torn, and OSError when the disk won't."""
        first, _, sealed = path.read_bytes().partition(b"\n")
        try:
            header = EntryHeader.model_validate_json(first)
        except ValidationError:
            raise _broken_entry(path, "has no header") from None
        if header.format != _FORMAT or path.stem != header.attempt_id or not sealed:
            raise _broken_entry(path, "is cut short, or another's")
        return cls(path, header, Sealed(sealed))

    @property
    def is_set_aside(self) -> bool:
        """True when it was set aside before: it is looked at once more."""
        return self.path.suffix == SET_ASIDE_SUFFIX

    def drop(self) -> None:
        """The store has it. A drop that gets lost is found out by whoever replays it."""
        self.path.unlink(missing_ok=True)


class JournalReservation:
    """Reserved space for the answer of one attempt. Blocking calls: use a thread."""

    def __init__(
        self, directory: Path, attempt: Attempt, live: set[AttemptId], size: int = RESERVED_BYTES
    ) -> None:
        """`live` names it for as long as it is used.

        Raises Failure JOURNAL_UNAVAILABLE: a full disk is found before anything is sent.
        """
        self._directory = directory
        self._live = live
        self._path = directory / f"{attempt.id}{RESERVATION_SUFFIX}"
        self.header = EntryHeader.of(attempt)
        live.add(attempt.id)  # before the file is there: a sweep takes a room that nobody uses away
        try:
            self._fd: int | None = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            live.discard(attempt.id)
            raise _journal_full(directory, error) from None
        try:
            os.posix_fallocate(self._fd, 0, size)
            os.pwrite(self._fd, _boot_id() + _UNSENT + self.header.model_dump_json().encode() + b"\n", 0)
            sync_directory(directory)
        except OSError as error:
            self.release()
            raise _journal_full(directory, error) from None

    def begin_send(self) -> bool:
        """Begin to send; False when another worker of this host has fenced this attempt off.

        Held until `leave`: nobody can fence it off meanwhile, and whoever wants to must wait.
        """
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # it is being fenced off this instant
        if os.fstat(self._fd).st_nlink == 0:
            self.end_send()
            return False
        os.pwrite(self._fd, _SENT, len(_boot_id()))  # from here on nobody may say that nothing was sent
        return True

    def end_send(self) -> None:
        """The bytes are written, or will not be."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write_entry(self, key: SealingKey, answer: bytes) -> JournalEntry:
        """Seal the answer, fsync it, give it its name and fsync that. Raises OSError."""
        if self._fd is None:
            raise OSError(errno.EBADF, "this room was given back")
        sealed = seal(key, self.header.associated_data, answer)
        if os.fstat(self._fd).st_nlink == 0:
            self._recreate()  # fenced off after it was sent: the answer is late, and kept all the same
        whole = self.header.model_dump_json().encode() + b"\n" + sealed
        written = 0
        while written < len(whole):
            written += os.pwrite(self._fd, whole[written:], written)
        os.ftruncate(self._fd, len(whole))
        os.fsync(self._fd)
        path = self._path.with_suffix(ENTRY_SUFFIX)
        os.rename(self._path, path)
        sync_directory(self._directory)
        self._close()
        return JournalEntry(path, self.header, sealed)

    def release(self) -> None:
        """No answer came. Does nothing once it was kept."""
        if self._fd is not None:
            self._close()
            with suppress(OSError):  # the next owner sweeps it
                self._path.unlink(missing_ok=True)

    def abandon(self, error: BaseException) -> None:
        """The intent ended with `error`, and nothing was sent.

        It may stand all the same, when it was cut or the store's answer was lost: then the room stays,
        and tells whoever sweeps or takes over that this was no use.
        """
        if isinstance(error, Failure) and error.code is not ErrorCode.STORE_UNAVAILABLE:
            self.release()
        else:
            self._close()

    def _recreate(self) -> None:
        assert self._fd is not None
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._live.discard(self.header.attempt_id)


def read_unsent_header(path: Path) -> EntryHeader | None:
    """Whose room it is, when it is certain that its attempt, whose owner is gone, sent nothing.

    A mark that only this kernel remembers is enough to know it of a process that died; after
    the machine itself went down, nothing is certain.
    """
    return _header(path, (_UNSENT,))


def reservation_age_s(path: Path) -> float | None:
    """How long ago a room was made, in seconds of the machine's own; None when that isn't known."""
    header = _header(path, (_UNSENT, _SENT))
    return None if header is None or header.began_at is None else seconds_since_boot() - header.began_at


def _header(path: Path, marks: tuple[bytes, ...]) -> EntryHeader | None:
    """Of a room that has one of these marks and was made in this run of the machine."""
    try:
        with path.open("rb") as room:
            if room.read(len(_boot_id() + _UNSENT)) not in [_boot_id() + mark for mark in marks]:
                return None
            return EntryHeader.model_validate_json(room.readline())
    except (OSError, ValidationError):
        return None


def remove_reservation(path: Path) -> bool:
    """Take the room of another worker's attempt away, so that it can't send any more.

    False while it is between its check and its last byte: it can't be stopped there.
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
    """Make names durable: a rename is safe only once its directory is on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@cache
def _boot_id() -> bytes:
    """The machine's run, another one after each start of it."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _journal_full(directory: Path, error: OSError) -> Failure:
    why = error.strerror or type(error).__name__
    return Failure(
        ErrorCode.JOURNAL_UNAVAILABLE, f"The journal {directory} has no room for an answer: {why}."
    )


def _broken_entry(path: Path, why: str) -> Failure:
    return Failure(ErrorCode.SEAL_BROKEN, f"The journal entry {path} {why}.")
