"""`/console/keys`: the tenant's keys, rotations with their progress, and secrets that were replaced."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.console.visit import ConsoleVisit, VisitDep, console_page
from evergrant_server.api.http.call import require_auditor, require_tenant_admin
from evergrant_server.api.key_rotations import (
    KeyRotationBody,
    KeyRotationName,
    get_tenant_keys,
    list_key_rotations,
    pause_key_rotation,
    resume_key_rotation,
    rotate_keys,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.secret_rotations import RetireSecretBody, list_older_secrets, retire_secret
from evergrant_server.core.access import Action
from evergrant_server.core.errors import Failure
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_KEYS = "/console/keys"


@router.get(_KEYS)
@console_page
async def show_keys(visit: VisitDep) -> Response:
    """The keys by purpose, the newest rotation of each kind, and the form that begins one."""
    call = await require_auditor(visit.call)
    keys = await get_tenant_keys(call)
    try:
        rotations, answers = (await list_key_rotations(call)).items, True
    except Failure:  # no worker, or no Temporal
        rotations, answers = [], False
    return visit.show(
        "keys.html",
        "Keys",
        keys=keys.keys,
        secrets=(await list_older_secrets(call)).items,
        rotations=rotations,
        names=await visit.names_of(rotation.by for rotation in rotations),
        answers=answers,
        administers=visit.call.allows(Action.ADMIN, Target()),
    )


@router.post(_KEYS)
@console_page
async def rotate(visit: VisitDep) -> Response:
    """Begin a rotation."""
    fields = await visit.read_form()
    named = {name: fields[name] for name in ("kind", "command") if fields.get(name)}
    await rotate_keys(KeyRotationBody.model_validate(named), await require_tenant_admin(visit.call))
    return redirect_response(_KEYS)


@router.post(f"{_KEYS}/pause")
@console_page
async def pause(visit: VisitDep) -> Response:
    await pause_key_rotation(await _named(visit), await require_tenant_admin(visit.call))
    return redirect_response(_KEYS)


@router.post(f"{_KEYS}/resume")
@console_page
async def resume(visit: VisitDep) -> Response:
    await resume_key_rotation(await _named(visit), await require_tenant_admin(visit.call))
    return redirect_response(_KEYS)


@router.post(f"{_KEYS}/secrets/retire")
@console_page
async def retire(visit: VisitDep) -> Response:
    """Retire an older secret of an app, an integration or a webhook."""
    fields = await visit.read_form()
    named = {name: fields.get(name, "") for name in ("kind", "name")}
    await retire_secret(RetireSecretBody.model_validate(named), await require_tenant_admin(visit.call))
    return redirect_response(_KEYS)


async def _named(visit: ConsoleVisit) -> KeyRotationName:
    return KeyRotationName.model_validate({"kind": (await visit.read_form()).get("kind", "")})
