"""What is erased for good, and the legal holds that forbid it. Pure.

The row of an erasure says what was ordered and how far it has come; its workflow only calls until nothing is
left. The name of a subject stands in both kinds of rows until the subject is erased; then a keyed hash does.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ErasureId, LegalHoldId, TenantRow


class TargetKind(StrEnum):
    """What an erasure or a hold is about."""

    CONNECTION = "connection"  # `target` is its id
    SUBJECT = "subject"  # `target` is the subject, as apps name it: all its connections, and what it did
    TENANT = "tenant"  # `target` is the tenant's name: everything


class ErasureState(StrEnum):
    REVOKING = "revoking"  # connections are revoked at their providers, and erased one by one
    ERASING = "erasing"  # the other rows, and the audit records
    DONE = "done"
    REFUSED = "refused"  # a legal hold came before it had ended: what is erased stays erased


class Erasure(TenantRow):
    """One erasure. The counts are of what it has erased so far.

    `waits_until`: a connection whose provider hasn't confirmed its revocation by then is erased all the same.
    `waiting` counts the connections that weren't ready when they were last looked at. `shard` and `after` say
    where the next step goes on.
    """

    id: ErasureId
    kind: TargetKind
    target: str
    target_hash: str
    reason: str
    by: str
    state: ErasureState = ErasureState.REVOKING
    created_at: datetime
    waits_until: datetime
    connections: int = 0
    unconfirmed: int = 0  # of these connections: the provider hasn't confirmed that all tokens are revoked
    keys: int = 0
    rows: int = 0
    records: int = 0
    waiting: int = 0
    shard: str = ""
    after: str = ""
    hold_id: LegalHoldId | None = None
    finished_at: datetime | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What it has erased so far, for its record and its result."""
        return {
            "connections": self.connections,
            "unconfirmed": self.unconfirmed,
            "keys": self.keys,
            "rows": self.rows,
            "records": self.records,
        }

    def connection_erased(self, outcome: RevocationOutcome | None, keys: int, rows: int) -> "Erasure":
        return self.__replace__(
            connections=self.connections + 1,
            unconfirmed=self.unconfirmed + (outcome not in _CONFIRMED),
            keys=self.keys + keys,
            rows=self.rows + rows,
        )

    def refused(self, hold: "LegalHold", at: datetime) -> "Erasure":
        return self.__replace__(state=ErasureState.REFUSED, hold_id=hold.id, finished_at=at)

    def done(self, at: datetime) -> "Erasure":
        """The end. The subject's name is erased, too."""
        target = "" if self.kind is TargetKind.SUBJECT else self.target
        return self.__replace__(state=ErasureState.DONE, target=target, waiting=0, finished_at=at)


_CONFIRMED = (RevocationOutcome.CONFIRMED, RevocationOutcome.NOTHING_HELD)


class LegalHold(TenantRow):
    """Nothing of its target is erased or pruned while it lasts: until it is ended, or `until`."""

    id: LegalHoldId
    kind: TargetKind
    target: str
    target_hash: str
    reason: str
    by: str
    created_at: datetime
    until: datetime | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None
    end_reason: str | None = None

    def is_active(self, now: datetime) -> bool:
        return self.ended_at is None and (self.until is None or now < self.until)

    def ended(self, by: str, reason: str, at: datetime) -> "LegalHold":
        return self.__replace__(ended_at=at, ended_by=by, end_reason=reason)


def targets_of(holds: Iterable[LegalHold], kind: TargetKind) -> set[str]:
    """What holds of this kind are about."""
    return {hold.target for hold in holds if hold.kind is kind}


def under_hold(hold: LegalHold) -> Failure:
    """The failure that names the hold."""
    until = "until it is ended" if hold.until is None else f"until {hold.until.isoformat()}"
    why = f"The legal hold {hold.id} on this {hold.kind} forbids it, {until}: {hold.reason}"
    return Failure(ErrorCode.UNDER_LEGAL_HOLD, why, hold_id=hold.id)
