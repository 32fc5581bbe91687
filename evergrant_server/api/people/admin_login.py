"""`/v1/admin-login`: where the tenant's people log in, and which of the issuer's groups have which role."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.people import login_url
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Scopes, Slug, View, _printable
from evergrant_server.api.integrations.resolution import integration_facts
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import AdminLoginId, new_id
from evergrant_server.core.integrations import Integration, require_login
from evergrant_server.core.people.roles import AdminLogin, PersonRole
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["people"])

_Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)]

_Groups = Annotated[tuple[_Name, ...], Field(min_length=1, max_length=100)]


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


@router.get("/v1/admin-login")
async def get_admin_login(call: AuditorCall) -> AdminLoginView:
    """Where the tenant's people log in."""
    async with call.api.store.read() as tx:
        rule = require_found(await tx.admin_logins.of_tenant(call.tenant))
        found = await tx.integrations.by_name(call.tenant, rule.integration)
    return _view(call, rule, found)


@router.put("/v1/admin-login")
@dangerous("a change of where people log in, or of who has which role")
async def put_admin_login(body: AdminLoginBody, response: Response, call: AdminCall) -> AdminLoginView:
    """Have people log in at an issuer. A change ends the sessions of all people.

    With EVERGRANT_FOUR_EYES a second admin must approve it.
    """

    async def write(tx: Transaction) -> tuple[bool, AdminLogin, Integration]:
        there = await _usable_integration(tx, call, body.integration)
        before = await tx.admin_logins.to_replace(call.tenant)
        new_one = AdminLoginId(new_id("alg"))
        pinned = {"id": new_one, "issuer": there.issuer or "", "changed_at": call.now}
        rule = AdminLogin(tenant=call.tenant, **pinned, **dict(body))
        if before is not None and _said(before) == _said(rule):
            return False, before, there
        facts = await integration_facts(tx, call.api.registry, there)
        approved = await use_approval(tx, call, body, {"integration": facts})
        await tx.admin_logins.put(rule)
        if before is not None:
            await call.record(tx, AuditAction.ADMIN_LOGIN_DELETED, before.id)
        detail = {**body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.ADMIN_LOGIN_PUT, rule.id, **detail)
        return before is None, rule, there

    is_new, rule, there = await call.write(write)
    response.status_code = 201 if is_new else 200
    return _view(call, rule, there)


@router.delete("/v1/admin-login", status_code=204)
@dangerous("always: it turns all people away")
async def delete_admin_login(call: AdminCall) -> Response:
    """Let no people log in. Ends the sessions of all people."""

    async def drop(tx: Transaction) -> None:
        rule = require_found(await tx.admin_logins.to_replace(call.tenant))
        approved = await use_approval(tx, call, None, {"login": rule.id})
        await tx.admin_logins.delete(call.tenant)
        await call.record(tx, AuditAction.ADMIN_LOGIN_DELETED, rule.id, **approved)

    await call.write(drop)
    return Response(status_code=204)


async def _usable_integration(tx: Transaction, call: ApiCall, name: str) -> Integration:
    try:
        rule = LoginRule(integration=name)
        return require_login(rule, await tx.integrations.by_name(call.tenant, name), "People")
    except Failure as failure:
        raise invalid_request("integration", failure.detail) from None


def _said(rule: AdminLogin) -> dict[str, object]:
    return rule.model_dump(exclude={"id", "revision", "changed_at"})


def _view(call: ApiCall, rule: AdminLogin, found: Integration | None) -> AdminLoginView:
    at = "" if found is None else call.api.redirect_uri(found.id)
    return AdminLoginView.of(rule, login_url=login_url(call.api, call.tenant), redirect_uri=at)
