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

from evergrant_server.core.attempt import Attempt, AttemptKind
from evergrant_server.core.clock import elapsed
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.crypto import Place, Sealed, SealingKey, seal

ROOM, ENTRY, SET_ASIDE = ".room", ".entry", ".set-aside"
ROOM_BYTES = 256 * 1024  # three tokens of the longest kind, and what else a reply says
_FORMAT = 1
_UNSENT, _SENT = b" unsent\n", b" sent  \n"


class Header(BaseModel):
    """Whose answer it is. In clear, so that its key can be found; no secret."""

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    tenant: Tenant
    connection_id: ConnectionId
    attempt_id: AttemptId
    kind: AttemptKind
    from_generation: int
    began: float | None = None  # when its room was made, see `core.clock.elapsed`

    @classmethod
    def of(cls, attempt: Attempt) -> "Header":
        return cls(
            began=elapsed(),
            tenant=attempt.tenant,
            connection_id=attempt.connection_id,
            attempt_id=attempt.id,
            kind=attempt.kind,
            from_generation=attempt.from_generation,
        )

    @property
    def place(self) -> Place:
        """What the seal is bound to: a header that was changed opens nothing."""
        column = f"answer:{self.connection_id}:{self.kind}:{self.format}"
        return Place(self.tenant, "journal", self.attempt_id, column, self.from_generation)


class Entry:
    """A sealed answer that waits for the store."""

    def __init__(self, path: Path, header: Header, sealed: Sealed) -> None:
        self.path = path
        self.header = header
        self.sealed = sealed

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """Raises Failure SEAL_BROKEN when it is torn, and OSError when the disk won't."""
        first, _, sealed = path.read_bytes().partition(b"\n")
        try:
            header = Header.model_validate_json(first)
        except ValidationError:
            raise _torn(path, "has no header") from None
        if header.format != _FORMAT or path.stem != header.attempt_id or not sealed:
            raise _torn(path, "is cut short, or another's")
        return cls(path, header, Sealed(sealed))

    @property
    def aside(self) -> bool:
        """True when it was set aside before: it is looked at once more."""
        return self.path.suffix == SET_ASIDE

    def drop(self) -> None:
        """The store has it. A drop that gets lost is found out by whoever replays it."""
        self.path.unlink(missing_ok=True)


class Room:
    """Reserved space for the answer of one attempt. Blocking calls: use a thread."""

    def __init__(
        self, directory: Path, attempt: Attempt, live: set[AttemptId], size: int = ROOM_BYTES
    ) -> None:
        """`live` names it for as long as it is used.

        Raises Failure JOURNAL_UNAVAILABLE: a full disk is found before anything is sent.
        """
        self._directory = directory
        self._live = live
        self._path = directory / f"{attempt.id}{ROOM}"
        self.header = Header.of(attempt)
        live.add(attempt.id)  # before the file is there: a sweep takes a room that nobody uses away
        try:
            self._fd: int | None = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            live.discard(attempt.id)
            raise _no_room(directory, error) from None
        try:
            os.posix_fallocate(self._fd, 0, size)
            os.pwrite(self._fd, _boot() + _UNSENT + self.header.model_dump_json().encode() + b"\n", 0)
            sync_directory(directory)
        except OSError as error:
            self.release()
            raise _no_room(directory, error) from None

    def enter(self) -> bool:
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
            self.leave()
            return False
        os.pwrite(self._fd, _SENT, len(_boot()))  # from here on nobody may say that nothing was sent
        return True

    def leave(self) -> None:
        """The bytes are written, or will not be."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def keep(self, key: SealingKey, answer: bytes) -> Entry:
        """Seal the answer, fsync it, give it its name and fsync that. Raises OSError."""
        if self._fd is None:
            raise OSError(errno.EBADF, "this room was given back")
        sealed = seal(key, self.header.place, answer)
        if os.fstat(self._fd).st_nlink == 0:
            self._again()  # fenced off after it was sent: the answer is late, and kept all the same
        whole = self.header.model_dump_json().encode() + b"\n" + sealed
        written = 0
        while written < len(whole):
            written += os.pwrite(self._fd, whole[written:], written)
        os.ftruncate(self._fd, len(whole))
        os.fsync(self._fd)
        path = self._path.with_suffix(ENTRY)
        os.rename(self._path, path)
        sync_directory(self._directory)
        self._close()
        return Entry(path, self.header, sealed)

    def release(self) -> None:
        """No answer came. Does nothing once it was kept."""
        if self._fd is not None:
            self._close()
            with suppress(OSError):  # the next owner sweeps it
                self._path.unlink(missing_ok=True)

    def unused(self, error: BaseException) -> None:
        """The intent ended with `error`, and nothing was sent.

        It may stand all the same, when it was cut or the store's answer was lost: then the room stays,
        and tells whoever sweeps or takes over that this was no use.
        """
        if isinstance(error, Failure) and error.code is not Code.STORE_UNAVAILABLE:
            self.release()
        else:
            self._close()

    def _again(self) -> None:
        assert self._fd is not None
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._live.discard(self.header.attempt_id)


def unsent(path: Path) -> Header | None:
    """Whose room it is, when it is certain that its attempt, whose owner is gone, sent nothing.

    A mark that only this kernel remembers is enough to know it of a process that died; after
    the machine itself went down, nothing is certain.
    """
    return _header(path, (_UNSENT,))


def age_s(path: Path) -> float | None:
    """How long ago a room was made, in seconds of the machine's own; None when that isn't known."""
    header = _header(path, (_UNSENT, _SENT))
    return None if header is None or header.began is None else elapsed() - header.began


def _header(path: Path, marks: tuple[bytes, ...]) -> Header | None:
    """Of a room that has one of these marks and was made in this run of the machine."""
    try:
        with path.open("rb") as room:
            if room.read(len(_boot() + _UNSENT)) not in [_boot() + mark for mark in marks]:
                return None
            return Header.model_validate_json(room.readline())
    except (OSError, ValidationError):
        return None


def fence(path: Path) -> bool:
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
def _boot() -> bytes:
    """The machine's run, another one after each start of it."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _no_room(directory: Path, error: OSError) -> Failure:
    why = error.strerror or type(error).__name__
    return Failure(Code.JOURNAL_UNAVAILABLE, f"The journal {directory} has no room for an answer: {why}.")


def _torn(path: Path, why: str) -> Failure:
    return Failure(Code.SEAL_BROKEN, f"The journal entry {path} {why}.")
