"""Bodies and views of `/v1/access-requests`."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from evergrant_server.api.apps.permit_models import PermitBody
from evergrant_server.api.http.models import Body, Slug, Text, View
from evergrant_server.core.lifecycle.access_requests import (
    AccessRequest,
    AccessRequestKind,
    AccessRequestState,
)

_SHORTEST, _LONGEST = timedelta(minutes=1), timedelta(days=366)
_MOST_TIME_TO_DECIDE = timedelta(days=30)

Lifetime = Annotated[float, Field(ge=_SHORTEST.total_seconds(), le=_LONGEST.total_seconds())]


class AccessRequestBody(Body):
    """`permit` is what `PUT /v1/apps/{app}/permits/{permit}` takes, and `app` the caller, unless an admin
    asks for another app.

    `lifetime`: how long the access lasts from its approval, in seconds; null: until an admin removes it.
    `decide_within`: seconds until the request expires undecided.
    """

    app: Slug | None = None
    permit: PermitBody
    lifetime: Lifetime | None = None
    reason: Text
    decide_within: Annotated[float, Field(ge=60, le=_MOST_TIME_TO_DECIDE.total_seconds())] = 7 * 86_400.0


class ApprovalBody(Body):
    """`lifetime` replaces the request's, in seconds; `note` is for the app."""

    lifetime: Lifetime | None = None
    note: Text | None = None


class NoteBody(Body):
    note: Text | None = None


class AccessRequestView(View):
    """`permit_name` is the permit's once it is approved. `ends_at`: the end of temporary access."""

    id: str
    app: str
    kind: AccessRequestKind
    state: AccessRequestState
    permit_name: str
    permit: dict[str, Any]
    lifetime: float | None
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    decided_by: str | None
    decided_at: datetime | None
    note: str | None
    ends_at: datetime | None

    @classmethod
    def of_request(cls, request: AccessRequest, app: str) -> "AccessRequestView":
        return cls.of(request, app=app, lifetime=request.lifetime_s)
