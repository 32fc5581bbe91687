"""`/v1/delegation-rules`: whose tokens let which apps act for a person."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.apps.trusted_issuers import issuer_facts
from evergrant_server.api.http.call import AdminCall, AdminChange, ApiCall, AuditorCall
from evergrant_server.api.http.models import Body, Page, Slug, Text, View
from evergrant_server.core.agents.delegation_rules import (
    MOST_RULES,
    PERSONS_ISSUERS,
    DelegationRule,
    SubjectTokenKind,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.login import LoginClaim
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, DelegationRuleId, new_id
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["agents"])

_Names = Annotated[tuple[Slug, ...], Field(max_length=100)]


class DelegationRuleBody(Body):
    """Tokens of the trusted issuer `issuer`, of the type `token_type`, with exactly this `audience`.

    `claim` names the subject as connections name it; `email` has to be verified, and of one of `domains`. Who
    may act, in at least one way: `may_act`, the app that the token's claim `may_act` names; `actors`, these
    apps for every person; `clients`, an app for each client (`azp`, `client_id`) that tokens are issued to.
    A rule of the type `id_jag` lets the issuer grant access here: `audience` is this server's issuer, and
    `actors` are the apps to which it may.
    """

    issuer: Slug
    token_type: SubjectTokenKind
    audience: Text
    claim: LoginClaim = LoginClaim.SUB
    domains: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    may_act: bool = False
    actors: _Names = ()
    clients: Annotated[dict[Text, Slug], Field(max_length=100)] = Field(default_factory=dict)


class DelegationRuleView(View):
    """`actors` and the values of `clients` are names of apps; a deleted app's is left out."""

    id: str
    name: str
    issuer: str
    token_type: SubjectTokenKind
    audience: str
    claim: LoginClaim
    domains: tuple[str, ...]
    may_act: bool
    actors: tuple[str, ...]
    clients: dict[str, str]
    created_at: datetime
    changed_at: datetime
    revision: int


@router.put("/v1/delegation-rules/{name}")
@dangerous("a new rule, and each change of one")
async def put_delegation_rule(
    name: Slug, body: DelegationRuleBody, response: Response, call: AdminChange
) -> DelegationRuleView:
    """Say which tokens of a trusted issuer let which apps act for a person. A change ends the delegations
    that the rule has accepted before."""
    _check(body, call.api.settings.public_url)

    async def write(tx: Transaction) -> tuple[bool, DelegationRuleView]:
        await tx.take_turns(f"delegation rules:{call.tenant}")
        before = await tx.delegation_rules.by_name(call.tenant, name)
        if before is None and len(await tx.delegation_rules.all(call.tenant)) >= MOST_RULES:
            raise Failure(ErrorCode.ALREADY_EXISTS, f"The tenant has {MOST_RULES} delegation rules already.")
        after = await _with_body(tx, call, name, before, body)
        approved: dict[str, str] = {}
        if before is None or _content(before) != _content(after):
            approved = await use_approval(tx, call, body, await _facts(tx, before, after))
        after = await tx.delegation_rules.put(after, expected=before.revision if before else None)
        detail = {"name": name, **body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.DELEGATION_RULE_PUT, after.id, **detail)
        return before is None, await _view(tx, after)

    created, view = await call.write(write)
    response.status_code = 201 if created else 200
    return view


@router.get("/v1/delegation-rules")
async def list_delegation_rules(call: AuditorCall) -> Page[DelegationRuleView]:
    """The tenant's rules, sorted by name."""
    async with call.api.store.read() as tx:
        return Page(items=[await _view(tx, rule) for rule in await tx.delegation_rules.all(call.tenant)])


@router.get("/v1/delegation-rules/{name}")
async def get_delegation_rule(name: Slug, call: AuditorCall) -> DelegationRuleView:
    async with call.api.store.read() as tx:
        return await _view(tx, require_found(await tx.delegation_rules.by_name(call.tenant, name)))


@router.delete("/v1/delegation-rules/{name}", status_code=204)
@dangerous("always: it ends what the rule has accepted")
async def delete_delegation_rule(name: Slug, call: AdminCall) -> Response:
    """Accept such tokens no more. What the rule has accepted ends with this response."""

    async def drop(tx: Transaction) -> None:
        rule = require_found(await tx.delegation_rules.by_name(call.tenant, name))
        approved = await use_approval(tx, call, None, {"rule": rule.id})
        await tx.delegation_rules.delete(rule)
        await call.record(tx, AuditAction.DELEGATION_RULE_DELETED, rule.id, name=name, **approved)

    await call.write(drop)
    return Response(status_code=204)


def _content(rule: DelegationRule) -> dict[str, Any]:
    return rule.model_dump(exclude={"revision", "changed_at"})


async def _facts(tx: Transaction, before: DelegationRule | None, after: DelegationRule) -> dict[str, Any]:
    """What the rule's name, and the names in it, stand for."""
    issuer = await tx.trusted_issuers.get(after.tenant, after.issuer_id)
    known = before and {"id": before.id, "revision": before.revision}
    apps = {"actors": list(after.actors), "clients": after.clients}
    return {"rule": known, "issuer": issuer_facts(issuer), **apps}


def _check(body: DelegationRuleBody, ours: str) -> None:
    """Raises Failure INVALID_REQUEST naming the field."""
    if not (body.may_act or body.actors or body.clients):
        why = "Say who may act: actors, clients or may_act. A trusted issuer alone is no consent."
        raise invalid_request("actors", why)
    if body.token_type is SubjectTokenKind.ID_JAG:
        if body.audience != ours:
            raise invalid_request("audience", f"audience: an ID-JAG is for this server's issuer, {ours}.")
        if body.may_act or body.clients or not body.actors:
            raise invalid_request(
                "actors", "actors: an ID-JAG names its client, which is to be one of these."
            )
    if (body.claim is LoginClaim.EMAIL) is not bool(body.domains):
        raise invalid_request("domains", "domains: the claim email needs them, and it alone.")


async def _with_body(
    tx: Transaction, call: ApiCall, name: str, before: DelegationRule | None, body: DelegationRuleBody
) -> DelegationRule:
    issuer = await _issuer(tx, call, body.issuer)
    ids = {app: await _app_id(tx, call, app) for app in {*body.actors, *body.clients.values()}}
    facts = {
        **dict(body),
        "issuer_id": issuer.id,
        "domains": tuple(domain.lower() for domain in body.domains),
        "actors": tuple(ids[app] for app in body.actors),
        "clients": {client: ids[app] for client, app in body.clients.items()},
        "changed_at": call.now,
    }
    del facts["issuer"]
    if before is not None:
        return before.__replace__(**facts)
    id = DelegationRuleId(new_id("dru"))
    return DelegationRule(tenant=call.tenant, id=id, name=name, created_at=call.now, **facts)


async def _issuer(tx: Transaction, call: ApiCall, name: str) -> TrustedIssuer:
    issuer = await tx.trusted_issuers.by_name(call.tenant, name)
    if issuer is None:
        raise invalid_request("issuer", "issuer: the tenant trusts no issuer of this name.")
    if issuer.kind not in PERSONS_ISSUERS:
        kinds = ", ".join(PERSONS_ISSUERS)
        raise invalid_request("issuer", f"issuer: one of the kind {issuer.kind} names no people: {kinds}.")
    return issuer


async def _app_id(tx: Transaction, call: ApiCall, name: str) -> AppId:
    app = await tx.access.app_by_name(call.tenant, name)
    if app is None:
        raise invalid_request("actors", f"actors, clients: the tenant has no app {name}.")
    return app.id


async def _view(tx: Transaction, rule: DelegationRule) -> DelegationRuleView:
    issuer = await tx.trusted_issuers.get(rule.tenant, rule.issuer_id)
    names: dict[str, str] = {}
    for id in {*rule.actors, *rule.clients.values()}:
        app = await tx.access.app(rule.tenant, id)
        if app is not None:
            names[id] = app.name
    return DelegationRuleView.of(
        rule,
        issuer="" if issuer is None else issuer.name,
        actors=tuple(names[app_id] for app_id in rule.actors if app_id in names),
        clients={client: names[id] for client, id in rule.clients.items() if id in names},
    )
