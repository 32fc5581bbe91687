"""Requests for access: a permit that an app asks for, or one that is proposed for removal, until it is over.

Pure. The store keeps them, `workflows.decisions.access_request` waits for their moments, an admin decides.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from evergrant_server.core.access import Permit
from evergrant_server.core.ids import AccessRequestId, AppId, TenantRow

_REMINDER_INTERVAL = timedelta(days=1)
_REMINDER_INTERVAL_OF_REMOVALS = timedelta(days=7)


_UNSHOWN = {"tenant", "revision", "id", "app_id", "name", "created_at"}


def shown_permit(permit: Permit) -> dict[str, Any]:
    """What a proposal to remove it says of a permit: all that it allows or forbids, and why."""
    return permit.model_dump(mode="json", exclude=_UNSHOWN, exclude_defaults=True)


class AccessRequestKind(StrEnum):
    PERMIT = "permit"
    REMOVAL = "removal"  # proposed by a schedule: the permit has been used by no lease for long


class AccessRequestState(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"  # no admin decided in time
    ENDED = "ended"  # the access that was approved for a time is over


class AccessRequestStep(StrEnum):
    """What a request needs at a moment without a person."""

    REMIND = "remind"
    EXPIRE = "expire"
    END = "end"


class AccessRequest(TenantRow):
    """One request. `permit` holds the fields of the permit that is asked for, or of the one to remove.

    `lifetime_s`: how long the access lasts from its approval, in seconds; None: until it is removed.
    `ends_at` is the end of what was approved, `next_at` when it needs the next step.
    """

    id: AccessRequestId
    app_id: AppId
    kind: AccessRequestKind = AccessRequestKind.PERMIT
    permit_name: str
    permit: dict[str, Any]
    lifetime_s: float | None = None
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    state: AccessRequestState = AccessRequestState.WAITING
    reminders: int = 0
    decided_by: str | None = None
    decided_at: datetime | None = None
    note: str | None = None
    ends_at: datetime | None = None
    next_at: datetime | None = None

    @property
    def is_waiting(self) -> bool:
        return self.state is AccessRequestState.WAITING

    def step(self, now: datetime) -> AccessRequestStep | None:
        """What is due now, or None."""
        if self.next_at is None or now < self.next_at:
            return None
        if self.state is AccessRequestState.APPROVED:
            return AccessRequestStep.END
        return AccessRequestStep.EXPIRE if now >= self.decide_by else AccessRequestStep.REMIND

    def decided(
        self, state: AccessRequestState, by: str, now: datetime, note: str | None, ends_at: datetime | None
    ) -> "AccessRequest":
        """Approved, denied or withdrawn."""
        decision = {"state": state, "decided_by": by, "decided_at": now, "note": note}
        return self._with(**decision, ends_at=ends_at, next_at=ends_at)

    def reminded(self, now: datetime) -> "AccessRequest":
        """A reminder was sent; the next one follows, or the deadline."""
        return self._with(reminders=self.reminders + 1).with_reminder(now)

    def with_reminder(self, now: datetime) -> "AccessRequest":
        """Waiting for the next reminder, after a day (a removal: a week), or for the deadline."""
        removal = self.kind is AccessRequestKind.REMOVAL
        interval = _REMINDER_INTERVAL_OF_REMOVALS if removal else _REMINDER_INTERVAL
        return self._with(next_at=min(now + interval, self.decide_by))

    def over(self, state: AccessRequestState) -> "AccessRequest":
        """Expired or ended: nothing follows."""
        return self._with(state=state, next_at=None)

    def detail(self, app: str) -> dict[str, Any]:
        """What its audit records and events say of it."""
        detail = {
            "app": app,
            "kind": self.kind.value,
            "permit_name": self.permit_name,
            "permit": self.permit,
            "reason": self.reason,
            "requested_by": self.requested_by,
            "decide_by": self.decide_by.isoformat(),
            "decided_by": self.decided_by,
            "note": self.note,
            "ends_at": None if self.ends_at is None else self.ends_at.isoformat(),
        }
        return {name: value for name, value in detail.items() if value is not None}

    def _with(self, **changes: Any) -> "AccessRequest":
        return self.__replace__(**changes)
