"""`/v1/incidents`: a breach drill, or what follows a leak of keys: an order, its progress and its report."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from evergrant_server import audit
from evergrant_server.access import incidents as orders
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.incidents import Doer, IncidentPlan, PlannedIntegration, Scope, Step
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, UtcDatetime, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentKind,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.ids import IncidentId
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedConnection

router = APIRouter(tags=["incidents"])

Name = Annotated[str | None, Query(max_length=63)]
OrderedKind = Literal[IncidentKind.BREACH, IncidentKind.LEAK]
Moment = Annotated[UtcDatetime | None, Query()]

_PAUSE_TRIES = 100
_LINES = 500  # of a report, read in one transaction
_VIEW = {"$ref": "#/components/schemas/IncidentView"}
_ROOTS_FIRST = (
    "What leaked opens all that stands under the roots: on the host, first replace them (keys rotate, and "
    "keys rewrap, of lease, refresh and intake); then send roots_replaced: true."
)


class IncidentBody(Body):
    """Which connections, of the tenant if nothing is named.

    `breach`: those of `integration`; those whose tokens `app` has leased; those whose tokens were leased from
    `since` on, before `until`; or what all of these say. `leak`, of keys of Evergrant: `integration` alone.

    `confirm` repeats the name of what it is about: the integration's, else the app's, else the tenant's.

    `reason` stays in the audit log and in the report: name a ticket there, and no person. `wait`: after as
    many seconds it is reported how far the connections are; null: `EVERGRANT_INCIDENT_WAIT`.
    `roots_replaced`: after a leak, that the roots are new.
    """

    kind: OrderedKind
    integration: Slug | None = None
    app: Slug | None = None
    since: UtcDatetime | None = None
    until: UtcDatetime | None = None
    reason: Text
    confirm: str
    wait: Annotated[float | None, Field(ge=1, le=90 * 86_400)] = None
    roots_replaced: bool = False


class StepView(View):
    """What follows. `by`: who does it; `done` null: it can't be seen."""

    by: Doer
    text: str
    command: str | None
    connections: int | None
    done: bool | None

    @classmethod
    def of_step(cls, step: Step) -> "StepView":
        return cls(**vars(step))


class PlannedIntegrationView(View):
    """`revokes`: its provider has a revocation endpoint; `replaces`: a refresh ends the refresh token that it
    uses; `secret`: its client has a secret, which may have leaked."""

    integration: str
    provider: str
    connections: int
    revokes: bool
    replaces: bool
    secret: bool

    @classmethod
    def of_planned(cls, planned: PlannedIntegration) -> "PlannedIntegrationView":
        return cls(**vars(planned))


class IncidentPlanView(View):
    """What an incident would be about, and what would follow, in order. `confirm` is what an order repeats;
    `exact` false: at most as many connections."""

    kind: IncidentKind
    confirm: str
    connections: int
    exact: bool
    integrations: list[PlannedIntegrationView]
    steps: list[StepView]

    @classmethod
    def of_plan(cls, scope: Scope, plan: IncidentPlan) -> "IncidentPlanView":
        return cls(
            kind=scope.kind,
            confirm=scope.name,
            connections=plan.connections,
            exact=plan.exact,
            integrations=[PlannedIntegrationView.of_planned(each) for each in plan.integrations],
            steps=[StepView.of_step(step) for step in plan.steps],
        )


class IncidentView(View):
    """How far an incident is. `outcomes`: how many connections ended how: `confirmed`, `nothing_held`,
    `not_supported`, `unknown`; after a leak `renewed`, `reconnect`, `gone`."""

    id: str
    kind: IncidentKind
    integration: str | None
    app: str | None
    since: datetime | None
    until: datetime | None
    reason: str
    by: str
    state: IncidentState
    paused: bool
    created_at: datetime
    waits_until: datetime
    selected: int
    ended: int
    outcomes: dict[str, int]
    finished_at: datetime | None


class IncidentDetailView(IncidentView):
    """`left`: what a person has to do."""

    left: list[StepView]


class IncidentConnectionView(View):
    """One connection of an incident. `subject` and `label` are null once it is erased. `reconnected`: its
    subject has consented since."""

    connection_id: str
    subject: str | None
    label: str | None
    integration: str
    provider: str
    last_leased_at: datetime | None
    step: ItemStep
    outcome: ItemOutcome | None
    state: str
    reconnected: bool | None


@router.get("/v1/incidents/plan")
async def get_incident_plan(
    call: AuditorCall,
    kind: OrderedKind,
    integration: Name = None,
    app: Name = None,
    since: Moment = None,
    until: Moment = None,
) -> IncidentPlanView:
    """What an incident would be about, and what would follow. Changes nothing."""
    scope = _checked(Scope(call.tenant, kind, integration, app, since, until))
    async with call.api.store.read() as tx:
        return IncidentPlanView.of_plan(scope, await orders.plan(tx, call.api.registry, scope))


@router.post("/v1/incidents", status_code=202, response_model=IncidentView)
@dangerous("always: connections are revoked, or their keys replaced")
async def open_incident(body: IncidentBody, call: AdminCommand) -> Response:
    """Have a worker stop, revoke and shred connections, or replace what leaked keys protect.

    Of a breach no token of a connection is leased from the moment at which it is listed; the app that it
    names is disabled at once. It can't be undone.
    """
    call.require_step_up()
    scope = _scope(call, body)
    await _require_confirmed(call, body, scope)
    default = call.api.settings.incident_wait
    wait = default if body.wait is None else timedelta(seconds=body.wait)

    async def begin(tx: Transaction) -> CommandResponse:
        integration = None
        if scope.integration is not None:
            integration = require_found(await tx.integrations.by_name(call.tenant, scope.integration))
        app = await orders.named_app(tx, scope)
        if app is not None and app.id == call.caller.app.id:
            raise invalid_request("app", "This is the app that sends the request: use another admin.")
        names = {"integration": integration and integration.id, "app": app and app.id}
        approved = await use_approval(tx, call, body, names)
        incident = await orders.open_incident(tx, scope, body.reason, wait, call.context, call.now)
        detail = {"kind": incident.kind, "reason": incident.reason, **incident.scope, **approved}
        await call.record(tx, AuditAction.INCIDENT_OPENED, incident.id, **detail)
        return CommandResponse.of(IncidentView.of(incident), 202)

    response = await call.run(body, begin)
    call.api.relay.notify()
    return response


@router.get("/v1/incidents")
async def list_incidents(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[IncidentView]:
    """The tenant's incidents, sorted by id."""
    listing = call.listing("incidents", limit, cursor)
    async with call.api.store.read() as tx:
        incidents = await tx.incidents.page(call.tenant, listing.after, listing.most)
    views = [IncidentView.of(incident) for incident in incidents]
    return listing.page(views, incidents, lambda incident: incident.id)


@router.get("/v1/incidents/{incident_id}")
async def get_incident(incident_id: str, call: AuditorCall) -> IncidentDetailView:
    """How far an incident is, and what a person has to do."""
    async with call.api.store.read() as tx:
        incident = await _incident(tx, call, incident_id)
        left = await orders.steps_left(tx, call.api.registry, incident)
    return IncidentDetailView.of(incident, left=[StepView.of_step(step) for step in left])


@router.get("/v1/incidents/{incident_id}/connections")
async def list_incident_connections(
    incident_id: str,
    call: AuditorCall,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    outcome: Annotated[ItemOutcome | None, Query()] = None,
) -> Page[IncidentConnectionView]:
    """The connections of an incident, sorted by id; with `outcome` those that have ended so."""
    listing = call.listing("incident-connections", limit, cursor, of=incident_id, outcome=outcome)
    async with call.api.store.read() as tx:
        incident = await _incident(tx, call, incident_id)
        connections = await tx.incident_items.page(incident, listing.after, listing.most, outcome)
        views = [await _connection_view(tx, incident, connection) for connection in connections]
    return listing.page(views, connections, lambda connection: connection.item.connection_id)


@router.post("/v1/incidents/{incident_id}/pause")
async def pause_incident(incident_id: str, call: AdminCall) -> IncidentView:
    """Have an incident rest at the end of its page. What is stopped stays stopped."""
    return await _pause(incident_id, call, paused=True)


@router.post("/v1/incidents/{incident_id}/resume")
async def resume_incident(incident_id: str, call: AdminCall) -> IncidentView:
    """Have a paused incident go on."""
    return await _pause(incident_id, call, paused=False)


async def _pause(incident_id: str, call: ApiCall, *, paused: bool) -> IncidentView:
    async def write(tx: Transaction) -> Incident:
        return await orders.pause_incident(
            tx, call.tenant, incident_id, call.context, call.now, paused=paused
        )

    incident = await call.write(write, tries=_PAUSE_TRIES)  # a worker writes the row all the time
    call.api.relay.notify()
    return IncidentView.of(incident)


@router.get(
    "/v1/incidents/{incident_id}/report",
    response_class=PlainTextResponse,
    responses={202: {"description": "It isn't done", "content": {"application/json": {"schema": _VIEW}}}},
)
async def get_incident_report(
    incident_id: str,
    call: AuditorCall,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
    after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The signed report of an incident: JSON Lines, the signature in the last one. 202 before it is done.

    With `limit` a page of it, of as many connections; the header `X-Evergrant-Next` has the next one's
    `after`. `evergrant incident verify` checks the whole without Evergrant.
    """
    async with call.api.store.read() as tx:
        incident = await _incident(tx, call, incident_id)
    if incident.finished_at is None:
        view = IncidentView.of(incident)
        return Response(view.model_dump_json(), 202, {"Retry-After": "1"}, "application/json")
    headers = {"Content-Disposition": f'attachment; filename="{incident.id}.jsonl"'}
    if limit is None:
        return StreamingResponse(_report(call, incident), 200, headers, "text/plain; charset=utf-8")
    text, following = await _page_of_report(call, incident, after, limit)
    more = {} if following is None else {"X-Evergrant-Next": following}
    return PlainTextResponse(text, 200, headers | more)


async def _report(call: ApiCall, incident: Incident) -> AsyncIterator[str]:
    after: str | None = ""
    while after is not None:
        text, after = await _page_of_report(call, incident, after, _LINES)
        yield text


async def _page_of_report(
    call: ApiCall, incident: Incident, after: str, limit: int
) -> tuple[str, str | None]:
    """The lines behind a connection's, and the connection behind which more follow; None: that was all."""
    async with call.api.store.read() as tx:
        lines = await tx.incident_items.lines(incident, after, limit)
    text = "".join(f"{line}\n" for _, line in lines)
    if not after:
        text = f"{incident.header}\n{text}"
    if len(lines) == limit:
        return text, lines[-1][0]
    return f"{text}{incident.summary}\n{incident.note}\n", None


def _scope(call: ApiCall, body: IncidentBody) -> Scope:
    return _checked(Scope(call.tenant, body.kind, body.integration, body.app, body.since, body.until))


def _checked(scope: Scope) -> Scope:
    """Raise Failure INVALID_REQUEST for one that can't be."""
    if scope.kind is IncidentKind.LEAK and (scope.app, scope.since, scope.until) != (None, None, None):
        raise invalid_request("kind", "A leak of keys is about the tenant or an integration.")
    if scope.since is not None and scope.until is not None and scope.until <= scope.since:
        raise invalid_request("until", "It must be after since.")
    return scope


async def _require_confirmed(call: ApiCall, body: IncidentBody, scope: Scope) -> None:
    """Raise Failure INVALID_REQUEST, with the counts, unless a person has repeated what it is about."""
    if body.kind is IncidentKind.LEAK and not body.roots_replaced:
        raise invalid_request("roots_replaced", _ROOTS_FIRST)
    if body.confirm == scope.name:
        return
    async with call.api.store.read() as tx:
        plan = await orders.plan(tx, call.api.registry, scope)
    most = "" if plan.exact else "at most "
    why = f"confirm must be {scope.name!r}: it is about {most}{plan.connections} connections"
    counted = ", ".join(f"{each.connections} of {each.integration}" for each in plan.integrations[:5])
    raise invalid_request("confirm", f"{why}{f' ({counted})' if counted else ''}.")


async def _incident(tx: Transaction, call: ApiCall, id: str) -> Incident:
    return require_found(await tx.incidents.get(call.tenant, IncidentId(id)))


async def _connection_view(
    tx: Transaction, incident: Incident, connection: ListedConnection
) -> IncidentConnectionView:
    item, reconnected = connection.item, None
    if item.outcome is ItemOutcome.RECONNECT:
        consent = await audit.newest_record(
            tx, incident.tenant, item.connection_id, AuditAction.GRANT_INSTALLED
        )
        reconnected = consent is not None and consent.at >= incident.created_at
    return IncidentConnectionView.of(
        item,
        last_leased_at=item.used_at,
        state=connection.state or "erased",
        subject=connection.subject,
        label=connection.label,
        reconnected=reconnected,
    )
