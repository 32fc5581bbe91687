"""How an app proves who it is, in the console: API keys, each shown once, and credentials, which have no
secret here."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.apps.credentials import (
    PrivateKeyJwtBody,
    SelfSignedBody,
    TlsClientAuthBody,
    WorkloadIdentityBody,
    X509SvidBody,
    delete_credential,
    get_credential,
    list_credentials,
    put_credential,
)
from evergrant_server.api.apps.keys import KeyBody, NewKeyView, create_key, list_keys, revoke_key
from evergrant_server.api.apps.routes import get_app
from evergrant_server.api.apps.trusted_issuers import list_issuers
from evergrant_server.api.console.forms import Form, new_once, once_of, require_typed, slug_of
from evergrant_server.api.console.typed import json_object, pairs_of, without_private_keys
from evergrant_server.api.console.visit import ConsoleVisit, VisitDep, console_page
from evergrant_server.api.http.call import require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.workloads.issuer import IssuerKind
from evergrant_server.crypto.client_certificates import NAME_KINDS
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_MOST_ISSUERS = 200
_LONGEST_FORM = 100_000  # with the certificates of a trust domain
_BODIES = {
    AuthenticationMethod.WORKLOAD_IDENTITY: WorkloadIdentityBody,
    AuthenticationMethod.PRIVATE_KEY_JWT: PrivateKeyJwtBody,
    AuthenticationMethod.TLS_CLIENT_AUTH: TlsClientAuthBody,
    AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH: SelfSignedBody,
    AuthenticationMethod.X509_SVID: X509SvidBody,
}
_PARAMETERS = {
    AuthenticationMethod.WORKLOAD_IDENTITY: ("issuer", "claims", "audience"),
    AuthenticationMethod.PRIVATE_KEY_JWT: ("jwks",),
    AuthenticationMethod.TLS_CLIENT_AUTH: ("ca", *NAME_KINDS),
    AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH: ("thumbprint",),
    AuthenticationMethod.X509_SVID: ("spiffe_id", "issuer", "bundle"),
}


# --- API keys: made once by each form, shown in that answer alone -------------------------------


@router.get("/console/apps/{name}/keys")
@console_page
async def show_new_key(visit: VisitDep, name: str) -> Response:
    """The form of a new key."""
    call = await require_tenant_admin(visit.call)
    return visit.show(
        "key.html",
        "Make an API key",
        it=await get_app(name, call),
        once=new_once(),
        usual=visit.api.settings.api_key_lifetime.days,
    )


@router.post("/console/apps/{name}/keys")
@console_page
async def make_key(visit: VisitDep, name: str) -> Response:
    """Make a key, and show it. The same form makes no second one.

    Raises Failure ALREADY_EXISTS for a form that has made its key, and those of the API's route.
    """
    fields = await visit.read_form()
    done = "This form has made its key, which was shown once. If it is lost, revoke it and make another."
    call = await once_of(await require_tenant_admin(visit.call), fields, done)
    answer = await create_key(name, call, _key_body(fields.get("days", "")))
    key = NewKeyView.model_validate_json(bytes(answer.body))
    return visit.show("key_made.html", "API key", name=name, key=key)


def _key_body(days: str) -> KeyBody | None:
    if not days:
        return None
    if not (days.isascii() and days.isdigit() and len(days) < 6):
        raise invalid_request("days", "Use a number of days, such as 30.")
    return KeyBody(lifetime=timedelta(days=int(days)).total_seconds())


@router.get("/console/apps/{name}/keys/{key_id}/revoke")
@console_page
async def show_revoke_key(visit: VisitDep, name: str, key_id: str) -> Response:
    """What would end with the key. Raises Failure NOT_FOUND."""
    call = await require_tenant_admin(visit.call)
    key = next((listed for listed in (await list_keys(name, call)).items if listed.id == key_id), None)
    if key is None or not key.live:
        raise Failure(ErrorCode.NOT_FOUND)
    is_own = visit.call.caller.credential.id == key_id
    return visit.show("key_revoke.html", "Revoke the key?", name=name, key=key, is_own=is_own)


@router.post("/console/apps/{name}/keys/{key_id}/revoke")
@console_page
async def end_key(visit: VisitDep, name: str, key_id: str) -> Response:
    """Revoke the key, at once and for good."""
    await visit.read_form()
    await revoke_key(name, key_id, await require_tenant_admin(visit.call))
    return redirect_response(f"/console/apps/{name}?done=key-revoked")


# --- credentials ----------------------------------------------------------------------------------


@router.get("/console/apps/{name}/new/credential")
@console_page
async def show_new_credential(visit: VisitDep, name: str, method: str = "") -> Response:
    """The choice of a method, and its form."""
    return await _credential_form(visit, name, _method_of(method), Form())


@router.post("/console/apps/{name}/new/credential")
@console_page
async def make_credential(visit: VisitDep, name: str) -> Response:
    """Register a credential. A name that is taken is refused: to replace one would end its tokens."""
    fields = await visit.read_form(_LONGEST_FORM)
    call = await require_tenant_admin(visit.call)
    method = _method_of(fields.get("method", ""))
    if method is None:
        raise invalid_request("method", "There is no such method.")
    names = ("name", *(f"parameters.{parameter}" for parameter in _PARAMETERS[method]))
    try:
        credential_name = slug_of(fields, "name")
        if credential_name in {listed.name for listed in (await list_credentials(name, call)).items}:
            raise Failure(ErrorCode.ALREADY_EXISTS, "The app has a credential of this name.", field="name")
        body = _BODIES[method].model_validate({"method": method, "parameters": _parameters(method, fields)})
        await put_credential(name, credential_name, body, Response(), call)
    except (Failure, ValidationError) as refusal:
        return await _credential_form(
            visit, name, method, Form.refused(without_private_keys(fields), refusal, names)
        )
    return redirect_response(f"/console/apps/{name}?done=credential-made")


async def _credential_form(
    visit: ConsoleVisit, name: str, method: AuthenticationMethod | None, form: Form
) -> Response:
    call = await require_tenant_admin(visit.call)
    await get_app(name, call)
    issuers = (await list_issuers(call, limit=_MOST_ISSUERS)).items
    is_svid = method is AuthenticationMethod.X509_SVID
    return visit.show_form(
        "credential_form.html",
        f"A credential of {name}",
        form,
        name=name,
        method=method,
        methods=list(_BODIES),
        issuers=[
            (issuer.name, f"{issuer.name}: {issuer.issuer}")
            for issuer in issuers
            if not is_svid or issuer.kind is IssuerKind.SPIFFE
        ],
        audience=visit.api.settings.public_url,
    )


def _method_of(text: str) -> AuthenticationMethod | None:
    return next((method for method in _BODIES if method.value == text), None)


def _parameters(method: AuthenticationMethod, fields: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that are typed, as the API takes them. Raises Failure INVALID_REQUEST."""
    typed = {name: fields.get(f"parameters.{name}", "") for name in _PARAMETERS[method]}
    parameters: dict[str, Any] = {name: text for name, text in typed.items() if text}
    if "claims" in parameters:
        parameters["claims"] = pairs_of(fields, "parameters.claims")
    if "jwks" in parameters:
        parameters["jwks"] = json_object(fields, "parameters.jwks")
    return parameters


@router.get("/console/apps/{name}/credentials/{credential_name}/remove")
@console_page
async def show_remove_credential(visit: VisitDep, name: str, credential_name: str) -> Response:
    """What would end with a credential."""
    return await _remove_form(visit, name, credential_name, Form())


@router.post("/console/apps/{name}/credentials/{credential_name}/remove")
@console_page
async def remove_credential(visit: VisitDep, name: str, credential_name: str) -> Response:
    """Remove the credential whose name was typed."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await get_credential(name, credential_name, call)
    try:
        require_typed(fields, credential_name, "credential")
        await delete_credential(name, credential_name, call)
    except Failure as refusal:
        form = Form.refused(fields, refusal, ("confirm",))
        return await _remove_form(visit, name, credential_name, form)
    return redirect_response(f"/console/apps/{name}?done=credential-removed")


async def _remove_form(visit: ConsoleVisit, name: str, credential_name: str, form: Form) -> Response:
    credential = await get_credential(name, credential_name, await require_tenant_admin(visit.call))
    title = f"Remove {credential_name}?"
    values = {"name": name, "credential": credential}
    return visit.show_form("credential_remove.html", title, form, route=delete_credential, **values)
