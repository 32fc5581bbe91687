"""`/v1/client-login`: as which app OAuth clients act, and where the persons who use them log in."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Slug, View
from evergrant_server.api.integrations.logins import checked_domains
from evergrant_server.api.integrations.resolution import integration_facts
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ClientLoginId, new_id
from evergrant_server.core.integrations import Integration, require_login
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["clients"])


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


class ClientLoginView(View):
    app: str
    integration: str
    issuer: str
    claim: LoginClaim
    domains: tuple[str, ...]
    registration: bool
    documents: bool
    changed_at: datetime
    redirect_uri: str  # to register at the issuer
    mcp_url: str  # what a person gives an MCP client


@router.get("/v1/client-login")
async def get_client_login(call: AuditorCall) -> ClientLoginView:
    """As which app OAuth clients act, and where the persons who use them log in."""
    async with call.api.store.read() as tx:
        rule = require_found(await tx.client_logins.of_tenant(call.tenant))
        app = require_found(await tx.access.app(call.tenant, rule.app_id))
        there = await tx.integrations.by_name(call.tenant, rule.integration)
    return _view(call, rule, app, there)


@router.put("/v1/client-login")
@dangerous("a change of the app that clients act as, or of where the persons behind them log in")
async def put_client_login(body: ClientLoginBody, response: Response, call: AdminCall) -> ClientLoginView:
    """Let OAuth clients act as an app, for persons who log in. A change ends what was authorized before.

    With EVERGRANT_FOUR_EYES a second admin must approve it.
    """
    domains = checked_domains(body.claim, body.domains, "domains")

    async def write(tx: Transaction) -> tuple[bool, ClientLogin, App, Integration]:
        there = await _usable_integration(tx, call, body.integration)
        app = await tx.access.app_by_name(call.tenant, body.app)
        if app is None:
            why = "There is no app of this name: evergrant apps put APP, and a permit for what clients reach."
            raise invalid_request("app", why)
        before = await tx.client_logins.to_replace(call.tenant)
        rule = ClientLogin(
            tenant=call.tenant,
            id=ClientLoginId(new_id("clg")),
            app_id=app.id,
            issuer=there.issuer or "",
            changed_at=call.now,
            **{**body.model_dump(exclude={"app"}), "domains": domains},
        )
        if before is not None and _said(before) == _said(rule):
            return False, before, app, there
        facts = await integration_facts(tx, call.api.registry, there)
        approved = await use_approval(tx, call, body, {"app": app.id, "integration": facts})
        await _end_before(tx, before)
        await tx.client_logins.put(rule)
        if before is not None:
            await call.record(tx, AuditAction.CLIENT_LOGIN_DELETED, before.id)
        await tx.access.bump(call.tenant, app.id)
        detail = {**body.model_dump(mode="json"), "issuer": rule.issuer, **approved}
        await call.record(tx, AuditAction.CLIENT_LOGIN_PUT, rule.id, **detail)
        return before is None, rule, app, there

    is_new, rule, app, there = await call.write(write)
    response.status_code = 201 if is_new else 200
    return _view(call, rule, app, there)


@router.delete("/v1/client-login", status_code=204)
@dangerous("always: it ends what all persons authorized")
async def delete_client_login(call: AdminCall) -> Response:
    """Let no OAuth clients act here. Ends what was authorized before."""

    async def drop(tx: Transaction) -> None:
        before = require_found(await tx.client_logins.to_replace(call.tenant))
        approved = await use_approval(tx, call, None, {"login": before.id})
        await _end_before(tx, before)
        await tx.client_logins.delete(call.tenant)
        await call.record(tx, AuditAction.CLIENT_LOGIN_DELETED, before.id, **approved)

    await call.write(drop)
    return Response(status_code=204)


async def _end_before(tx: Transaction, before: ClientLogin | None) -> None:
    """Have running calls of the app of before judged again: tokens of another rule count no more."""
    if before is not None:
        await tx.access.bump(before.tenant, before.app_id)


async def _usable_integration(tx: Transaction, call: ApiCall, name: str) -> Integration:
    try:
        found = await tx.integrations.by_name(call.tenant, name)
        return require_login(LoginRule(integration=name), found, "Persons")
    except Failure as failure:
        raise invalid_request("integration", failure.detail) from None


def _said(rule: ClientLogin) -> dict[str, object]:
    return rule.model_dump(exclude={"id", "revision", "changed_at"})


def _view(call: ApiCall, rule: ClientLogin, app: App, there: Integration | None) -> ClientLoginView:
    at = "" if there is None else call.api.redirect_uri(there.id)
    url = f"{call.api.settings.gateway_public_url}/mcp"
    return ClientLoginView.of(rule, app=app.name, redirect_uri=at, mcp_url=url)
