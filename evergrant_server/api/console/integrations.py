"""`/console/integrations`: their health, and how one is made, changed, tried, given a new secret, deleted."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.access.context import spec_by_name
from evergrant_server.api.connections.models import ConnectionBody, ConnectionView
from evergrant_server.api.connections.routes import create_connection
from evergrant_server.api.console.forms import Form, number_of, require_typed, slug_of
from evergrant_server.api.console.integration_form import (
    ALIASES,
    AUTH_WORDS,
    BINDING_WORDS,
    FIELDS,
    REGISTRATION_WORDS,
    ROTATION_WORDS,
    body_of,
    integration_row,
    offer_of,
    values_of,
)
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, console_page, pages_of
from evergrant_server.api.http.call import require_tenant_admin
from evergrant_server.api.integrations.health import get_integration_health
from evergrant_server.api.integrations.models import IntegrationView, RotateSecretBody
from evergrant_server.api.integrations.routes import (
    delete_integration,
    get_integration,
    list_integrations,
    put_integration,
    rotate_client_secret,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.console.next_steps import findings, turn_of
from evergrant_server.core.access import Action
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.policy import Target
from evergrant_server.problems import require_found

router = APIRouter(include_in_schema=False)

_INTEGRATIONS, _NEW = "/console/integrations", "/console/new/integration"
_LONGEST = 2000
# the row is written: what the provider's metadata lacks stands on the integration's page
_WRITTEN = (ErrorCode.DISCOVERY_FAILED, ErrorCode.TEMPORAL_UNAVAILABLE)
DONE = {
    "made": "The integration is made.",
    "changed": "The integration is changed.",
    "rotated": "The new one is used first. The previous one is tried too until it ends.",
    "rolled-back": "The previous one is the only one again.",
    "deleted": "The integration is deleted, with its secret.",
}


@router.get(_INTEGRATIONS)
@console_page
async def show_integrations(visit: VisitDep, cursor: str = "", done: str = "") -> Response:
    """A page of the integrations that the visitor administers or audits."""
    integrations = await list_integrations(visit.call, limit=ROWS, cursor=cursor or None)
    now = visit.api.clock.now()
    return visit.show(
        "integrations.html",
        "Integrations",
        rows=[(integration, findings(integration, now)) for integration in integrations.items],
        makes=visit.call.allows(Action.ADMIN, Target()),
        said=DONE.get(done),
        **pages_of(_INTEGRATIONS, cursor, integrations.next_cursor),
    )


@router.get(f"{_INTEGRATIONS}/{{name}}")
@console_page
async def show_integration(visit: VisitDep, name: str, done: str = "") -> Response:
    """One integration: its health, its failures by cause, and what to register at the provider."""
    integration = await get_integration(name, visit.call)
    health = await get_integration_health(name, visit.call)
    states = (LifecycleState.NEEDS_REAUTH, LifecycleState.PENDING_CONSENT, LifecycleState.ACTIVE)
    target = Target(integration.name, integration.provider)
    return visit.show(
        "integration.html",
        integration.name,
        it=integration,
        found=findings(integration, visit.api.clock.now()),
        health=health,
        turns=[turn_of(cause) for cause in health.causes],
        states=states,
        auth_words=AUTH_WORDS,
        binding_words=BINDING_WORDS,
        connects=visit.call.allows(Action.CONNECT, target),
        manages=visit.call.allows(Action.ADMIN, target),
        said=DONE.get(done),
    )


# --- made and changed ---------------------------------------------------------------------------


@router.get(_NEW)
@console_page
async def show_new_integration(
    visit: VisitDep, provider: str = "", issuer: str = "", url: str = ""
) -> Response:
    """Where a new integration begins: an issuer's URL, an MCP server's, or the catalogue; then its form."""
    await require_tenant_admin(visit.call)
    if not provider:
        return visit.show("integration_start.html", "Make an integration")
    values = {"issuer": issuer[:_LONGEST].strip(), "params.url": url[:_LONGEST].strip()}
    suggested = (urlsplit(values["issuer"] or values["params.url"]).hostname or provider).split(".")
    values["name"] = suggested[0] if len(suggested) < 3 else suggested[-2]
    return await _form_of(visit, Form({name: text for name, text in values.items() if text}), provider[:63])


@router.post(_NEW)
@console_page
async def make_integration(visit: VisitDep) -> Response:
    """Make an integration. Its page shows the redirect URI, and what its provider says."""
    fields = await visit.read_form()
    provider = fields.get("provider", "")
    try:
        name = slug_of(fields, "name")
        if await integration_row(visit.call, name) is not None:
            raise Failure(ErrorCode.ALREADY_EXISTS, "There is an integration of this name.", field="name")
        await put_integration(name, body_of(provider, fields), Response(), visit.call)
    except (Failure, ValidationError) as refusal:
        if not await _is_written(visit, fields.get("name", ""), refusal):
            return await _form_of(visit, _refused(fields, refusal), provider)
        name = fields["name"]
    return _back_to(name, "made")


@router.get(f"{_INTEGRATIONS}/{{name}}/edit")
@console_page
async def show_edit_integration(visit: VisitDep, name: str) -> Response:
    """The form of an integration, filled with what it is but for its secrets."""
    integration = await _managed(visit, name)
    return await _form_of(visit, Form(values_of(integration)), integration.provider, integration)


@router.post(f"{_INTEGRATIONS}/{{name}}/edit")
@console_page
async def change_integration(visit: VisitDep, name: str) -> Response:
    """Change an integration. A secret that is left out stays."""
    fields = await visit.read_form()
    integration = await _managed(visit, name)
    try:
        await put_integration(name, body_of(integration.provider, fields), Response(), visit.call)
    except (Failure, ValidationError) as refusal:
        if not await _is_written(visit, name, refusal):
            return await _form_of(visit, _refused(fields, refusal), integration.provider, integration)
    return _back_to(name, "changed")


async def _form_of(
    visit: ConsoleVisit, form: Form, provider: str, integration: Integration | None = None
) -> Response:
    """The form with what the provider offers. Raises Failure PROVIDER_UNKNOWN."""
    async with visit.api.store.read() as tx:
        spec = await spec_by_name(tx, visit.api.registry, visit.call.tenant, provider)
    offer = offer_of(spec, integration)
    typed = form.values.get("default_scopes", "")
    unbound = visit.api.settings.allow_unbound_consent
    bindings = [
        (kind.value, words) for kind, words in BINDING_WORDS.items() if unbound or kind is not Binding.NONE
    ]
    return visit.show_form(
        "integration_form.html",
        f"Change {integration.name}" if integration else f"Make an integration: {offer.display_name}",
        form,
        offer=offer,
        name=None if integration is None else integration.name,
        further_scopes=" ".join(scope for scope in typed.split() if scope not in offer.scopes),
        auths=list(AUTH_WORDS.items()),
        registrations=[(str(kind), words) for kind, words in REGISTRATION_WORDS.items()],
        bindings=bindings,
        rotations=[(str(kind), words) for kind, words in ROTATION_WORDS.items()],
    )


def _refused(fields: Mapping[str, str], refusal: Failure | ValidationError) -> Form:
    params = (name for name in fields if name.startswith("params."))
    return Form.refused(fields, refusal, (*FIELDS, *params), ALIASES)


async def _is_written(visit: ConsoleVisit, name: str, refusal: Failure | ValidationError) -> bool:
    """Whether the refusal is of the worker that read the metadata, after the integration was written."""
    if not isinstance(refusal, Failure) or refusal.code not in _WRITTEN:
        return False
    return await integration_row(visit.call, name) is not None


async def _managed(visit: ConsoleVisit, name: str) -> Integration:
    """The integration, for who administers it. Raises Failure NOT_FOUND, NOT_PERMITTED."""
    target = await visit.call.integration_target(name)
    visit.call.require_permit(Action.ADMIN, of=target)
    return require_found(await integration_row(visit.call, name))


# --- its secret, a trial, its end ---------------------------------------------------------------


@router.get(f"{_INTEGRATIONS}/{{name}}/rotate-secret")
@console_page
async def show_rotate_secret(visit: VisitDep, name: str) -> Response:
    """The form of a new client secret, and the way back while two are live."""
    return await _rotate_form(visit, name, Form())


@router.post(f"{_INTEGRATIONS}/{{name}}/rotate-secret")
@console_page
async def rotate_secret(visit: VisitDep, name: str) -> Response:
    """Use a new client secret or key first, or go back to the previous one."""
    fields = await visit.read_form()
    rolls_back = "roll_back" in fields
    try:
        body = RotateSecretBody.model_validate(_rotation(fields, rolls_back=rolls_back))
        await rotate_client_secret(name, body, visit.call)
    except (Failure, ValidationError) as refusal:
        names = ("client_secret", "client_key.private", "client_key.id", "overlap_s")
        return await _rotate_form(visit, name, Form.refused(fields, refusal, names, ALIASES))
    return _back_to(name, "rolled-back" if rolls_back else "rotated")


def _rotation(fields: Mapping[str, str], *, rolls_back: bool) -> dict[str, object]:
    """The body's members; hours become seconds."""
    if rolls_back:
        return {"roll_back": True}
    body: dict[str, object] = {}
    if secret := fields.get("client_secret"):
        body["client_secret"] = secret
    if private := fields.get("client_key.private"):
        key_id = fields.get("client_key.id")
        body["client_key"] = {"private": private} | ({"id": key_id} if key_id else {})
    hours = number_of(fields, "overlap_s")
    return body if hours is None else {**body, "overlap_s": hours * 3600}


async def _rotate_form(visit: ConsoleVisit, name: str, form: Form) -> Response:
    await _managed(visit, name)
    view = await get_integration(name, visit.call)
    return visit.show_form("integration_rotate.html", f"Replace the secret of {name}", form, integration=view)


@router.get(f"{_INTEGRATIONS}/{{name}}/try")
@console_page
async def show_trial(visit: VisitDep, name: str) -> Response:
    """The form of a first connection, of one's own account."""
    return await _trial_form(visit, name, Form())


@router.post(f"{_INTEGRATIONS}/{{name}}/try")
@console_page
async def try_integration(visit: VisitDep, name: str) -> Response:
    """Make a connection, and show its link once: whoever administers opens it."""
    fields = await visit.read_form()
    try:
        body = ConnectionBody.model_validate({"integration": name, "subject": fields.get("subject", "")})
        answer = await create_connection(body, visit.call)
    except (Failure, ValidationError) as refusal:
        return await _trial_form(visit, name, Form.refused(fields, refusal, ("subject",)))
    view = ConnectionView.model_validate_json(bytes(answer.body))
    return visit.show("link.html", "Connect link", it=view, tried=True)


async def _trial_form(visit: ConsoleVisit, name: str, form: Form) -> Response:
    target = await visit.call.integration_target(name)
    connects = visit.call.allows(Action.CONNECT, target)
    view: IntegrationView | None = None
    if visit.call.may_audit(target) or not connects:
        view = await get_integration(name, visit.call)
    else:
        require_found(await integration_row(visit.call, name))
    return visit.show_form(
        "integration_try.html",
        f"Try {name}",
        form,
        name=name,
        found=[] if view is None else findings(view, visit.api.clock.now()),
        connects=connects,
    )


@router.get(f"{_INTEGRATIONS}/{{name}}/delete")
@console_page
async def show_delete_integration(visit: VisitDep, name: str) -> Response:
    """What would end with the integration."""
    return await _delete_form(visit, name, Form())


@router.post(f"{_INTEGRATIONS}/{{name}}/delete")
@console_page
async def end_integration(visit: VisitDep, name: str) -> Response:
    """Delete the integration, if the form repeats its name."""
    fields = await visit.read_form()
    try:
        require_typed(fields, name, "integration")
        await delete_integration(name, visit.call)
    except Failure as refusal:
        return await _delete_form(visit, name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_INTEGRATIONS}?done=deleted")


async def _delete_form(visit: ConsoleVisit, name: str, form: Form) -> Response:
    await _managed(visit, name)
    health = await get_integration_health(name, visit.call)
    live = (
        (health.active, "is active", "are active"),
        (health.needs_reauth, "needs a new consent", "need a new consent"),
        (health.pending_consent, "waits for consent", "wait for consent"),
        (health.revoking, "is being revoked", "are being revoked"),
    )
    counts = [
        (number, f"of its connections {one}", f"of its connections {many}") for number, one, many in live
    ]
    return visit.show_form(
        "integration_delete.html",
        f"Delete {name}",
        form,
        route=delete_integration,
        health=health,
        counts=counts,
        any_live=any(number for number, *_ in live),
    )


def _back_to(name: str, done: str) -> Response:
    return redirect_response(f"{_INTEGRATIONS}/{name}?done={done}")
