"""What crosses Temporal for rotations of keys: ids and counts, never a key."""

from datetime import datetime

from evergrant_server.core.ids import KeyRotationId, Tenant
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.base import Message, Provenance, Received, RequestMessage


class KeyRotationProgress(Message):
    """How far a rotation is. `after`: the row that the step's last page ended with."""

    step: RotationStep | None = None  # None: it hasn't begun
    after: tuple[str, ...] = ()
    total: int = 0  # what there was to move when it began
    replaced: int = 0  # keys
    moved: int = 0  # keys that were wrapped anew, and values that were sealed anew
    skipped: int = 0  # in this pass: another transaction held them
    left: int = 0  # under an older key, at the last count
    zeros: int = 0  # counts in a row that found nothing
    destroyed: int = 0
    kept: int = 0  # older keys that a late reply, or a value, still needs
    broken: int = 0  # values that no key opens
    waits_for: tuple[str, ...] = ()  # the first processes that have to do something before it goes on
    passes: int = 0  # of this step
    waited_s: float = 0
    wait_s: float = 0  # before the next page
    done: bool = False


class KeyRotationStart(RequestMessage):
    """The input of a rotation's run: whose keys of which purposes, and how."""

    tenant: Tenant
    rotation_id: KeyRotationId
    kind: RotationKind
    command: RotationCommand
    purposes: tuple[str, ...] = ()  # none: all
    connection_id: str | None = None  # None: of all of the tenant's connections
    wrapped_by: tuple[str, ...] = ()  # of roots: the service's key that wraps, for each of the purposes
    begun_at: datetime
    progress: KeyRotationProgress = KeyRotationProgress()  # of the run before
    paused: bool = False


class KeyRotationCall(KeyRotationStart):
    """Go on with a rotation."""

    provenance: Provenance


class PauseKeyRotation(RequestMessage):
    """Go on no further than to the end of the page, or (`paused` False) go on."""

    paused: bool = True


class RotateDueKeys(Received):
    """Begin rotations of tenants' keys that are older than `EVERGRANT_KEY_ROTATION`."""


class RotateDueKeysResult(Message):
    begun: int = 0
    left: int = 0  # that are due, and left to the next pass
