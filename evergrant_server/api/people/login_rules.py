"""Where people log in, at the tenant's own issuer.

`/v1/admin-login` is the rule for people who administer, with the role of each of the issuer's groups;
`/v1/client-login` that for persons who use OAuth clients, with the app as which these act.

A rule pins the issuer of its integration. Each change gives it another id, which ends what the one before let
in.
"""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.people import login_url
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Scopes, Slug, View, checked_printable
from evergrant_server.api.integrations.changes import integration_facts
from evergrant_server.api.integrations.checks import checked_domains
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import AdminLoginId, ClientLoginId, new_id
from evergrant_server.core.integrations import Integration, require_login
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.people.roles import AdminLogin, PersonRole
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

admin_login_router = APIRouter(tags=["people"])
client_login_router = APIRouter(tags=["clients"])

_Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(checked_printable)]


class AdminLoginBody(Body):
    """`integration` is our client at the tenant's issuer. `roles` lists, for each role, the names of groups
    as the claim `groups_claim` has them: exact, without patterns. `scopes` are requested beside `openid`."""

    integration: Slug
    groups_claim: _Name = "groups"
    roles: Annotated[
        dict[PersonRole, Annotated[tuple[_Name, ...], Field(min_length=1, max_length=100)]],
        Field(min_length=1),
    ]
    scopes: Scopes = ()


class AdminLoginView(View):
    integration: str
    issuer: str
    groups_claim: str
    roles: dict[PersonRole, tuple[str, ...]]
    scopes: tuple[str, ...]
    changed_at: datetime
    login_url: str
    redirect_uri: str  # to register at the issuer


@admin_login_router.get("/v1/admin-login")
async def get_admin_login(call: AuditorCall) -> AdminLoginView:
    """Where the tenant's people log in."""
    async with call.api.store.read() as tx:
        rule = require_found(await tx.admin_logins.of_tenant(call.tenant))
        integration = await tx.integrations.by_name(call.tenant, rule.integration)
    return _admin_view(call, rule, integration)


@admin_login_router.put("/v1/admin-login")
@dangerous("a change of where people log in, or of who has which role")
async def put_admin_login(body: AdminLoginBody, response: Response, call: AdminCall) -> AdminLoginView:
    """Have people log in at an issuer. A change ends the sessions of all people.

    With EVERGRANT_FOUR_EYES a second admin must approve it.
    """

    async def write(tx: Transaction) -> tuple[bool, AdminLogin, Integration]:
        integration = await _usable_integration(tx, call, body.integration, "People")
        before = await tx.admin_logins.to_replace(call.tenant)
        rule = AdminLogin(
            tenant=call.tenant,
            id=AdminLoginId(new_id("alg")),
            issuer=integration.issuer or "",
            changed_at=call.now,
            **dict(body),
        )
        if before is not None and _is_same(before, rule):
            return False, before, integration
        facts = await integration_facts(tx, call.api.registry, integration)
        approved = await use_approval(tx, call, body, {"integration": facts})
        await tx.admin_logins.put(rule, before)
        if before is not None:
            await call.record(tx, AuditAction.ADMIN_LOGIN_DELETED, before.id)
        detail = {**body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.ADMIN_LOGIN_PUT, rule.id, **detail)
        return before is None, rule, integration

    is_new, rule, integration = await call.write(write)
    response.status_code = 201 if is_new else 200
    return _admin_view(call, rule, integration)


@admin_login_router.delete("/v1/admin-login", status_code=204)
@dangerous("always: it turns all people away")
async def delete_admin_login(call: AdminCall) -> Response:
    """Let no people log in. Ends the sessions of all people."""

    async def drop(tx: Transaction) -> None:
        rule = require_found(await tx.admin_logins.to_replace(call.tenant))
        approved = await use_approval(tx, call, None, {"login": rule.id})
        await tx.admin_logins.delete(rule)
        await call.record(tx, AuditAction.ADMIN_LOGIN_DELETED, rule.id, **approved)

    await call.write(drop)
    return Response(status_code=204)


def _admin_view(call: ApiCall, rule: AdminLogin, integration: Integration | None) -> AdminLoginView:
    redirect_uri = "" if integration is None else call.api.redirect_uri(integration.id)
    return AdminLoginView.of(rule, login_url=login_url(call.api, call.tenant), redirect_uri=redirect_uri)


# --- persons who use OAuth clients --------------------------------------------------------------


class ClientLoginBody(Body):
    """Clients act as the app `app`, whose permits say what they reach, and there for the person who uses them
    alone: the subject that `claim` names in the id token of `integration`'s issuer; of `email`, verified and
    of one of `domains`.

    `registration` and `documents`: whether clients may be used that registered themselves (RFC 7591), or
    whose id is the URL of a metadata document. Clients of an admin may always.
    """

    app: Slug
    integration: Slug
    claim: LoginClaim = LoginClaim.SUB
    domains: Annotated[tuple[Annotated[str, Field(max_length=255)], ...], Field(max_length=100)] = ()
    registration: bool = True
    documents: bool = True
    device: bool = False  # whether a client may show a code, with which its person decides elsewhere


class ClientLoginView(View):
    app: str
    integration: str
    issuer: str
    claim: LoginClaim
    domains: tuple[str, ...]
    registration: bool
    documents: bool
    device: bool
    changed_at: datetime
    redirect_uri: str  # to register at the issuer
    mcp_url: str  # what a person gives an MCP client


@client_login_router.get("/v1/client-login")
async def get_client_login(call: AuditorCall) -> ClientLoginView:
    """As which app OAuth clients act, and where the persons who use them log in."""
    async with call.api.store.read() as tx:
        rule = require_found(await tx.client_logins.of_tenant(call.tenant))
        app = require_found(await tx.access.app(call.tenant, rule.app_id))
        integration = await tx.integrations.by_name(call.tenant, rule.integration)
    return _client_view(call, rule, app, integration)


@client_login_router.put("/v1/client-login")
@dangerous("a change of the app that clients act as, or of where the persons behind them log in")
async def put_client_login(body: ClientLoginBody, response: Response, call: AdminCall) -> ClientLoginView:
    """Let OAuth clients act as an app, for persons who log in. A change ends what was authorized before.

    With EVERGRANT_FOUR_EYES a second admin must approve it.
    """
    domains = checked_domains(body.claim, body.domains, "domains")

    async def write(tx: Transaction) -> tuple[bool, ClientLogin, App, Integration]:
        integration = await _usable_integration(tx, call, body.integration, "Persons")
        app = await tx.access.app_by_name(call.tenant, body.app)
        if app is None:
            why = "There is no app of this name: evergrant apps put APP, and a permit for what clients reach."
            raise invalid_request("app", why)
        before = await tx.client_logins.to_replace(call.tenant)
        rule = ClientLogin(
            tenant=call.tenant,
            id=ClientLoginId(new_id("clg")),
            app_id=app.id,
            issuer=integration.issuer or "",
            changed_at=call.now,
            **{**body.model_dump(exclude={"app"}), "domains": domains},
        )
        if before is not None and _is_same(before, rule):
            return False, before, app, integration
        facts = await integration_facts(tx, call.api.registry, integration)
        approved = await use_approval(tx, call, body, {"app": app.id, "integration": facts})
        await _end_before(tx, before)
        await tx.client_logins.put(rule, before)
        if before is not None:
            await call.record(tx, AuditAction.CLIENT_LOGIN_DELETED, before.id)
        await tx.access.bump(call.tenant, app.id)
        detail = {**body.model_dump(mode="json"), "issuer": rule.issuer, **approved}
        await call.record(tx, AuditAction.CLIENT_LOGIN_PUT, rule.id, **detail)
        return before is None, rule, app, integration

    is_new, rule, app, integration = await call.write(write)
    response.status_code = 201 if is_new else 200
    return _client_view(call, rule, app, integration)


@client_login_router.delete("/v1/client-login", status_code=204)
@dangerous("always: it ends what all persons authorized")
async def delete_client_login(call: AdminCall) -> Response:
    """Let no OAuth clients act here. Ends what was authorized before."""

    async def drop(tx: Transaction) -> None:
        before = require_found(await tx.client_logins.to_replace(call.tenant))
        approved = await use_approval(tx, call, None, {"login": before.id})
        await _end_before(tx, before)
        await tx.client_logins.delete(before)
        await call.record(tx, AuditAction.CLIENT_LOGIN_DELETED, before.id, **approved)

    await call.write(drop)
    return Response(status_code=204)


async def _end_before(tx: Transaction, before: ClientLogin | None) -> None:
    """Have running calls of the app of before judged again: tokens of another rule count no more."""
    if before is not None:
        await tx.access.bump(before.tenant, before.app_id)


def _client_view(
    call: ApiCall, rule: ClientLogin, app: App, integration: Integration | None
) -> ClientLoginView:
    redirect_uri = "" if integration is None else call.api.redirect_uri(integration.id)
    url = f"{call.api.settings.gateway_public_url}/mcp"
    return ClientLoginView.of(rule, app=app.name, redirect_uri=redirect_uri, mcp_url=url)


# --- both ---------------------------------------------------------------------------------------


async def _usable_integration(tx: Transaction, call: ApiCall, name: str, persons: str) -> Integration:
    """The integration at whose issuer `persons` can log in. Raises Failure INVALID_REQUEST."""
    try:
        integration = await tx.integrations.by_name(call.tenant, name)
        return require_login(LoginRule(integration=name), integration, persons)
    except Failure as failure:
        raise invalid_request("integration", failure.detail) from None


def _is_same(before: AdminLogin | ClientLogin, rule: AdminLogin | ClientLogin) -> bool:
    """Whether the rule of before says the same: then a put changes nothing."""
    unsaid = {"id", "revision", "changed_at"}
    return before.model_dump(exclude=unsaid) == rule.model_dump(exclude=unsaid)
