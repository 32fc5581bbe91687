"""`/v1/offboardings`: a person leaves, and what becomes of each of their connections."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field, model_validator
from starlette.responses import PlainTextResponse

from evergrant_server.access import leavers as orders
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.incidents import steps_left
from evergrant_server.access.leavers import Fate, LeaverOrder, LeaverPlan, PlannedConnection, grace_of
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    Slug,
    StorableText,
    Subject,
    Text,
    View,
)
from evergrant_server.api.incidents import StepView, get_incident_report
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentKind,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.ids import DirectoryUserId, IncidentId, is_id
from evergrant_server.core.people.leavers import (
    MatchedBy,
    NamedPerson,
    person_of_user,
    user_key,
)
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedConnection

router = APIRouter(tags=["people"])

_UNDO_TRIES = 100
_LONGEST_S = 90 * 86_400
_VIEW = {"$ref": "#/components/schemas/OffboardingView"}
Name = Annotated[StorableText, Field(min_length=1, max_length=255)]
Seconds = Annotated[float, Field(ge=0, le=_LONGEST_S)]


class OffboardingBody(Body):
    """Who leaves: by `subject`, by `user` of the directory (its id or `userName`), by `issuer` and `sub`, or
    what of these is known. Nobody is matched by likeness.

    `grace`: for as many seconds the connections are stopped and can be put back; null: the tenant's rule, or
    `EVERGRANT_OFFBOARDING_GRACE`. `sponsor`: the app that answers for the person's agents from then on; null:
    the rule's; without one they are stopped. `hand_over`: the team's connections by id, each with the subject
    whose it becomes. `reason` stays in the audit log and in the report: name a ticket there, and no person.
    """

    subject: Subject | None = None
    user: Name | None = None
    issuer: Annotated[StorableText | None, Field(max_length=2000)] = None
    sub: Name | None = None
    reason: Text
    grace: Seconds | None = None
    sponsor: Slug | None = None
    hand_over: Annotated[dict[str, Subject], Field(max_length=250)] = Field(default={})

    @model_validator(mode="after")
    def _named(self) -> "OffboardingBody":
        if (self.issuer is None) is not (self.sub is None):
            raise ValueError("issuer and sub go together")
        if self.subject is None and self.user is None and self.sub is None:
            raise ValueError("name a subject, a user, or issuer and sub")
        return self


class MatchView(View):
    """A subject that is the person's, and why. `integration` null: at every one; empty: with clients of the
    gateway."""

    subject: str
    integration: str | None
    by: MatchedBy


class PlannedConnectionView(View):
    """What would become of one connection. `to`: whose it becomes."""

    connection_id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: str
    matched_by: MatchedBy
    fate: Fate
    to: str | None

    @classmethod
    def of_planned(cls, planned: PlannedConnection) -> "PlannedConnectionView":
        connection = planned.connection
        return cls(
            connection_id=connection.id,
            integration=connection.integration,
            provider=connection.provider,
            subject=connection.subject,
            label=connection.label,
            state=connection.state,
            matched_by=planned.matched,
            fate=planned.fate,
            to=planned.to,
        )


class OffboardingPlanView(View):
    """What an order would do. `agents` get the new sponsor, or are stopped; `permits` name the person as a
    subject: an admin decides what they become."""

    grace: float
    sponsor: str | None
    matches: list[MatchView]
    connections: list[PlannedConnectionView]
    agents: list[str]
    permits: list[str]

    @classmethod
    def of_plan(cls, order: LeaverOrder, plan: LeaverPlan) -> "OffboardingPlanView":
        return cls(
            grace=order.grace.total_seconds(),
            sponsor=order.sponsor,
            matches=[MatchView.of(match) for match in plan.matches],
            connections=[PlannedConnectionView.of_planned(each) for each in plan.connections],
            agents=plan.agents,
            permits=plan.permits,
        )


class OffboardingView(View):
    """How far the offboarding of a person is. `subject` null: they were erased. Until `held_until` the
    connections are stopped and can be put back. `beside` counts what has ended with them: `sessions`,
    `token_families`, `delegations`, `agents`. `outcomes`: how many connections ended how: `confirmed`,
    `nothing_held`, `not_supported`, `unknown`, `handed_over`, `restored`."""

    id: str
    subject: str | None
    reason: str
    by: str
    state: IncidentState
    paused: bool
    created_at: datetime
    held_until: datetime | None
    waits_until: datetime
    undone_at: datetime | None
    selected: int
    ended: int
    outcomes: dict[str, int]
    beside: dict[str, int]
    finished_at: datetime | None


class OffboardedConnectionView(View):
    """One connection of a person who leaves. `subject` is whose it is now; null, as `label`, once it is
    erased."""

    connection_id: str
    subject: str | None
    label: str | None
    integration: str
    provider: str
    matched_by: MatchedBy | None
    last_leased_at: datetime | None
    step: ItemStep
    outcome: ItemOutcome | None
    state: str


class OffboardingDetailView(OffboardingView):
    """`connections`, and `left`: what a person has to do."""

    connections: list[OffboardedConnectionView]
    left: list[StepView]


@router.post("/v1/offboardings/plan")
async def plan_offboarding(body: OffboardingBody, call: AuditorCall) -> OffboardingPlanView:
    """What an order would do, connection by connection. Changes nothing."""
    async with call.api.store.read() as tx:
        order = await order_of(tx, call, body)
        return OffboardingPlanView.of_plan(order, await orders.plan(tx, order))


@router.post("/v1/offboardings", status_code=202, response_model=OffboardingView)
@dangerous("always: a person's connections are stopped, and revoked once the grace is over")
async def begin_offboarding(body: OffboardingBody, call: AdminCommand) -> Response:
    """Stop all connections of a person who leaves, and end their sessions, delegations and clients.

    From this response on no token of these connections is leased. Once the grace is over each is revoked at
    its provider. A person whose offboarding is under way gets no second one.
    """
    call.require_step_up()

    async def begin(tx: Transaction) -> CommandResponse:
        order = await order_of(tx, call, body)
        await use_approval(tx, call, body, {"person": order.person.name})
        incident = await orders.begin(tx, order)
        return CommandResponse.of(await _view(tx, incident), 202)

    response = await call.run(body, begin)
    call.api.relay.notify()
    return response


@router.get("/v1/offboardings")
async def list_offboardings(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[OffboardingView]:
    """Who leaves or has left, sorted by id."""
    listing = call.listing("offboardings", limit, cursor)
    async with call.api.store.read() as tx:
        incidents = await tx.incidents.page(call.tenant, listing.after, listing.most, (IncidentKind.LEAVER,))
        views = [await _view(tx, incident) for incident in incidents]
    return listing.page(views, incidents, lambda incident: incident.id)


@router.get("/v1/offboardings/{offboarding_id}")
async def get_offboarding(offboarding_id: str, call: AuditorCall) -> OffboardingDetailView:
    """How far the offboarding of a person is, connection by connection, and what a person has to do."""
    async with call.api.store.read() as tx:
        incident = await _offboarding(tx, call, offboarding_id)
        view = await _view(tx, incident)
        listed = await tx.incident_items.page(incident, None, 2 * orders.MOST_CONNECTIONS)
        left = await steps_left(tx, call.api.registry, incident)
    connections = [_connection_view(connection) for connection in listed]
    return OffboardingDetailView.of(
        view, connections=connections, left=[StepView.of_step(step) for step in left]
    )


@router.post("/v1/offboardings/{offboarding_id}/undo")
@dangerous("always: what was stopped is leased again", second=False)
async def undo_offboarding(offboarding_id: str, call: AdminCall) -> OffboardingView:
    """Put the connections back, within the grace. Sessions, delegations and clients stay ended: people log in
    again. Agents that were stopped are enabled by `PUT /v1/apps/{name}`."""
    call.require_step_up()

    async def write(tx: Transaction) -> OffboardingView:
        incident = await orders.undo(tx, call.tenant, offboarding_id, call.context, call.now)
        return await _view(tx, incident)

    return await call.write(write, tries=_UNDO_TRIES)


@router.get(
    "/v1/offboardings/{offboarding_id}/report",
    response_class=PlainTextResponse,
    responses={202: {"description": "It isn't done", "content": {"application/json": {"schema": _VIEW}}}},
)
async def get_offboarding_report(offboarding_id: str, call: AuditorCall) -> Response:
    """The signed report of an offboarding: JSON Lines, as an incident's. 202 before it is done.

    `evergrant incident verify` checks it without Evergrant.
    """
    async with call.api.store.read() as tx:
        incident = await _offboarding(tx, call, offboarding_id)
        view = await _view(tx, incident)
    if incident.finished_at is None:
        return Response(view.model_dump_json(), 202, {"Retry-After": "1"}, "application/json")
    return await get_incident_report(offboarding_id, call)


async def order_of(tx: Transaction, call: ApiCall, body: OffboardingBody) -> LeaverOrder:
    """The order, by what is stored of the person and of the tenant's rule. Raises Failure NOT_FOUND."""
    rule = await tx.offboarding_rules.of_tenant(call.tenant)
    person = NamedPerson()
    if body.user is not None:
        users = tx.directory_users
        if is_id(body.user, "usr"):
            user = await users.get(call.tenant, DirectoryUserId(body.user))
        else:
            user = await users.by_key(call.tenant, user_key(body.user))
        person = person_of_user(require_found(user), rule)
    if body.sub is not None:
        person = person.__replace__(issuer=body.issuer, sub=body.sub)
    if body.subject is not None:
        person = person.__replace__(subject=body.subject)
    settings = call.api.settings
    return LeaverOrder(
        tenant=call.tenant,
        person=person,
        reason=body.reason,
        grace=grace_of(rule, settings.offboarding_grace, body.grace),
        wait=settings.incident_wait,
        sponsor=body.sponsor or (None if rule is None else rule.sponsor),
        context=call.context,
        at=call.now,
        rule=rule,
        hand_over=body.hand_over,
    )


async def _offboarding(tx: Transaction, call: ApiCall, id: str) -> Incident:
    incident = await tx.incidents.get(call.tenant, IncidentId(id))
    is_one = incident is not None and incident.kind is IncidentKind.LEAVER
    return require_found(incident if is_one else None)


async def _view(tx: Transaction, incident: Incident) -> OffboardingView:
    leaver = await tx.leavers.get(incident.tenant, incident.id)
    return OffboardingView.of(incident, subject=None if leaver is None else leaver.subject)


def _connection_view(connection: ListedConnection) -> OffboardedConnectionView:
    item = connection.item
    matched = None if item.matched is None else MatchedBy(item.matched)
    return OffboardedConnectionView.of(
        item,
        matched_by=matched,
        last_leased_at=item.used_at,
        state=connection.state or "erased",
        subject=connection.subject,
        label=connection.label,
    )
