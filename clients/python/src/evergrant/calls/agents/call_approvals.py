"""An agent's calls that a person approves: ask, wait, use; and for admins, decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    post,
    seconds_or_none,
    without_none,
)

_PATH = "call-approvals"

Headers = Mapping[str, str] | Sequence[tuple[str, str]]  # a sequence: where a name comes twice


@dataclass(frozen=True, slots=True)
class CallApproval:
    """One call of an agent. `call` is what is to be called, None in lists; `name` is its method or tool.

    `state` is waiting, approved, denied, expired, used or stopped. An approved call may be made once, until
    `use_by`.
    """

    id: str
    state: str
    agent: str
    sponsor: str | None
    connection_id: str
    integration: str
    subject: str
    name: str
    call: Mapping[str, Any] | None
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    decided_by: str | None
    decided_at: datetime | None
    note: str | None
    use_by: datetime | None
    used_at: datetime | None

    @property
    def is_waiting(self) -> bool:
        return self.state == "waiting"

    @property
    def is_approved(self) -> bool:
        return self.state == "approved"


_approval = object_parser("approval", CallApproval)


def ask_for_call(
    connection_id: str,
    *,
    reason: str,
    method: str | None = None,
    url: str | None = None,
    headers: Headers | None = None,
    body: str | None = None,
    body_sha256: str | None = None,
    tool: str | None = None,
    arguments: Mapping[str, object] | None = None,
    params: Mapping[str, object] | None = None,
    decide_within: timedelta | None = None,
) -> Call[CallApproval]:
    """Ask a person to approve one call: `method`, `url` and `headers` with a body, or `tool` with `arguments`
    and what is beside them in its `params`, such as `_meta`.

    Name every header that the call will have, such as Content-Type; those that say only how it is sent, such
    as User-Agent, may be left out. The same call again is the same request. Wait with `wait_for_approval`,
    then `use_call_approval`.
    """
    called = _called(connection_id, method, url, headers, body, body_sha256, tool, arguments, params)
    more = without_none(decide_within=seconds_or_none(decide_within))
    return post(path_of(_PATH), _approval, {**called, "reason": reason, **more})


def use_call_approval(
    connection_id: str,
    *,
    method: str | None = None,
    url: str | None = None,
    headers: Headers | None = None,
    body: str | None = None,
    body_sha256: str | None = None,
    tool: str | None = None,
    arguments: Mapping[str, object] | None = None,
    params: Mapping[str, object] | None = None,
) -> Call[CallApproval]:
    """Use up the approval of exactly this call, right before making it.

    Raises Denied `call_approval_required` for a call that differs, isn't approved, or was made already: also
    where the answer to an earlier attempt was lost. Ask for it anew.
    """
    called = _called(connection_id, method, url, headers, body, body_sha256, tool, arguments, params)
    return Call("POST", path_of(_PATH, "use"), _approval, body=called)


def call_approvals(state: str | None = None) -> Call[Page[CallApproval]]:
    """All calls of the tenant for an admin or an auditor, else the app's own."""
    query = without_none(state=state)
    return Call("GET", path_of(_PATH), page_parser("approval", CallApproval), query=query)


def call_approval(approval_id: str) -> Call[CallApproval]:
    """What is to be called, and what has become of it."""
    return Call("GET", path_of(_PATH, approval_id), _approval)


def approve_call(approval_id: str, *, note: str | None = None) -> Call[CallApproval]:
    """Approve the call as it is stored: it may be made once, within a day."""
    return post(path_of(_PATH, approval_id, "approve"), _approval, without_none(note=note))


def deny_call(approval_id: str, *, note: str | None = None) -> Call[CallApproval]:
    """Deny it. The same call isn't asked for again before its deadline."""
    return post(path_of(_PATH, approval_id, "deny"), _approval, without_none(note=note))


def _called(
    connection_id: str,
    method: str | None,
    url: str | None,
    headers: Headers | None,
    body: str | None,
    body_sha256: str | None,
    tool: str | None,
    arguments: Mapping[str, object] | None,
    params: Mapping[str, object] | None,
) -> Mapping[str, object]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    sent = without_none(
        method=method,
        url=url,
        headers=[{"name": name, "value": value} for name, value in pairs] or None,
        body=body,
        body_sha256=body_sha256,
        tool=tool,
        arguments=None if arguments is None else dict(arguments),
        params=None if params is None else dict(params),
    )
    return {"connection_id": connection_id, **sent}
