"""Requests for access: an app asks for a permit, an admin decides, temporary access ends by itself."""

from collections.abc import Mapping
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

_PATH = "access-requests"


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """A request. `permit` holds the fields of the permit, whose name is `permit_name` once it is approved.

    `state` is waiting, approved, denied, withdrawn, expired or ended; `kind` is permit, or removal for a
    proposal to remove one. `lifetime` is in seconds, None: until it is removed.
    """

    id: str
    app: str
    kind: str
    state: str
    permit_name: str
    permit: Mapping[str, Any]
    lifetime: float | None
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    decided_by: str | None
    decided_at: datetime | None
    note: str | None
    ends_at: datetime | None


_request = object_parser("access request", AccessRequest)


def request_access(
    permit: Mapping[str, object],
    *,
    reason: str,
    app: str | None = None,
    lifetime: timedelta | None = None,
    decide_within: timedelta | None = None,
) -> Call[AccessRequest]:
    """Ask for a permit, for `lifetime` from its approval; `app`: for another app, which an admin may."""
    body = without_none(
        permit=dict(permit),
        reason=reason,
        app=app,
        lifetime=seconds_or_none(lifetime),
        decide_within=seconds_or_none(decide_within),
    )
    return post(path_of(_PATH), _request, body)


def access_requests(state: str | None = None) -> Call[Page[AccessRequest]]:
    """All requests of the tenant for an admin or an auditor, else the app's own."""
    query = without_none(state=state)
    return Call("GET", path_of(_PATH), page_parser("access request", AccessRequest), query=query)


def access_request(request_id: str) -> Call[AccessRequest]:
    return Call("GET", path_of(_PATH, request_id), _request)


def approve_access(
    request_id: str, *, lifetime: timedelta | None = None, note: str | None = None
) -> Call[AccessRequest]:
    """Give the access, for `lifetime` if given; or remove the permit that is proposed for removal."""
    body = without_none(lifetime=seconds_or_none(lifetime), note=note)
    return post(path_of(_PATH, request_id, "approve"), _request, body)


def deny_access(request_id: str, *, note: str | None = None) -> Call[AccessRequest]:
    return post(path_of(_PATH, request_id, "deny"), _request, without_none(note=note))


def withdraw_access_request(request_id: str) -> Call[AccessRequest]:
    return post(path_of(_PATH, request_id, "withdraw"), _request, {})
