"""One call of an agent that a person approves: reminders, escalation and deadline, then one use.

Pure. The store keeps it, `workflows.decisions.call_approval` waits for its moments, a person decides, and the
transaction that records the call uses it up.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from evergrant_server.core.ids import AppId, CallApprovalId, ConnectionId, TenantRow

USED_WITHIN = timedelta(days=1)  # of the approval
_REMINDER_INTERVAL = timedelta(days=1)


class CallApprovalState(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"  # the call may be made, once, until `use_by`
    DENIED = "denied"
    EXPIRED = "expired"  # undecided, or approved and not used in time
    USED = "used"
    STOPPED = "stopped"  # its agent was stopped


class CallApprovalStep(StrEnum):
    """What an approval needs at a moment without a person."""

    REMIND = "remind"
    ESCALATE = "escalate"
    EXPIRE = "expire"


class CallApproval(TenantRow):
    """The request for one call. What is called is sealed in its row; `call_hash` is its keyed hash.

    `round` counts the approvals of the same call: once one is over, the call can be asked for again.
    """

    id: CallApprovalId
    app_id: AppId
    connection_id: ConnectionId
    call_hash: str
    round: int = 0
    name: str  # the call's method or tool
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    state: CallApprovalState = CallApprovalState.WAITING
    reminders: int = 0
    escalated_at: datetime | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    note: str | None = None
    use_by: datetime | None = None
    used_at: datetime | None = None
    next_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """It waits, or is approved and unused."""
        return self.state in (CallApprovalState.WAITING, CallApprovalState.APPROVED)

    @property
    def is_over(self) -> bool:
        return not self.is_open

    def is_answered_by(self, now: datetime) -> bool:
        """True while the same call gets this approval, not a new one. A denial holds until its deadline."""
        if self.state is CallApprovalState.DENIED:
            return now < self.decide_by
        return self.is_open and self.state_at(now) is self.state

    def state_at(self, now: datetime) -> CallApprovalState:
        """Its state, whether or not its workflow has noticed that a deadline has passed."""
        ends = self.decide_by if self.state is CallApprovalState.WAITING else self.use_by
        is_over = self.is_open and ends is not None and now >= ends
        return CallApprovalState.EXPIRED if is_over else self.state

    def may_be_used(self, now: datetime) -> bool:
        return self.state_at(now) is CallApprovalState.APPROVED

    def step(self, now: datetime) -> CallApprovalStep | None:
        """What is due now, or None."""
        if self.next_at is None or now < self.next_at:
            return None
        if self.state_at(now) is CallApprovalState.EXPIRED:
            return CallApprovalStep.EXPIRE
        return CallApprovalStep.ESCALATE if self._is_late(now) else CallApprovalStep.REMIND

    def reminded(self, now: datetime) -> "CallApproval":
        return self._with(reminders=self.reminders + 1).awaiting(now)

    def escalated(self, now: datetime) -> "CallApproval":
        return self._with(escalated_at=now).awaiting(now)

    def awaiting(self, now: datetime) -> "CallApproval":
        """Waiting for the next reminder, after a day; for the escalation, after half of its time; or for
        the deadline."""
        moments = [now + _REMINDER_INTERVAL, self.decide_by]
        if self.escalated_at is None:
            moments.append(max(self._half_time, now))
        return self._with(next_at=min(moments))

    def approved(self, by: str, now: datetime, note: str | None) -> "CallApproval":
        until = now + USED_WITHIN
        decision = {"decided_by": by, "decided_at": now, "note": note, "use_by": until, "next_at": until}
        return self._with(state=CallApprovalState.APPROVED, **decision)

    def denied(self, by: str, now: datetime, note: str | None) -> "CallApproval":
        return self._with(decided_by=by, decided_at=now, note=note).over(CallApprovalState.DENIED)

    def used(self, now: datetime) -> "CallApproval":
        return self._with(used_at=now).over(CallApprovalState.USED)

    def over(self, state: CallApprovalState) -> "CallApproval":
        """Nothing follows."""
        return self._with(state=state, next_at=None)

    def detail(self, agent: str) -> dict[str, Any]:
        """What its audit records and events say of it: not what is called."""
        detail = {
            "agent": agent,
            "connection_id": self.connection_id,
            "call": self.name,
            "call_hash": self.call_hash,
            "reason": self.reason,
            "requested_by": self.requested_by,
            "decide_by": self.decide_by.isoformat(),
            "decided_by": self.decided_by,
            "note": self.note,
            "use_by": None if self.use_by is None else self.use_by.isoformat(),
        }
        return {name: value for name, value in detail.items() if value is not None}

    @property
    def _half_time(self) -> datetime:
        return self.created_at + (self.decide_by - self.created_at) / 2

    def _is_late(self, now: datetime) -> bool:
        return self.escalated_at is None and now >= self._half_time

    def _with(self, **changes: Any) -> "CallApproval":
        return self.__replace__(**changes)
