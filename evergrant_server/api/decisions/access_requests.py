"""`/v1/access-requests`: an app asks for a permit, an admin decides, and temporary access ends by itself."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.access.approvals import dangerous, is_admin_app, is_second_admin, use_approval
from evergrant_server.api.apps.permits import PermitBody, gives_weighty, permit_facts, save_permit
from evergrant_server.api.apps.routes import require_app
from evergrant_server.api.http.call import AdminCall, ApiCall, Call, Command, CommandResponse
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, View
from evergrant_server.core.access import Action, App, Effect
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.decisions import AccessRequest, AccessRequestKind, AccessRequestState, shown_permit
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AccessRequestId, new_id
from evergrant_server.core.outbox import access_request_message
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

MOST_WAITING = 20  # of one app
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


@router.post("/v1/access-requests", status_code=201, response_model=AccessRequestView)
async def request_access(body: AccessRequestBody, call: Command) -> Response:
    """Ask for a permit. An admin decides until `decide_by`; the same request again returns the first one."""

    async def write(tx: Transaction) -> CommandResponse:
        if body.permit.effect is Effect.DENY:
            raise invalid_request("permit", "A request is for access: effect must be allow.")
        app = await _requesting_app(tx, call, body.app)
        require_found(await tx.access.locked(call.tenant, app.id))  # its requests come one after another
        waiting = await tx.access_requests.waiting(call.tenant, app.id, MOST_WAITING)
        asked = body.permit.model_dump(mode="json", exclude_defaults=True)
        same = next(
            (
                request
                for request in waiting
                if request.permit == asked and request.lifetime_s == body.lifetime
            ),
            None,
        )
        if same is not None:
            return CommandResponse.of(AccessRequestView.of_request(same, app.name))
        if len(waiting) >= MOST_WAITING:
            why = f"{MOST_WAITING} requests of the app wait already: withdraw one, or have them decided."
            raise Failure(ErrorCode.ALREADY_EXISTS, why)
        request = _new_request(call, app, body, asked)
        await tx.access_requests.add(request)
        await _announce(tx, call, AuditAction.ACCESS_REQUESTED, request, app)
        return CommandResponse.of(AccessRequestView.of_request(request, app.name), 201)

    return await call.run(body, write)


@router.get("/v1/access-requests")
async def list_access_requests(
    call: Call, state: AccessRequestState | None = None, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[AccessRequestView]:
    """Requests, sorted by id: all of the tenant for an admin or an auditor, else the app's own."""
    listing = call.listing("access-requests", limit, cursor, state=state)
    mine = None if _may_read_all(call) else call.caller.app.id
    async with call.api.store.read() as tx:
        requests = await tx.access_requests.page(
            call.tenant, listing.after, listing.most, app_id=mine, state=state
        )
        apps = {request.app_id: await tx.access.app(call.tenant, request.app_id) for request in requests}
    names = {id: "" if app is None else app.name for id, app in apps.items()}
    views = [AccessRequestView.of_request(request, names[request.app_id]) for request in requests]
    return listing.page(views, requests, lambda request: request.id)


@router.get("/v1/access-requests/{request_id}")
async def get_access_request(request_id: str, call: Call) -> AccessRequestView:
    async with call.api.store.read() as tx:
        request, app = await _visible(tx, call, request_id)
    return AccessRequestView.of_request(request, app.name)


@router.post("/v1/access-requests/{request_id}/approve")
@dangerous("always; a second admin, where who asked isn't one and the permit is a dangerous one")
async def approve_access_request(
    request_id: str, call: AdminCall, body: ApprovalBody | None = None
) -> AccessRequestView:
    """Give the access, or remove the permit that is proposed for removal.

    Neither the app that gets the access nor who asked for it may approve. With EVERGRANT_FOUR_EYES, an app
    without admin that asks is no second admin: for weighty permits another admin must approve the approval.
    """
    decision = body or ApprovalBody()
    call.require_step_up()

    async def write(tx: Transaction) -> AccessRequestView:
        request, app = await _undecided(tx, call, request_id)
        if call.caller.app.id == request.app_id or call.context.by == request.requested_by:
            raise Failure(ErrorCode.NOT_PERMITTED, "Another app with admin must decide it.")
        lifetime = decision.lifetime or request.lifetime_s
        ends_at = None if lifetime is None else call.now + timedelta(seconds=lifetime)
        if request.kind is AccessRequestKind.REMOVAL:
            ends_at = None
            await _remove_permit(tx, call, request, app)
        else:
            permit = PermitBody.model_validate(request.permit)
            ends_at = min((end for end in (ends_at, permit.expires_at) if end is not None), default=None)
            ends_text = None if ends_at is None else ends_at.isoformat()
            permit = PermitBody.model_validate({**request.permit, "expires_at": ends_text})
            recorded = {"request_id": request.id}
            if gives_weighty(permit) and not await _are_two_admins(tx, call, request):
                facts = await permit_facts(tx, call, app, None, permit.integration)
                recorded |= await use_approval(tx, call, decision, {**facts, "permit": request.permit})
            await save_permit(tx, call, app, request.permit_name, permit, None, recorded)
        after = request.decided(
            AccessRequestState.APPROVED, call.context.by, call.now, decision.note, ends_at
        )
        return await _decide(tx, call, AuditAction.ACCESS_APPROVED, after, app)

    return await call.write(write)


@router.post("/v1/access-requests/{request_id}/deny")
async def deny_access_request(
    request_id: str, call: AdminCall, body: NoteBody | None = None
) -> AccessRequestView:
    """Refuse it. A permit that was proposed for removal stays, and isn't proposed again for as long."""
    note = None if body is None else body.note

    async def write(tx: Transaction) -> AccessRequestView:
        request, app = await _undecided(tx, call, request_id)
        after = request.decided(AccessRequestState.DENIED, call.context.by, call.now, note, None)
        return await _decide(tx, call, AuditAction.ACCESS_DENIED, after, app)

    return await call.write(write)


@router.post("/v1/access-requests/{request_id}/withdraw")
async def withdraw_access_request(request_id: str, call: Call) -> AccessRequestView:
    """Take back a request that waits: the app's own, or any for an admin."""

    async def write(tx: Transaction) -> AccessRequestView:
        request, app = await _undecided(tx, call, request_id)
        if call.caller.app.id != request.app_id:
            call.require_permit(Action.ADMIN, of=Target())
        after = request.decided(AccessRequestState.WITHDRAWN, call.context.by, call.now, None, None)
        return await _decide(tx, call, AuditAction.ACCESS_WITHDRAWN, after, app)

    return await call.write(write)


# --- steps --------------------------------------------------------------------------------


async def _requesting_app(tx: Transaction, call: ApiCall, name: str | None) -> App:
    if name is None and call.caller.session is not None:
        raise invalid_request("app", "A person has no access of their own: name the app that asks for it.")
    if name is None or name == call.caller.app.name:
        return call.caller.app
    call.require_permit(Action.ADMIN, of=Target())
    return await require_app(tx, call, name)


def _new_request(call: ApiCall, app: App, body: AccessRequestBody, asked: dict[str, Any]) -> AccessRequest:
    id = AccessRequestId(new_id("req"))
    request = AccessRequest(
        tenant=call.tenant,
        id=id,
        app_id=app.id,
        permit_name=id.replace("_", "-"),
        permit=asked,
        lifetime_s=body.lifetime,
        reason=body.reason,
        requested_by=call.context.by,
        created_at=call.now,
        decide_by=call.now + timedelta(seconds=body.decide_within),
    )
    return request.awaiting(call.now)


async def _visible(tx: Transaction, call: ApiCall, request_id: str) -> tuple[AccessRequest, App]:
    """The request and its app. Raises Failure NOT_FOUND alike for an absent and another app's."""
    request = require_found(await tx.access_requests.get(call.tenant, AccessRequestId(request_id)))
    if request.app_id != call.caller.app.id and not _may_read_all(call):
        raise Failure(ErrorCode.NOT_FOUND)
    return request, require_found(await tx.access.app(call.tenant, request.app_id))


async def _undecided(tx: Transaction, call: ApiCall, request_id: str) -> tuple[AccessRequest, App]:
    request, app = await _visible(tx, call, request_id)
    if not request.is_waiting or call.now >= request.decide_by:
        state = AccessRequestState.EXPIRED if request.is_waiting else request.state
        raise invalid_request("request_id", f"It waits no longer: it is {state.value}.")
    return request, app


async def _are_two_admins(tx: Transaction, call: ApiCall, request: AccessRequest) -> bool:
    """Whether who asked holds `admin` too, and isn't who decides. Of people only admins ask."""
    if not await is_second_admin(tx, call, request.requested_by):
        return False
    kind, _, name = request.requested_by.partition(":")
    return kind != "app" or await is_admin_app(tx, call, name)


async def _remove_permit(tx: Transaction, call: ApiCall, request: AccessRequest, app: App) -> None:
    """Delete the permit as it was proposed. Raises Failure ALREADY_EXISTS for one that was changed since."""
    permit = await tx.access.permit(call.tenant, app.id, request.permit_name)
    if permit is None:
        return
    if shown_permit(permit) != request.permit:
        raise Failure(
            ErrorCode.ALREADY_EXISTS, "The permit was changed since: deny this, or delete it itself."
        )
    await tx.access.delete_permit(permit)
    await audit.record_denies(tx, call.tenant, app.id, call.context, call.now)
    detail = {"app": app.name, "name": permit.name, "request_id": request.id}
    await call.record(tx, AuditAction.PERMIT_DELETED, permit.id, **detail)


async def _decide(
    tx: Transaction, call: ApiCall, action: AuditAction, after: AccessRequest, app: App
) -> AccessRequestView:
    saved = await tx.access_requests.replace(after, expected=after.revision)
    await _announce(tx, call, action, saved, app)
    return AccessRequestView.of_request(saved, app.name)


async def _announce(
    tx: Transaction, call: ApiCall, action: AuditAction, request: AccessRequest, app: App
) -> None:
    """Record it, which sends its event, and have its workflow look at it."""
    await call.record(tx, action, request.id, **request.detail(app.name))
    await tx.outbox.add(access_request_message(request, call.context, call.now))


def _may_read_all(call: ApiCall) -> bool:
    return call.may_audit(Target())
