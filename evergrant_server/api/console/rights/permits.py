"""Permits in the console: in plain words what one would reach, and what it would have refused, before it is
saved; what an app can reach; and whether it may use a connection."""

import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.apps.explain import explain_access
from evergrant_server.api.apps.permits import (
    PermitBody,
    PermitView,
    delete_permit,
    denies_weighty,
    get_permit,
    put_permit,
)
from evergrant_server.api.apps.reach import app_reach
from evergrant_server.api.apps.routes import get_app
from evergrant_server.api.apps.simulation import Simulation, SimulationBody, simulate_change
from evergrant_server.api.console.forms import Form, require_typed, slug_of
from evergrant_server.api.console.typed import lines_of, moment_of, words_in
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import ApiCall, require_auditor, require_tenant_admin
from evergrant_server.api.integrations.routes import list_integrations
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import Action, Effect, EnforcementMode, Priority
from evergrant_server.core.agents.delegations import chain_problem
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId
from evergrant_server.policy import Target
from evergrant_server.policy.networks import parse_address
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_LONGEST = 2000
_LONGEST_FORM = 800_000  # a thousand subjects
_MOST_INTEGRATIONS = 200  # of a choice
_EVERY = "*"
_METHOD = re.compile(r"[A-Z]{1,20}\Z")
_LINES = ("subjects", "connections", "sources", "paths", "tools")
_WORDS = ("scope_ceiling", "scopes", "methods")
_TEXTS = ("integration", "provider", "purpose", "owner", "reason")
_FIELDS = (
    *("name", "effect", "mode", "actions", "expires_at", "exact_scopes", "call_approval", "priority"),
    *(*_TEXTS, *_LINES, *_WORDS),
)
_ALIASES = {"mode": "observe"}
_SAVES = "save"  # of the form that shows what a permit would reach


@router.get("/console/apps/{name}/new/permit")
@console_page
async def show_new_permit(visit: VisitDep, name: str) -> Response:
    """The form of a new permit."""
    return await _permit_form(visit, name, Form(), None)


@router.post("/console/apps/{name}/new/permit")
@console_page
async def make_permit(visit: VisitDep, name: str) -> Response:
    """Show what a new permit would reach, or save it."""
    fields = await visit.read_form(_LONGEST_FORM)
    call = await require_tenant_admin(visit.call)
    try:
        permit_name = slug_of(fields, "name")
        await _require_unused(call, name, permit_name)
        return await _previewed_or_saved(visit, name, permit_name, fields, None)
    except (Failure, ValidationError) as refusal:
        return await _permit_form(visit, name, Form.refused(fields, refusal, _FIELDS, _ALIASES), None)


@router.get("/console/apps/{name}/permits/{permit_name}")
@console_page
async def show_permit(visit: VisitDep, name: str, permit_name: str) -> Response:
    """The form that changes a permit."""
    call = await require_tenant_admin(visit.call)
    permit = await get_permit(name, permit_name, call)
    return await _permit_form(visit, name, Form(_values_of(permit)), permit)


@router.post("/console/apps/{name}/permits/{permit_name}")
@console_page
async def change_permit(visit: VisitDep, name: str, permit_name: str) -> Response:
    """Show what a changed permit would reach and refuse, or save it."""
    fields = await visit.read_form(_LONGEST_FORM)
    permit = await get_permit(name, permit_name, await require_tenant_admin(visit.call))
    try:
        return await _previewed_or_saved(visit, name, permit_name, fields, permit)
    except (Failure, ValidationError) as refusal:
        return await _permit_form(visit, name, Form.refused(fields, refusal, _FIELDS, _ALIASES), permit)


async def _previewed_or_saved(
    visit: ConsoleVisit, name: str, permit_name: str, fields: Mapping[str, str], before: PermitView | None
) -> Response:
    """Raises Failure, ValidationError for a permit that can't be saved so."""
    call, body = visit.call, _body_of(fields)
    if fields.get("step") != _SAVES:
        simulation = await simulate_change(call, SimulationBody(app=name, permits={permit_name: body}))
        return await _preview(visit, name, permit_name, body, fields, simulation, before)
    revision = "" if before is None else str(before.revision)
    if fields.get("revision", "") != revision:
        why, repair = "The permit was changed meanwhile.", "Look at what yours would change now, and save it."
        raise Failure(ErrorCode.ALREADY_EXISTS, why, repair=repair)
    await put_permit(name, permit_name, body, Response(), call)
    return redirect_response(f"/console/apps/{name}?done=permit-saved")


async def _preview(
    visit: ConsoleVisit,
    name: str,
    permit_name: str,
    body: PermitBody,
    fields: Mapping[str, str],
    simulation: Simulation,
    before: PermitView | None,
) -> Response:
    return visit.show(
        "permit_preview.html",
        f"{permit_name} of {name}",
        permit_name=permit_name,
        permit=body,
        sent={field: text for field, text in fields.items() if field not in ("step", "revision")},
        simulation=simulation,
        reached=simulation.permits[0],
        **await _form_values(visit, name, before),
        form=Form(fields),
    )


async def _permit_form(visit: ConsoleVisit, name: str, form: Form, before: PermitView | None) -> Response:
    values = await _form_values(visit, name, before)
    title = f"A permit of {name}" if before is None else f"Change {before.name} of {name}"
    return visit.show_form("permit_form.html", title, form, **values)


async def _form_values(visit: ConsoleVisit, name: str, before: PermitView | None) -> dict[str, Any]:
    call = await require_tenant_admin(visit.call)
    page = await list_integrations(call, limit=_MOST_INTEGRATIONS)
    names = [integration.name for integration in page.items]
    if before is not None and before.integration not in (_EVERY, *names):
        names.append(before.integration)
    return {
        "app": (await get_app(name, call)).name,
        "before": before,
        "integrations": None if page.next_cursor else names,
        "actions": list(Action),
        "effects": list(Effect),
        "priorities": list(Priority),
    }


def _body_of(fields: Mapping[str, str]) -> PermitBody:
    """The permit that is typed. Raises Failure INVALID_REQUEST, ValidationError."""
    values: dict[str, Any] = {name: text for name in _TEXTS if (text := fields.get(name, ""))}
    values |= {name: lines for name in _LINES if (lines := lines_of(fields, name))}
    values |= {name: words for name in _WORDS if (words := words_in(fields, name))}
    values.setdefault("subjects", [])
    if "no_scopes" in fields:
        if "scope_ceiling" in values:
            raise invalid_request("scope_ceiling", "Either these scopes, or none at all.")
        values["scope_ceiling"] = []
    if "methods" in values:
        values["methods"] = [method.upper() for method in values["methods"]]
    if "observe" in fields:
        values["mode"] = EnforcementMode.OBSERVE
    return PermitBody.model_validate(
        {
            **values,
            "effect": fields.get("effect", Effect.ALLOW),
            "priority": fields.get("priority", Priority.NORMAL),
            "actions": fields.get("actions", "").split(),
            "expires_at": moment_of(fields, "expires_at"),
            "exact_scopes": "exact_scopes" in fields,
            "call_approval": "call_approval" in fields,
        }
    )


def _values_of(permit: PermitView) -> dict[str, str]:
    """The permit as its form has it."""
    values = {name: str(getattr(permit, name)) for name in (*_TEXTS, "effect", "priority")}
    values |= {name: "\n".join(getattr(permit, name) or ()) for name in _LINES}
    values |= {name: " ".join(getattr(permit, name) or ()) for name in _WORDS}
    values["actions"] = " ".join(permit.actions)
    marked = {
        "no_scopes": permit.scope_ceiling == (),
        "exact_scopes": permit.exact_scopes,
        "call_approval": permit.call_approval,
        "observe": permit.mode is EnforcementMode.OBSERVE,
    }
    values |= {name: "yes" for name, is_marked in marked.items() if is_marked}
    if permit.expires_at is not None:
        values["expires_at"] = f"{permit.expires_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"
    return values


async def _require_unused(call: ApiCall, name: str, permit_name: str) -> None:
    """Raise Failure ALREADY_EXISTS for the name of a permit: a put would change that permit."""
    try:
        await get_permit(name, permit_name, call)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_FOUND:
            raise
        await get_app(name, call)
        return
    raise Failure(ErrorCode.ALREADY_EXISTS, "The app has a permit of this name.", field="name")


@router.get("/console/apps/{name}/permits/{permit_name}/remove")
@console_page
async def show_remove_permit(visit: VisitDep, name: str, permit_name: str) -> Response:
    """What the app would have lost without a permit, and the form that removes it."""
    return await _remove_form(visit, name, permit_name, Form())


@router.post("/console/apps/{name}/permits/{permit_name}/remove")
@console_page
async def remove_permit(visit: VisitDep, name: str, permit_name: str) -> Response:
    """Remove the permit whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await get_permit(name, permit_name, call)
    try:
        require_typed(fields, permit_name, "permit")
        await delete_permit(name, permit_name, call)
    except Failure as refusal:
        return await _remove_form(visit, name, permit_name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"/console/apps/{name}?done=permit-removed")


async def _remove_form(visit: ConsoleVisit, name: str, permit_name: str, form: Form) -> Response:
    call = await require_tenant_admin(visit.call)
    permit = await get_permit(name, permit_name, call)
    simulation = await simulate_change(call, SimulationBody(app=name, permits={permit_name: None}))
    title = f"Remove {permit_name} of {name}?"
    values = {"app": name, "permit": permit, "simulation": simulation, "changed": simulation.permits[0]}
    takes_login = denies_weighty(permit)
    return visit.show_form("permit_remove.html", title, form, takes_login=takes_login, **values)


# --- what an app can reach, and whether it may ----------------------------------------------------


@router.get("/console/apps/{name}/reach")
@console_page
async def show_reach(visit: VisitDep, name: str, cursor: str = "") -> Response:
    """What one app or agent can reach now, in plain words."""
    call = await require_auditor(visit.call)
    app = await get_app(name, call)
    reach = await app_reach(name, call, limit=ROWS, cursor=cursor or None)
    sponsor = app.sponsor or ""
    names = await visit.names_of([sponsor])
    async with call.api.store.read() as tx:
        delegations = await tx.delegations.live_of_app(call.tenant, AppId(app.id), call.now, ROWS)
        chains = [await tx.delegations.chain(delegation) for delegation in delegations]
    return visit.show(
        "reach.html",
        f"What {name} can reach",
        it=app,
        found=reach,
        sponsor=names.get(sponsor, sponsor),
        acting=[chain[-1] for chain in chains if chain_problem(chain, call.now) is None],
        manages=call.allows(Action.ADMIN, Target()),
        **pages_of(f"/console/apps/{name}/reach", cursor, reach.next_cursor),
    )


@router.get("/console/access")
@console_page
async def show_access(
    visit: VisitDep,
    app: str = "",
    connection: str = "",
    scopes: str = "",
    action: str = "token",
    method: str = "",
    path: str = "",
    tool: str = "",
    address: str = "",
) -> Response:
    """May an app use a connection now, or make one call with it; by which permit, and what else stops it."""
    call = await require_auditor(visit.call)
    typed = {"app": app, "connection": connection, "scopes": scopes, "method": method.upper()}
    typed |= {"path": path, "tool": tool, "address": address}
    fields = {name: text[:_LONGEST].strip() for name, text in typed.items()}
    wanted = chosen(Action, action, "action")
    answer = None
    if fields["app"] and fields["connection"]:
        answer = await explain_access(call, **_question_of(fields), action=wanted)
    return visit.show(
        "access.html",
        "Who may",
        fields=fields,
        wanted=wanted,
        actions=[each for each in Action if each is not Action.EXPORT],
        answer=answer,
        manages=call.allows(Action.ADMIN, Target()),
    )


def _question_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """The question as the API's route has it. Raises Failure INVALID_REQUEST."""
    if fields["method"] and not _METHOD.match(fields["method"]):
        raise invalid_request("method", "method: use one such as GET.")
    if fields["path"] and not fields["path"].startswith("/"):
        raise invalid_request("path", "path: begin it with /, as it follows the API's base URL.")
    address = None
    try:
        address = str(parse_address(fields["address"])) if fields["address"] else None
    except ValueError:
        raise invalid_request("address", "address: use an IP address, such as 192.0.2.7.") from None
    optional = {name: fields[name] or None for name in ("method", "path", "tool")}
    return {
        **{name: fields[name] for name in ("app", "connection", "scopes")},
        **optional,
        "address": address,
    }
