"""Bodies and views of `/v1/call-approvals`."""

import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from evergrant_server.api.http.models import Body, StorableText, Text, View, _printable, request_url
from evergrant_server.core.agents.call_approvals import AgentCall, CallApproval, CallApprovalState
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import AppId, is_id

_SHORTEST, _LONGEST, _USUAL = timedelta(minutes=1), timedelta(days=30), timedelta(days=3)
_LONGEST_BODY = 64 * 1024


def _connection_id(value: str) -> str:
    if not is_id(value, "con"):
        raise ValueError("is not the id of a connection")
    return value


class CallBody(Body):
    """One call with a connection: `method`, `url` and `body`, or a tool of an MCP server and its `arguments`.

    Of a body that the approver needn't read, or that is no text, `body_sha256` is enough: its SHA-256 in hex.
    """

    connection_id: Annotated[str, AfterValidator(_connection_id)]
    method: Annotated[str, Field(pattern="^[A-Z]{1,20}$")] | None = None
    url: Annotated[str, Field(max_length=8000), AfterValidator(request_url)] | None = None
    body: Annotated[StorableText, Field(max_length=_LONGEST_BODY)] | None = None
    body_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    tool: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)] | None = None
    arguments: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_one_call(self) -> Self:
        is_request = self.method is not None and self.url is not None
        of_request = (self.method, self.url, self.body, self.body_sha256)
        is_tool = self.tool is not None and all(it is None for it in of_request)
        if not is_tool and (not is_request or self.tool is not None or self.arguments is not None):
            raise ValueError("needs method and url, or a tool with its arguments")
        if self.body is not None and self.body_sha256 is not None:
            raise ValueError("body and body_sha256 say the same: send one of them")
        return self

    def called(self) -> dict[str, Any]:
        """What an approver is shown."""
        shown = self.model_dump(include={"method", "url", "body", "body_sha256", "tool", "arguments"})
        return {name: value for name, value in shown.items() if value is not None}

    def by(self, agent: AppId, connection: Connection) -> AgentCall:
        """The call as this agent makes it."""
        digest = hashlib.sha256(self.body.encode()).hexdigest() if self.body else None
        return AgentCall(
            agent=agent,
            subject=connection.subject,
            connection=connection.id,
            method=self.method,
            url=self.url,
            body_sha256=digest or self.body_sha256,
            tool=self.tool,
            arguments=None if self.tool is None else self.arguments or {},
        )


class CallApprovalBody(CallBody):
    """`reason` is for the person who decides. `decide_within`: seconds until the request ends undecided."""

    reason: Text
    decide_within: Annotated[float, Field(ge=_SHORTEST.total_seconds(), le=_LONGEST.total_seconds())] = (
        _USUAL.total_seconds()
    )


class CallDecisionBody(Body):
    """`note` is for the agent."""

    note: Text | None = None


class CalledView(View):
    """What is called: the members that the agent has given."""

    method: str | None = None
    url: str | None = None
    body: str | None = None
    body_sha256: str | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None


class CallApprovalView(View):
    """`call` is what is to be called, null in lists, where `name` is its method or tool. An approved call may
    be made once, until `use_by`."""

    id: str
    state: CallApprovalState
    agent: str
    sponsor: str | None
    connection_id: str
    integration: str
    subject: str
    name: str
    call: CalledView | None
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    decided_by: str | None
    decided_at: datetime | None
    note: str | None
    use_by: datetime | None
    used_at: datetime | None

    @classmethod
    def of_approval(cls, approval: CallApproval, now: datetime, **more: Any) -> "CallApprovalView":
        return cls.of(approval, state=approval.state_at(now), **more)
