"""One reply on disk, sealed: the file `<attempt>.entry`, complete or absent, dropped after the commit.

The first line is the header in clear, ids and a digest; the rest is one sealed value, bound to tenant,
attempt and generation (`EntryHeader.associated_data`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind
from evergrant_server.crypto import AssociatedData, Sealed

ENTRY_SUFFIX, SET_ASIDE_SUFFIX = ".entry", ".set-aside"
_FORMAT = 1


class EntryHeader(CheckedModel):
    """The attempt that the reply belongs to. In clear, so that its key can be found; no secret."""

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    tenant: Tenant
    connection_id: ConnectionId
    attempt_id: AttemptId
    kind: AttemptKind
    from_generation: int
    began_at: float | None = None  # seconds since boot
    digest: str | None = None  # of the sealed reply: with it a file is known to be complete without a key

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

    def with_digest_of(self, sealed: bytes) -> "EntryHeader":
        return self.__replace__(digest=hashlib.sha256(sealed).hexdigest())

    @property
    def associated_data(self) -> AssociatedData:
        """What the seal is bound to: a changed header opens nothing."""
        column = f"answer:{self.connection_id}:{self.kind}:{self.format}"
        return AssociatedData(self.tenant, "journal", self.attempt_id, column, self.from_generation)


@dataclass(frozen=True)
class JournalEntry:
    """A sealed reply that the store doesn't have yet."""

    path: Path
    header: EntryHeader
    sealed: Sealed

    @classmethod
    def read(cls, path: Path) -> "JournalEntry":
        """Raises Failure SEAL_BROKEN when it is incomplete, and OSError."""
        first, _, sealed = path.read_bytes().partition(b"\n")
        try:
            header = EntryHeader.model_validate_json(first)
        except ValidationError:
            raise _broken_entry(path, "has no header") from None
        if header.format != _FORMAT or path.stem != header.attempt_id or not sealed:
            raise _broken_entry(path, "is incomplete, or of another attempt")
        return cls(path, header, Sealed(sealed))

    @classmethod
    def is_complete(cls, path: Path) -> bool:
        """Whether a file that isn't named an entry yet is one: its worker died before it renamed the file.

        Raises OSError, but not for a file that is gone.
        """
        try:
            entry = cls.read(path)
        except (Failure, FileNotFoundError):
            return False
        return entry.header.digest is not None and entry.header == entry.header.with_digest_of(entry.sealed)

    @property
    def is_set_aside(self) -> bool:
        """True when a replay has set it aside before."""
        return self.path.suffix == SET_ASIDE_SUFFIX

    def drop(self) -> None:
        """Delete it once the store has the reply. A lost deletion is noticed by the next replay."""
        self.path.unlink(missing_ok=True)


def _broken_entry(path: Path, why: str) -> Failure:
    return Failure(ErrorCode.SEAL_BROKEN, f"The journal entry {path} {why}.")
