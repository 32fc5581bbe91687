"""A token in a file: replaced as a whole, readable by one user, and never over a file of somebody else's."""

import fcntl
import grp
import os
import pwd
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Self

from evergrant.delivery.delivery import Format, rendered
from evergrant.errors import BadRequest
from evergrant.grant_files import file_error, keep_out_of_git
from evergrant.lease import Lease


class TokenFile:
    """The file at `path`. `.NAME.evergrant` beside it says that it is ours, and is locked while we run."""

    def __init__(self, path: Path, *, mode: int = 0o600, owner: str | None = None) -> None:
        """`owner` is USER or USER:GROUP. Raises BadRequest for an unknown one, or a mode for everybody."""
        if mode & 0o007:
            why = f"a token's file of mode {mode:04o} is open to every user of this machine"
            raise BadRequest(why, code="invalid_request", repair="Give 0600, 0640 or less.")
        self._path, self._mode = path.absolute(), mode
        self._owner = None if owner is None else _ids(owner)
        self._mark = self._path.with_name(f".{path.name}.evergrant")
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Take the file. Raises BadRequest where another process has it, or a file of others is there."""
        if self._path.exists() and not self._mark.exists():
            why = f"{self._path} is there, and wasn't written by this command"
            raise BadRequest(why, code="file_exists", repair="Name another file, or remove this one first.")
        try:
            self._lock = os.open(self._mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            why = f"another process keeps {self._path} fresh"
            raise BadRequest(why, code="file_exists", repair="Stop that one, or name another file.") from None
        except OSError as error:
            raise file_error(self._mark, error) from None
        keep_out_of_git(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, lease: Lease, format: Format) -> bool:
        """Replace the file as a whole, unless it has this text. Raises OSError."""
        text = rendered(lease, format).encode()
        with suppress(OSError):
            if self._path.read_bytes() == text:
                return False
        descriptor, temporary = mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                if self._owner is not None:
                    os.fchown(file.fileno(), *self._owner)
                os.fchmod(file.fileno(), self._mode)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self._sync()
        return True

    def remove(self) -> bool:
        """Delete the file. Raises OSError."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        self._sync()
        return True

    def _sync(self) -> None:
        """Have the folder's entry on disk: a deleted token doesn't come back with a power cut."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _ids(owner: str) -> tuple[int, int]:
    """The numbers of USER or USER:GROUP; -1 leaves the group as it is."""
    user, _, group = owner.partition(":")
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        why = f"there is no user or group {owner} on this machine"
        raise BadRequest(why, code="invalid_request", repair="Correct --owner.") from None
    return uid, gid
