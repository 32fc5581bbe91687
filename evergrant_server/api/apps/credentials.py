"""`/v1/apps/{a}/credentials/{c}`: how an app may prove its identity at the token endpoint. No secrets."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.apps.credential_parameters import CredentialBody
from evergrant_server.api.apps.routes import app_facts, require_app
from evergrant_server.api.apps.workload_parameters import stored_parameters
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import Page, Slug, View
from evergrant_server.core.access import AppCredential, AuthenticationMethod
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import CredentialId, KeyId, new_id
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_PATH = "/v1/apps/{name}/credentials"


class CredentialView(View):
    """`parameters` are those of the method. `last_used_at` is exact to the minute."""

    id: str
    name: str
    method: AuthenticationMethod
    parameters: dict[str, Any]
    created_at: datetime
    revision: int
    last_used_at: datetime | None


@router.put(_PATH + "/{credential_name}")
@dangerous("a new way in, and each change of one")
async def put_credential(
    name: Slug, credential_name: Slug, body: CredentialBody, response: Response, call: AdminCall
) -> CredentialView:
    """Register a credential, or replace it, which ends its tokens at once.

    To replace one without a gap, register the second under another name, give the app its key, and delete the
    first.
    """

    async def write(tx: Transaction) -> tuple[AppCredential | None, AppCredential]:
        app = await require_app(tx, call, name)
        before = await tx.credentials.by_name(call.tenant, app.id, credential_name)
        parameters = await stored_parameters(tx, call.tenant, body.parameters)
        given = {"method": body.method, "parameters": parameters}
        approved: dict[str, str] = {}
        if before is None or (before.method, before.parameters) != (body.method, parameters):
            known = before and {"id": before.id, "revision": before.revision}
            facts = {**await app_facts(tx, app), "credential": known, "parameters": parameters}
            approved = await use_approval(tx, call, body, facts)
        if before is None:
            new = AppCredential(
                tenant=call.tenant,
                id=CredentialId(KeyId(new_id("crd"))),
                app_id=app.id,
                name=credential_name,
                created_at=call.now,
                **given,
            )
            after = await tx.credentials.put(new, expected=None)
        else:
            after = await tx.credentials.put(before.__replace__(**given), expected=before.revision)
        detail = {"app": name, "name": credential_name, **body.model_dump(mode="json"), **approved}
        await call.record(tx, AuditAction.CREDENTIAL_PUT, after.id, **detail)
        return before, after

    before, after = await call.write(write)
    response.status_code = 201 if before is None else 200
    return await _view(call, after)


@router.get(_PATH)
async def list_credentials(name: Slug, call: AuditorCall) -> Page[CredentialView]:
    """The app's credentials, sorted by name."""
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        found = await tx.credentials.of_app(call.tenant, app.id)
        uses = await tx.access.last_uses(call.tenant, app.id)
    return Page(items=[CredentialView.of(it, last_used_at=uses.get(it.id)) for it in found])


@router.get(_PATH + "/{credential_name}")
async def get_credential(name: Slug, credential_name: Slug, call: AuditorCall) -> CredentialView:
    async with call.api.store.read() as tx:
        app = await require_app(tx, call, name)
        found = require_found(await tx.credentials.by_name(call.tenant, app.id, credential_name))
    return await _view(call, found)


@router.delete(_PATH + "/{credential_name}", status_code=204)
async def delete_credential(name: Slug, credential_name: Slug, call: AdminCall) -> Response:
    """Delete a credential. Requests with its tokens are refused at once."""
    async with call.api.store.write() as tx:
        app = await require_app(tx, call, name)
        found = require_found(await tx.credentials.by_name(call.tenant, app.id, credential_name))
        await tx.credentials.delete(found)
        detail = {"app": name, "name": credential_name, "method": found.method}
        await call.record(tx, AuditAction.CREDENTIAL_DELETED, found.id, **detail)
    return Response(status_code=204)


async def _view(call: ApiCall, credential: AppCredential) -> CredentialView:
    async with call.api.store.read() as tx:
        uses = await tx.access.last_uses(call.tenant, credential.app_id)
    return CredentialView.of(credential, last_used_at=uses.get(credential.id))
