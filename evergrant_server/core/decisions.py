"""What people decide: an app's request for access, an agent's call, a command that needs a second admin.

Pure. `store.decisions` keeps each of them. `workflows.decisions` waits for the moments of requests and calls.
An approved call or command is used up, once, in the transaction that carries it out.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, Self, TypeVar

from pydantic import Field

from evergrant_server.core.access import Permit
from evergrant_server.core.ids import (
    AccessRequestId,
    AppId,
    ApprovalId,
    CallApprovalId,
    ConnectionId,
    TenantRow,
)

USED_WITHIN = timedelta(days=1)  # of the approval of a call
_REMINDER_INTERVAL = timedelta(days=1)
_REMINDER_INTERVAL_OF_REMOVALS = timedelta(days=7)
_NOT_OF_THE_PERMIT = {"tenant", "revision", "id", "app_id", "name", "created_at"}

State = TypeVar("State", bound=StrEnum)


class DecisionStep(StrEnum):
    """What a decision needs at a moment without a person."""

    REMIND = "remind"
    ESCALATE = "escalate"
    EXPIRE = "expire"
    END = "end"


class Decision(TenantRow, Generic[State]):
    """What an app asks a person for. `next_at` is when it needs the next step; None: nothing follows.

    `decide_by`: it expires then, if it is undecided.
    """

    app_id: AppId
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    state: State
    reminders: int = 0
    decided_by: str | None = None
    decided_at: datetime | None = None
    note: str | None = None  # of who decided, for the app
    next_at: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        return self.next_at is not None and now >= self.next_at

    def seconds_to_next(self, now: datetime) -> float | None:
        """The seconds to its next step, None when none follows."""
        return None if self.next_at is None else max((self.next_at - now).total_seconds(), 0.0)

    def awaiting(self, now: datetime) -> Self:
        """With its next moment: a reminder, an escalation or the deadline."""
        return self.__replace__(next_at=min(self._moments(now)))

    def reminded(self, now: datetime) -> Self:
        return self.__replace__(reminders=self.reminders + 1).awaiting(now)

    def over(self, state: State) -> Self:
        """In a state that nothing follows."""
        return self.__replace__(state=state, next_at=None)

    def _moments(self, now: datetime) -> list[datetime]:
        return [now + _REMINDER_INTERVAL, self.decide_by]

    def _detail(self, **facts: Any) -> dict[str, Any]:
        """The facts, and who asked and decided, as audit records and events have them."""
        members = {
            **facts,
            "reason": self.reason,
            "requested_by": self.requested_by,
            "decide_by": self.decide_by,
            "decided_by": self.decided_by,
            "note": self.note,
        }
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in members.items()
            if value is not None
        }


# --- requests for access --------------------------------------------------------------


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


class AccessRequest(Decision[AccessRequestState]):
    """A permit that an app asks for, or one that is proposed for removal. `permit` holds its fields.

    `lifetime_s`: how long the access lasts from its approval, in seconds; None: until it is removed.
    `ends_at` is the end of what was approved.
    """

    id: AccessRequestId
    kind: AccessRequestKind = AccessRequestKind.PERMIT
    permit_name: str
    permit: dict[str, Any]
    lifetime_s: float | None = None
    state: AccessRequestState = AccessRequestState.WAITING
    ends_at: datetime | None = None

    @property
    def is_waiting(self) -> bool:
        return self.state is AccessRequestState.WAITING

    def step(self, now: datetime) -> DecisionStep | None:
        """What is due now, or None."""
        if not self.is_due(now):
            return None
        if self.state is AccessRequestState.APPROVED:
            return DecisionStep.END
        return DecisionStep.EXPIRE if now >= self.decide_by else DecisionStep.REMIND

    def decided(
        self, state: AccessRequestState, by: str, now: datetime, note: str | None, ends_at: datetime | None
    ) -> Self:
        """Approved, denied or withdrawn."""
        return self.__replace__(
            state=state, decided_by=by, decided_at=now, note=note, ends_at=ends_at, next_at=ends_at
        )

    def detail(self, app: str) -> dict[str, Any]:
        """What its audit records and events have of it."""
        permit = {"permit_name": self.permit_name, "permit": self.permit}
        return self._detail(app=app, kind=self.kind.value, **permit, ends_at=self.ends_at)

    def _moments(self, now: datetime) -> list[datetime]:
        removal = self.kind is AccessRequestKind.REMOVAL
        return [now + (_REMINDER_INTERVAL_OF_REMOVALS if removal else _REMINDER_INTERVAL), self.decide_by]


def shown_permit(permit: Permit) -> dict[str, Any]:
    """What a proposal to remove a permit shows of it: all that it allows or forbids, and why."""
    return permit.model_dump(mode="json", exclude=_NOT_OF_THE_PERMIT, exclude_defaults=True)


# --- calls of agents ------------------------------------------------------------------


class CallApprovalState(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"  # the call may be made, once, until `use_by`
    DENIED = "denied"
    EXPIRED = "expired"  # undecided, or approved and not used in time
    USED = "used"
    STOPPED = "stopped"  # its agent was stopped


class CallApproval(Decision[CallApprovalState]):
    """One call that an agent asks for. What is called is sealed in its row; `call_hash` is its keyed hash.

    `round` counts the approvals of the same call: once one is over, the call can be asked for again.
    """

    id: CallApprovalId
    connection_id: ConnectionId
    call_hash: str
    round: int = 0
    name: str  # the call's method or tool
    state: CallApprovalState = CallApprovalState.WAITING
    escalated_at: datetime | None = None
    use_by: datetime | None = None
    used_at: datetime | None = None

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

    def step(self, now: datetime) -> DecisionStep | None:
        """What is due now, or None."""
        if not self.is_due(now):
            return None
        if self.state_at(now) is CallApprovalState.EXPIRED:
            return DecisionStep.EXPIRE
        is_late = self.escalated_at is None and now >= self._half_time
        return DecisionStep.ESCALATE if is_late else DecisionStep.REMIND

    def escalated(self, now: datetime) -> Self:
        return self.__replace__(escalated_at=now).awaiting(now)

    def approved(self, by: str, now: datetime, note: str | None) -> Self:
        until = now + USED_WITHIN
        state = CallApprovalState.APPROVED
        return self.__replace__(
            state=state, decided_by=by, decided_at=now, note=note, use_by=until, next_at=until
        )

    def denied(self, by: str, now: datetime, note: str | None) -> Self:
        return self.__replace__(decided_by=by, decided_at=now, note=note).over(CallApprovalState.DENIED)

    def used(self, now: datetime) -> Self:
        return self.__replace__(used_at=now).over(CallApprovalState.USED)

    def detail(self, agent: str) -> dict[str, Any]:
        """What its audit records and events have of it: not what is called."""
        call = {"connection_id": self.connection_id, "call": self.name, "call_hash": self.call_hash}
        return self._detail(agent=agent, **call, use_by=self.use_by)

    @property
    def _half_time(self) -> datetime:
        return self.created_at + (self.decide_by - self.created_at) / 2

    def _moments(self, now: datetime) -> list[datetime]:
        """Also the escalation, after half of its time."""
        escalation = [] if self.escalated_at is not None else [max(self._half_time, now)]
        return [*super()._moments(now), *escalation]


# --- commands that need a second admin ------------------------------------------------


class Approval(TenantRow):
    """A command of an app or a person that a second admin must approve (`EVERGRANT_FOUR_EYES`).

    `body` is the request's, which holds no secret. `resolves_to` is what its names stand for: ids,
    revisions, issuers and endpoints. The same command of the same app that resolves to the same has the same
    id.
    """

    id: ApprovalId
    app_id: AppId
    by: str  # who sent the command
    command: str  # method and path
    body: dict[str, Any] | None
    resolves_to: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
    expires_at: datetime
    approved_by: str | None = None
    used_at: datetime | None = None

    def is_open(self, now: datetime) -> bool:
        """It can be approved, or the approved command can be carried out."""
        return self.used_at is None and now < self.expires_at
