"""`/console/rules`: whose tokens let which apps act for people, and the issuers that the tenant trusts."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.agents.delegation_rules import (
    DelegationRuleBody,
    DelegationRuleView,
    delete_delegation_rule,
    get_delegation_rule,
    list_delegation_rules,
    put_delegation_rule,
)
from evergrant_server.api.apps.trusted_issuers import (
    TrustedIssuerBody,
    delete_issuer,
    get_issuer,
    list_issuers,
    put_issuer,
)
from evergrant_server.api.console.forms import Form, require_typed, slug_of
from evergrant_server.api.console.typed import pairs_of, words_in
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import ApiCall, require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.console.times import Counted
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegation_rules import PERSONS_ISSUERS, SubjectTokenKind
from evergrant_server.core.connections.login import LoginClaim
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import TrustedIssuerId
from evergrant_server.core.workloads.issuer import IssuerKind
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_RULES, _ISSUERS = "/console/rules", "/console/issuers"
_MOST_ISSUERS = 200
_RULE_FIELDS = (
    *("name", "issuer", "token_type", "audience", "claim", "domains", "may_act", "actors", "clients"),
)
_ISSUER_FIELDS = ("name", "kind", "issuer", "jwks_uri")
DONE = {
    "rule-made": "The rule is made.",
    "rule-saved": "The rule is saved. What it had accepted before has ended.",
    "rule-deleted": "The rule is deleted, and what it had accepted has ended.",
    "issuer-saved": "The issuer is trusted. A worker reads its keys now.",
    "issuer-deleted": "The issuer is trusted no more.",
}


@router.get(_RULES)
@console_page
async def show_rules(visit: VisitDep, cursor: str = "", done: str = "") -> Response:
    """The tenant's delegation rules, and a page of the issuers that it trusts."""
    call = await require_auditor(visit.call)
    issuers = await list_issuers(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "rules.html",
        "Delegation rules",
        rules=(await list_delegation_rules(call)).items,
        issuers=issuers.items,
        manages=call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
        **pages_of(_RULES, cursor, issuers.next_cursor),
    )


# --- delegation rules -----------------------------------------------------------------------------


@router.get("/console/new/rule")
@console_page
async def show_new_rule(visit: VisitDep) -> Response:
    """The form of a new rule."""
    return await _rule_form(visit, Form(), None)


@router.post("/console/new/rule")
@console_page
async def make_rule(visit: VisitDep) -> Response:
    """Make a rule. A name that is taken is refused."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        name = slug_of(fields, "name")
        if name in {rule.name for rule in (await list_delegation_rules(call)).items}:
            raise Failure(ErrorCode.ALREADY_EXISTS, "There is a rule of this name.", field="name")
        await put_delegation_rule(name, _rule_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return await _rule_form(visit, Form.refused(fields, refusal, _RULE_FIELDS), None)
    return redirect_response(f"{_RULES}?done=rule-made")


@router.get(f"{_RULES}/{{name}}")
@console_page
async def show_rule(visit: VisitDep, name: str) -> Response:
    """The form that changes a rule."""
    rule = await get_delegation_rule(name, await require_tenant_admin(visit.call))
    return await _rule_form(visit, Form(_rule_values(rule)), rule)


@router.post(f"{_RULES}/{{name}}")
@console_page
async def change_rule(visit: VisitDep, name: str) -> Response:
    """Change a rule, which ends what it has accepted."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    rule = await get_delegation_rule(name, call)
    try:
        await put_delegation_rule(name, _rule_body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return await _rule_form(visit, Form.refused(fields, refusal, _RULE_FIELDS), rule)
    return redirect_response(f"{_RULES}?done=rule-saved")


@router.get(f"{_RULES}/{{name}}/delete")
@console_page
async def show_delete_rule(visit: VisitDep, name: str) -> Response:
    """What would end with a rule."""
    return await _rule_deletion(visit, name, Form())


@router.post(f"{_RULES}/{{name}}/delete")
@console_page
async def end_rule(visit: VisitDep, name: str) -> Response:
    """Delete the rule whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await get_delegation_rule(name, call)
    try:
        require_typed(fields, name, "rule")
        await delete_delegation_rule(name, call)
    except Failure as refusal:
        return await _rule_deletion(visit, name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_RULES}?done=rule-deleted")


async def _rule_form(visit: ConsoleVisit, form: Form, rule: DelegationRuleView | None) -> Response:
    call = await require_tenant_admin(visit.call)
    issuers = (await list_issuers(call, limit=_MOST_ISSUERS)).items
    return visit.show_form(
        "rule_form.html",
        "A delegation rule" if rule is None else f"Change {rule.name}",
        form,
        rule=rule,
        issuers=[
            (issuer.name, f"{issuer.name}: {issuer.issuer}")
            for issuer in issuers
            if issuer.kind in PERSONS_ISSUERS
        ],
        kinds=list(SubjectTokenKind),
        claims=list(LoginClaim),
        own_issuer=visit.api.settings.public_url,
    )


async def _rule_deletion(visit: ConsoleVisit, name: str, form: Form) -> Response:
    rule = await get_delegation_rule(name, await require_tenant_admin(visit.call))
    return visit.show_form("rule_delete.html", f"Delete {name}?", form, rule=rule)


def _rule_body(fields: Mapping[str, str]) -> DelegationRuleBody:
    """Raises Failure INVALID_REQUEST, ValidationError."""
    typed = {name: fields.get(name, "") for name in ("issuer", "token_type", "audience", "claim")}
    values: dict[str, Any] = {name: text for name, text in typed.items() if text}
    values |= {name: words_in(fields, name) for name in ("domains", "actors")}
    may_act = "may_act" in fields
    return DelegationRuleBody.model_validate(
        {**values, "may_act": may_act, "clients": pairs_of(fields, "clients")}
    )


def _rule_values(rule: DelegationRuleView) -> dict[str, str]:
    values = {name: str(getattr(rule, name)) for name in ("issuer", "token_type", "audience", "claim")}
    values |= {name: " ".join(getattr(rule, name)) for name in ("domains", "actors")}
    values["clients"] = "\n".join(f"{client} = {app}" for client, app in rule.clients.items())
    return values | ({"may_act": "yes"} if rule.may_act else {})


# --- trusted issuers ------------------------------------------------------------------------------


@router.get("/console/new/issuer")
@console_page
async def show_new_issuer(visit: VisitDep) -> Response:
    """The form of an issuer that is to be trusted."""
    await require_tenant_admin(visit.call)
    return _issuer_form(visit, Form())


@router.post("/console/new/issuer")
@console_page
async def make_issuer(visit: VisitDep) -> Response:
    """Trust an issuer. A name that is taken is refused."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        name = slug_of(fields, "name")
        async with call.api.store.read() as tx:
            if await tx.trusted_issuers.by_name(call.tenant, name) is not None:
                raise Failure(ErrorCode.ALREADY_EXISTS, "There is an issuer of this name.", field="name")
        typed = {field: fields.get(field) or None for field in ("kind", "issuer", "jwks_uri")}
        await put_issuer(name, TrustedIssuerBody.model_validate(typed), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _issuer_form(visit, Form.refused(fields, refusal, _ISSUER_FIELDS))
    return redirect_response(f"{_RULES}?done=issuer-saved")


@router.post(f"{_ISSUERS}/{{name}}/read")
@console_page
async def read_issuer(visit: VisitDep, name: str) -> Response:
    """Have a worker read the issuer's keys now."""
    await visit.read_form()
    call = await require_tenant_admin(visit.call)
    issuer = await get_issuer(name, call)
    body = TrustedIssuerBody(kind=issuer.kind, issuer=issuer.issuer, jwks_uri=issuer.jwks_uri)
    await put_issuer(name, body, Response(), call)
    return redirect_response(f"{_RULES}?done=issuer-saved")


@router.get(f"{_ISSUERS}/{{name}}/delete")
@console_page
async def show_delete_issuer(visit: VisitDep, name: str) -> Response:
    """What would end with an issuer."""
    return await _issuer_deletion(visit, name, Form())


@router.post(f"{_ISSUERS}/{{name}}/delete")
@console_page
async def end_issuer(visit: VisitDep, name: str) -> Response:
    """Trust the issuer whose name was typed no more."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await get_issuer(name, call)
    try:
        require_typed(fields, name, "issuer")
        await delete_issuer(name, call)
    except Failure as refusal:
        return await _issuer_deletion(visit, name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_RULES}?done=issuer-deleted")


def _issuer_form(visit: ConsoleVisit, form: Form) -> Response:
    return visit.show_form("issuer_form.html", "Trust an issuer", form, kinds=list(IssuerKind))


async def _issuer_deletion(visit: ConsoleVisit, name: str, form: Form) -> Response:
    call = await require_tenant_admin(visit.call)
    issuer = await get_issuer(name, call)
    counts = await _named_by(call, TrustedIssuerId(issuer.id))
    title = f"Trust {name} no more?"
    return visit.show_form("issuer_delete.html", title, form, issuer=issuer, counts=counts)


async def _named_by(call: ApiCall, issuer: TrustedIssuerId) -> list[Counted]:
    """How much names an issuer, and goes with it."""
    async with call.api.store.read() as tx:
        credentials = await tx.credentials.of_issuer(call.tenant, issuer)
        rules = await tx.delegation_rules.of_issuer(call.tenant, issuer)
    return [
        (len(credentials), "credential of an app that names it", "credentials of apps that name it"),
        (len(rules), "delegation rule that names it", "delegation rules that name it"),
    ]
