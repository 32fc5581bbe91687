"""`/v1/apps/{name}/permits`: what an app may do. A change makes the lease path read the app again."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field, model_validator

from evergrant_server import audit
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.apps.routes import app_facts, require_app
from evergrant_server.api.connections.scopes import retry_waiting_connections
from evergrant_server.api.http.call import AdminCall, AdminChange, ApiCall, AuditorCall
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    Scope,
    Scopes,
    Slug,
    UtcDatetime,
    View,
    checked_printable,
    checked_slug,
)
from evergrant_server.api.integrations.changes import integration_by_name
from evergrant_server.core.access import TOKEN_ACTIONS, Action, App, Effect, EnforcementMode, Permit, Priority
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import PermitId, is_id, new_id
from evergrant_server.policy.networks import network_texts
from evergrant_server.policy.paths import path_pattern_problem
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_WEIGHTY = TOKEN_ACTIONS | {Action.ADMIN, Action.DIRECTORY}
_OWN = "An app can't give itself token, proxy or export: another one must (EVERGRANT_SELF_PERMITS)."


def _permitted_subject(value: str) -> str:
    if "*" in value[:-1]:
        raise ValueError("only its last character may be *, which stands for whatever follows")
    return checked_printable(value)


def _connection_id(value: str) -> str:
    if not is_id(value, "con"):
        raise ValueError("is not the id of a connection")
    return value


def _path_pattern(value: str) -> str:
    if problem := path_pattern_problem(value):
        raise ValueError(problem)
    return value


def _tool_pattern(value: str) -> str:
    if "*" in value[:-1]:
        raise ValueError("only its last character may be *, which stands for whatever follows")
    return checked_printable(value)


Tool = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_tool_pattern)]
Method = Annotated[str, Field(pattern="^[A-Z]{1,20}$")]
PathPattern = Annotated[str, Field(max_length=500), AfterValidator(_path_pattern)]
Name = Annotated[str, AfterValidator(lambda name: name if name == "*" else checked_slug(name))]
Note = Annotated[str, Field(max_length=500), AfterValidator(checked_printable)]


class PermitBody(Body):
    """A request is allowed when a permit with `effect: allow` fits it, and none with `effect: deny` does.

    `integration` and `provider` are a name, or `*` for every one. `subjects` are exact names, or `*` for
    all; a subject that ends in `*` stands for every subject that begins with what is before it. `connections`
    are ids; `sources` are networks in CIDR notation that the caller's address is in; null: any. After
    `expires_at` the permit fits nothing.

    Of an allow: `scope_ceiling` has the scopes that a token may have, null every one; `exact_scopes` refuses
    a lease whose token can do more than the scopes it requests. Of a deny: `scopes` has the scopes that it
    denies, null all requests; with `mode: observe` it refuses nothing, and what it would have denied is
    recorded. A deny also refuses what it can't tell apart: requests for a whole that holds what it denies,
    and callers without a known address.

    `methods` and `paths` are of the action `proxy`: the requests to the provider's API that it allows or
    denies, null every one. A path begins behind the API's base URL; its segment `*` stands for any one
    segment, and `**` at the end for all that follow. An allow has to fit a path with `%2F` in both readings;
    a deny fits every way in which a lenient server could read a path. A request that names a second method
    (`_method`, `X-HTTP-Method-Override`) fits each deny with `methods`, and no allow with them. What an API
    takes for the same thing, or reads in a body, isn't known here: to deny paths is best effort. `tools` are
    the same of tools of an MCP server; one that ends in `*` stands for all that begin so. With
    `call_approval` each of these requests, of an MCP server each call of a tool, needs a person's approval
    (`POST /v1/call-approvals`). `priority` says how large the app's part is of what a provider's API takes,
    where apps want more: of `high` twice that of `normal`, of `low` half of it.
    """

    effect: Effect = Effect.ALLOW
    mode: EnforcementMode = EnforcementMode.ENFORCE
    integration: Name
    provider: Name = "*"
    subjects: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_permitted_subject)], ...],
        Field(min_length=1, max_length=1000),
    ] = ("*",)
    connections: (
        Annotated[
            tuple[Annotated[str, AfterValidator(_connection_id)], ...], Field(min_length=1, max_length=1000)
        ]
        | None
    ) = None
    sources: (
        Annotated[
            tuple[Annotated[str, Field(max_length=100)], ...],
            Field(min_length=1, max_length=100),
            AfterValidator(network_texts),
        ]
        | None
    ) = None
    scope_ceiling: Scopes | None = None
    exact_scopes: bool = False
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=200)] | None = None
    actions: Annotated[tuple[Action, ...], Field(min_length=1)]
    expires_at: UtcDatetime | None = None
    purpose: Note = ""
    owner: Note = ""
    reason: Note = ""
    methods: Annotated[tuple[Method, ...], Field(min_length=1, max_length=20)] | None = None
    paths: Annotated[tuple[PathPattern, ...], Field(min_length=1, max_length=200)] | None = None
    call_approval: bool = False
    tools: Annotated[tuple[Tool, ...], Field(min_length=1, max_length=200)] | None = None
    priority: Priority = Priority.NORMAL

    @model_validator(mode="after")
    def _has_fields_of_its_effect(self) -> Self:
        if self.effect is Effect.ALLOW and self.scopes is not None:
            raise ValueError("an allow has scope_ceiling: scopes are those that a deny refuses")
        if self.effect is Effect.ALLOW and self.mode is EnforcementMode.OBSERVE:
            raise ValueError("only a deny observes")
        if self.effect is Effect.DENY and (self.scope_ceiling is not None or self.exact_scopes):
            raise ValueError("a deny has scopes: scope_ceiling and exact_scopes are of an allow")
        names_requests = any(field is not None for field in (self.methods, self.paths, self.tools))
        if names_requests and set(self.actions) != {Action.PROXY}:
            raise ValueError("methods, paths and tools are of a permit whose only action is proxy")
        if self.call_approval and (self.effect is Effect.DENY or set(self.actions) != {Action.PROXY}):
            raise ValueError("call_approval is of an allow whose only action is proxy")
        if self.priority is not Priority.NORMAL and (
            self.effect is Effect.DENY or Action.PROXY not in self.actions
        ):
            raise ValueError("priority is of an allow with the action proxy")
        return self


class PermitView(View):
    id: str
    name: str
    effect: Effect
    mode: EnforcementMode
    integration: str
    provider: str
    subjects: tuple[str, ...]
    connections: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    scope_ceiling: tuple[str, ...] | None
    exact_scopes: bool
    scopes: tuple[str, ...] | None
    actions: tuple[Action, ...]
    expires_at: datetime | None
    purpose: str
    owner: str
    reason: str
    methods: tuple[str, ...] | None
    paths: tuple[str, ...] | None
    call_approval: bool
    tools: tuple[str, ...] | None
    priority: Priority
    created_at: datetime
    revision: int


@router.put("/v1/apps/{name}/permits/{permit_name}")
@dangerous("a permit with token, proxy, export, admin or directory, a change of one, or of what denies these")
async def put_permit(
    name: Slug, permit_name: Slug, body: PermitBody, response: Response, call: AdminChange
) -> PermitView:
    """Create or change a permit. An app can't give itself `token`, `proxy` or `export`, nor change what
    denies it these."""
    is_own = name == call.caller.app.name
    if is_own and _denies(body, {Action.ADMIN}):
        raise invalid_request("actions", "An app can't deny itself admin: another one must.")
    if body.effect is Effect.ALLOW and not TOKEN_ACTIONS.isdisjoint(body.actions):
        _require_other(call, is_own)

    async def write(tx: Transaction) -> tuple[Permit | None, Permit]:
        app = await require_app(tx, call, name)
        before = await tx.access.permit(call.tenant, app.id, permit_name)
        if _denies(before, TOKEN_ACTIONS):
            _require_other(call, is_own)
        approved: dict[str, str] = {}
        changes = before is None or before.__replace__(**dict(body)) != before
        if changes and (gives_weighty(body) or _denies(before, _WEIGHTY)):
            facts = await permit_facts(tx, call, app, before, body.integration)
            approved = await use_approval(tx, call, body, facts)
        return before, await save_permit(tx, call, app, permit_name, body, before, approved)

    before, after = await call.write(write)
    response.status_code = 201 if before is None else 200
    return PermitView.of(after)


async def save_permit(
    tx: Transaction,
    call: ApiCall,
    app: App,
    name: str,
    body: PermitBody,
    before: Permit | None,
    recorded: Mapping[str, str],
) -> Permit:
    """Write a new permit, or the one `before` changed, with its audit record, which has `recorded` too."""
    if before is None:
        id = PermitId(new_id("per"))
        owned = {"tenant": call.tenant, "id": id, "app_id": app.id, "name": name, "created_at": call.now}
        after = await tx.access.put_permit(Permit(**owned, **dict(body)), expected=None)
    else:
        changed = before.__replace__(**dict(body))
        after = await tx.access.put_permit(changed, expected=before.revision)
    await retry_waiting_connections(tx, call, app)
    await audit.record_denies(tx, call.tenant, app.id, call.context, call.now)
    detail = {"app": app.name, "name": name, **body.model_dump(mode="json"), **recorded}
    await call.record(tx, AuditAction.PERMIT_PUT, after.id, **detail)
    return after


@router.get("/v1/apps/{name}/permits")
async def list_permits(
    name: Slug, call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[PermitView]:
    """The permits of an app, sorted by name."""
    listing = call.listing("permits", limit, cursor, app=name)
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        permits = await tx.access.permits(call.tenant, app.id, listing.after, listing.most)
    return listing.page([PermitView.of(permit) for permit in permits], permits, lambda permit: permit.name)


@router.get("/v1/apps/{name}/permits/{permit_name}")
async def get_permit(name: Slug, permit_name: Slug, call: AuditorCall) -> PermitView:
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        return PermitView.of(require_found(await tx.access.permit(call.tenant, app.id, permit_name)))


@router.delete("/v1/apps/{name}/permits/{permit_name}", status_code=204)
@dangerous("of a permit that denies token, proxy, export, admin or directory")
async def delete_permit(name: Slug, permit_name: Slug, call: AdminCall) -> Response:
    """Delete a permit. An app can't delete what denies it `token`, `proxy` or `export`."""

    async def drop(tx: Transaction) -> None:
        app = await require_app(tx, call, name)
        permit = require_found(await tx.access.permit(call.tenant, app.id, permit_name))
        if _denies(permit, TOKEN_ACTIONS):
            _require_other(call, name == call.caller.app.name)
        approved: dict[str, str] = {}
        if _denies(permit, _WEIGHTY):
            facts = await permit_facts(tx, call, app, permit, permit.integration)
            approved = await use_approval(tx, call, None, facts)
        await tx.access.delete_permit(permit)
        if permit.effect is Effect.DENY:
            await retry_waiting_connections(tx, call, app)
        await audit.record_denies(tx, call.tenant, app.id, call.context, call.now)
        detail = {"app": name, "name": permit_name, **approved}
        await call.record(tx, AuditAction.PERMIT_DELETED, permit.id, **detail)

    await call.write(drop)
    return Response(status_code=204)


async def permit_facts(
    tx: Transaction, call: ApiCall, app: App, before: Permit | None, integration: str
) -> dict[str, Any]:
    """What the names of a permit stand for; the integration where it names one."""
    known = before and {"id": before.id, "revision": before.revision}
    named = await integration_by_name(tx, call.api.registry, call.tenant, integration)
    return {**await app_facts(tx, app), "permit": known, "integration": named}


def gives_weighty(permit: PermitBody) -> bool:
    """True when it allows what reaches tokens or the configuration, or ends what people have connected."""
    return permit.effect is Effect.ALLOW and not _WEIGHTY.isdisjoint(permit.actions)


def denies_weighty(permit: PermitView) -> bool:
    """True when it refuses what reaches tokens or the configuration: to remove it takes a fresh login."""
    return _denies(permit, _WEIGHTY)


def _denies(
    permit: Permit | PermitBody | PermitView | None, actions: frozenset[Action] | set[Action]
) -> bool:
    """True when it refuses some of these actions: the app gets more once it is gone."""
    return (
        permit is not None
        and permit.effect is Effect.DENY
        and permit.mode is EnforcementMode.ENFORCE
        and not actions.isdisjoint(permit.actions)
    )


def _require_other(call: ApiCall, is_own: bool) -> None:
    """Raise Failure NOT_PERMITTED for an app that gives itself an action that reaches tokens."""
    if is_own and not call.api.settings.self_permits:
        raise Failure(ErrorCode.NOT_PERMITTED, _OWN)
