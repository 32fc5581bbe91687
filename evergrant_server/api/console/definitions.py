"""`/console/providers`: the catalogue with its evidence; `/console/definitions`: the tenant's own."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.console.forms import Form, number_of
from evergrant_server.api.console.visit import ConsoleVisit, VisitDep, console_page
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.integrations.definitions import (
    DecisionBody,
    DefinitionBody,
    DefinitionView,
    RollBackBody,
    approve_definition,
    get_provider,
    list_definition_versions,
    list_definitions,
    list_providers,
    propose_definition,
    reject_definition,
    roll_back_definition,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.console.catalogue import differences, evidence_of, facts_of, search
from evergrant_server.core.access import Action
from evergrant_server.core.definition import DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request, require_found
from providers.definition.parsing import InvalidYaml, parse_definition, parse_yaml
from providers.definition.validation import CATEGORIES

router = APIRouter(include_in_schema=False)

_LONGEST = 100
_DEFINITIONS, _NEW = "/console/definitions", "/console/new/definition"
_MOST_BYTES = 300_000
_PERCENT, _HOUR_S = 100, 3600
_ROLLOUT = ("rollout.shares", "rollout.stage_s", "rollout.enough", "rollout.most_bad")
_DECISION = ("reason", "accept_hosts")
_SERVED = (DefinitionState.STAGED, DefinitionState.ACTIVE, DefinitionState.REPLACED)
STATES = {  # in words, and the tone of its mark
    DefinitionState.CHECKING: ("is checked", "wait"),
    DefinitionState.WAITING: ("waits for a decision", "wait"),
    DefinitionState.UNSOUND: ("has a problem", "bad"),
    DefinitionState.REJECTED: ("rejected", "ended"),
    DefinitionState.STAGED: ("serves a share", "wait"),
    DefinitionState.ACTIVE: ("serves all", "good"),
    DefinitionState.ROLLED_BACK: ("rolled back", "bad"),
    DefinitionState.REPLACED: ("replaced", "ended"),
}
DONE = {
    "proposed": "The definition is proposed. A worker checks it; then an admin decides.",
    "approved": "It is approved. A worker puts it into service.",
    "rejected": "It is rejected.",
    "rolled-back": "A worker puts the version before back into service.",
}


@router.get("/console/providers")
@console_page
async def show_providers(visit: VisitDep, q: str = "", category: str = "", after: str = "") -> Response:
    """The providers that fit the words, by name."""
    listed = await list_providers(visit.call)
    page = search(listed.items, q[:_LONGEST], category, after)
    kept = {name: text for name, text in (("q", q[:_LONGEST]), ("category", category)) if text}
    return visit.show(
        "providers.html",
        "Catalogue",
        found=page,
        q=q[:_LONGEST],
        category=category,
        categories=CATEGORIES,
        next_page=f"?{urlencode({**kept, 'after': page.next_after})}" if page.next_after else None,
        first_page=f"/console/providers?{urlencode(kept)}" if after else None,
        reads=visit.call.may_audit(Target()),
    )


@router.get("/console/providers/{provider}")
@console_page
async def show_provider(visit: VisitDep, provider: str) -> Response:
    """A provider's definition, and what it is known from."""
    view = await get_provider(provider, visit.call)
    return visit.show(
        "provider.html",
        view["display_name"],
        it=view,
        facts=facts_of(view["definition"]),
        evidence=evidence_of(view["definition"]),
        disagreements=view["definition"].get("sources", {}).get("disagreements", ()),
        notes=view["definition"].get("notes", ()),
        categories=CATEGORIES,
        makes=visit.call.allows(Action.ADMIN, Target()),
    )


# --- the tenant's own ---------------------------------------------------------------------------


@router.get(_DEFINITIONS)
@console_page
async def show_definitions(visit: VisitDep) -> Response:
    """The tenant's definitions, each with its newest version."""
    call = await require_auditor(visit.call)
    definitions = (await list_definitions(call)).items
    return visit.show(
        "definitions.html",
        "Own definitions",
        definitions=definitions,
        states=STATES,
        names=await visit.names_of(version.proposed_by for version in definitions),
        makes=visit.call.allows(Action.ADMIN, Target()),
    )


@router.get(f"{_DEFINITIONS}/{{provider}}")
@console_page
async def show_versions(visit: VisitDep, provider: str) -> Response:
    """The versions of one provider's definition, the newest first."""
    versions = (await list_definition_versions(provider, await require_auditor(visit.call))).items
    return visit.show(
        "definition.html",
        provider,
        provider=provider,
        versions=versions,
        states=STATES,
        names=await visit.names_of(_actors(versions)),
        makes=visit.call.allows(Action.ADMIN, Target()),
    )


@router.get(f"{_DEFINITIONS}/{{provider}}/changes")
@console_page
async def show_version(visit: VisitDep, provider: str, version: str = "", done: str = "") -> Response:
    """One version, by default the newest: what it changes, what the checks found, the forms to decide."""
    return await _version_page(visit, provider, version, Form(), notice=DONE.get(done))


@router.get(_NEW)
@console_page
async def show_new_definition(visit: VisitDep, provider: str = "") -> Response:
    """The form of a proposal, which begins with the definition that serves now."""
    await require_tenant_admin(visit.call)
    values: dict[str, str] = {}
    if provider:
        serving = await get_provider(provider[:_LONGEST], visit.call)
        values["definition"] = json.dumps(serving["definition"], indent=2, ensure_ascii=False)
    return _proposal_form(visit, Form(values), provider[:_LONGEST])


@router.post(_NEW)
@console_page
async def propose(visit: VisitDep) -> Response:
    """Propose a definition: a worker checks it, and nothing uses it before an admin approves."""
    fields = await visit.read_form(_MOST_BYTES)
    try:
        body = DefinitionBody.model_validate({"definition": _document(fields), "rollout": _rollout(fields)})
        answer = await propose_definition(body, await require_tenant_admin(visit.call))
    except ValidationError as refusal:
        return _proposal_form(visit, Form.refused(fields, refusal, ("definition", *_ROLLOUT)))
    except Failure as refusal:
        return _proposal_form(visit, Form.refused(fields, _at_the_text(refusal), ("definition", *_ROLLOUT)))
    made = DefinitionView.model_validate_json(bytes(answer.body))
    return _back_to(made, "proposed")


@router.post(f"{_DEFINITIONS}/{{provider}}/approve")
@console_page
async def approve(visit: VisitDep, provider: str) -> Response:
    """Approve a checked version."""
    fields = await visit.read_form()
    try:
        body = _decision(fields)
        made = await approve_definition(provider, body, await require_tenant_admin(visit.call))
    except (Failure, ValidationError) as refusal:
        form = Form.refused(fields, refusal, _DECISION)
        return await _version_page(visit, provider, fields.get("version", ""), form)
    return _back_to(made, "approved")


@router.post(f"{_DEFINITIONS}/{{provider}}/reject")
@console_page
async def reject(visit: VisitDep, provider: str) -> Response:
    """Reject a checked version, with a reason for who proposed it."""
    fields = await visit.read_form()
    try:
        body = _decision(fields)
        made = await reject_definition(provider, body, await require_tenant_admin(visit.call))
    except (Failure, ValidationError) as refusal:
        form = Form.refused(fields, refusal, _DECISION)
        return await _version_page(visit, provider, fields.get("version", ""), form)
    return _back_to(made, "rejected")


@router.post(f"{_DEFINITIONS}/{{provider}}/roll-back")
@console_page
async def roll_back(visit: VisitDep, provider: str) -> Response:
    """Put the version before a staged one back into service."""
    fields = await visit.read_form()
    try:
        reason = fields.get("reason") or "requested"
        body = RollBackBody.model_validate({"version": _number(fields), "reason": reason})
        made = await roll_back_definition(provider, body, await require_tenant_admin(visit.call))
    except (Failure, ValidationError) as refusal:
        form = Form.refused(fields, refusal, _DECISION)
        return await _version_page(visit, provider, fields.get("version", ""), form)
    return _back_to(made, "rolled-back")


async def _version_page(
    visit: ConsoleVisit, provider: str, number: str, form: Form, notice: str | None = None
) -> Response:
    call = await require_auditor(visit.call)
    versions = (await list_definition_versions(provider, call)).items
    wanted = (each for each in versions if str(each.version) == (number or str(versions[0].version)))
    version = require_found(next(wanted, None))
    before = next(
        (each for each in versions if each.version < version.version and each.state in _SERVED), None
    )
    return visit.show_form(
        "definition_version.html",
        f"{provider}, version {version.version}",
        form,
        version=version,
        before="the catalogue's" if before is None else f"version {before.version}",
        rows=differences(_known(visit, provider, before), _whole(version.document)),
        states=STATES,
        names=await visit.names_of(_actors([version])),
        decides=visit.call.allows(Action.ADMIN, Target()),
        notice=notice,
    )


def _known(visit: ConsoleVisit, provider: str, before: DefinitionView | None) -> dict[str, Any]:
    """The definition that a version is compared with; empty where it is the first of its provider."""
    if before is not None:
        return _whole(before.document)
    registry = visit.api.registry
    if provider not in registry.names():
        return {}
    return registry.get(provider).model_dump(mode="json", exclude_defaults=True)


def _whole(document: dict[str, Any]) -> dict[str, Any]:
    """The definition without members that have their default, so that only differences count."""
    try:
        return parse_definition(document, "a version").model_dump(mode="json", exclude_defaults=True)
    except Failure:  # of an older schema
        return document


def _document(fields: Mapping[str, str]) -> dict[str, Any]:
    """The definition in the form's text, or in its file. Raises Failure INVALID_REQUEST."""
    text = fields.get("file") or fields.get("definition", "")
    if not text:
        raise invalid_request("definition", "Paste a definition, or choose a file.")
    try:
        document = parse_yaml(text)  # of which JSON is a part
    except InvalidYaml as error:
        raise invalid_request("definition", f"The definition {error}") from None
    if not isinstance(document, dict):
        raise invalid_request("definition", "It begins with the members' names, such as name: acme.")
    return json.loads(json.dumps(document, default=str))


def _at_the_text(refusal: Failure) -> Failure:
    """A refusal of one of the definition's members, which all stand in one field."""
    if refusal.code not in (ErrorCode.INVALID_REQUEST, ErrorCode.ALREADY_EXISTS):
        return refusal
    if refusal.context.get("field", "") in _ROLLOUT:
        return refusal
    return Failure(refusal.code, refusal.detail, field="definition")


def _rollout(fields: Mapping[str, str]) -> dict[str, Any]:
    """The members of the rollout that the form names; percents become shares, hours seconds."""
    rollout: dict[str, Any] = {}
    if shares := fields.get("rollout.shares", "").replace(",", " ").split():
        numbers = [number_of({"rollout.shares": share.rstrip("%")}, "rollout.shares") for share in shares]
        rollout["shares"] = [(number or 0) / _PERCENT for number in numbers]
    if (hours := number_of(fields, "rollout.stage_s")) is not None:
        rollout["stage_s"] = hours * _HOUR_S
    if (enough := number_of(fields, "rollout.enough")) is not None:
        rollout["enough"] = int(enough)
    if (most := number_of(fields, "rollout.most_bad")) is not None:
        rollout["most_bad"] = most / _PERCENT
    return rollout


def _proposal_form(visit: ConsoleVisit, form: Form, provider: str = "") -> Response:
    title = f"Propose another definition of {provider}" if provider else "Propose a definition"
    return visit.show_form("definition_form.html", title, form, usual=Rollout())


def _decision(fields: Mapping[str, str]) -> DecisionBody:
    reason, accepts = fields.get("reason") or None, "accept_hosts" in fields
    return DecisionBody.model_validate(
        {"version": _number(fields), "reason": reason, "accept_hosts": accepts}
    )


def _number(fields: Mapping[str, str]) -> int:
    """The version that a form is about. Raises Failure NOT_FOUND."""
    version = fields.get("version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 7):
        raise Failure(ErrorCode.NOT_FOUND)
    return int(version)


def _actors(versions: Sequence[DefinitionView]) -> list[str]:
    return [actor for version in versions for actor in (version.proposed_by, version.decided_by) if actor]


def _back_to(version: DefinitionView, done: str) -> Response:
    return redirect_response(f"{_DEFINITIONS}/{version.name}/changes?version={version.version}&done={done}")
