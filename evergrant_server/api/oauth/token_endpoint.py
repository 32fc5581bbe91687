"""`POST /oauth/token`, for each of the grants, `POST /oauth/revoke` and `POST /oauth/device_authorization`.

A grant is one function in GRANTS: it takes the whole request, commits what it issues with its audit record,
and returns the view of its answer, whose members that are None are left out. It raises TokenRefused for an
error of RFC 6749 section 5.2. A refusal is counted; one that names an app is in the audit log too, its
repetitions within a minute as one record.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from evergrant_server.access.context import ApiContext
from evergrant_server.access.recording import RefusalLog
from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth import client_credentials, id_jag, token_exchange
from evergrant_server.api.oauth.authorization_code import exchange_code
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.client_credentials import TokenView
from evergrant_server.api.oauth.device_code import (
    DeviceAuthorizationView,
    begin_device,
    exchange_device_code,
)
from evergrant_server.api.oauth.refresh_token import refresh, revoke
from evergrant_server.api.oauth.token_family import FamilyTokenView
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.core.oauth.requests import DEVICE_GRANT
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.traces import trace_of

router = APIRouter(tags=["oauth"])

Grant = Callable[[ClientTokenRequest], Awaitable[View]]

# by grant_type, in the order in which the metadata names them
GRANTS: dict[str, Grant] = {
    client_credentials.GRANT_TYPE: client_credentials.issue,
    "authorization_code": exchange_code,
    "refresh_token": refresh,
    DEVICE_GRANT: exchange_device_code,
    token_exchange.GRANT_TYPE: token_exchange.issue,
    id_jag.GRANT_TYPE: id_jag.issue,
}

TOKEN_PATH, REVOCATION_PATH = "/oauth/token", "/oauth/revoke"
DEVICE_AUTHORIZATION_PATH = "/oauth/device_authorization"
_FORM = "application/x-www-form-urlencoded"
_REPEATABLE = ("resource", "audience")
_LONGEST_FORM, _MOST_PARAMETERS = 64 * 1024, 30
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 section 5.1


class OAuthError(View):
    """An error of RFC 6749 section 5.2; the description names the rule that refused."""

    error: str
    error_description: str


def _body(required: str, *names: str) -> dict[str, Any]:
    """What the OpenAPI document says of a form."""
    properties = {name: {"type": "string"} for name in (required, *_CLIENT, *names)}
    schema = {"type": "object", "required": [required], "properties": properties}
    return {"requestBody": {"required": True, "content": {_FORM: {"schema": schema}}}}


_CLIENT = ("client_id", "client_assertion_type", "client_assertion")
_CODE = ("code", "redirect_uri", "code_verifier")
_EXCHANGE = (
    *("subject_token", "subject_token_type", "actor_token", "actor_token_type", "audience"),
    *("requested_token_type", "expires_in", "may_act"),
)
_BODY = _body(
    "grant_type", "scope", "resource", *_CODE, "device_code", "refresh_token", *_EXCHANGE, "assertion"
)
_REVOCATION = _body("token", "token_type_hint")
_DEVICE = _body("client_id", "scope", "resource")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OAuthError, "description": "An error of RFC 6749 section 5.2"} for status in (400, 401)
}


@router.post(TOKEN_PATH, response_model=TokenView | FamilyTokenView, responses=_ERRORS, openapi_extra=_BODY)
async def issue_token(request: Request, api: ApiDep) -> Response:
    """An access token for an app that proves its identity (RFC 6749 section 4.4, RFC 7523 section 2.2), or
    for a client of the gateways (sections 4.1.3 and 6), or for one that acts for a person (RFC 8693; with an
    identity provider's grant as the `assertion` of RFC 7523).

    An app's `client_id` is its id, `app_…`; the token stands where an API key can, for ten minutes at most. A
    client's token is for one resource of the gateway, and comes with a refresh token.
    """
    try:
        parameters = await _read_form(request)
        grant = _grant_of(parameters)
        view = await grant(ClientTokenRequest(api, request, parameters, api.clock.now()))
    except TokenRefused as refused:
        return await _refuse(api, request, refused)
    metrics.count(metrics.TOKENS, "issued")
    return Response(view.model_dump_json(exclude_none=True), 200, _NO_STORE, "application/json")


@router.post(REVOCATION_PATH, response_model=None, responses=_ERRORS, openapi_extra=_REVOCATION)
async def revoke_token(request: Request, api: ApiDep) -> Response:
    """Revoke a token of a gateway's client (RFC 7009): an access token alone, or with a refresh token all
    that its subject authorized. A token that counts no more has the same answer."""
    try:
        parameters = await _read_form(request)
        await revoke(ClientTokenRequest(api, request, parameters, api.clock.now()))
    except TokenRefused as refused:
        return await _refuse(api, request, refused)
    return Response(None, 200, _NO_STORE)


@router.post(
    DEVICE_AUTHORIZATION_PATH,
    response_model=DeviceAuthorizationView,
    responses=_ERRORS,
    openapi_extra=_DEVICE,
)
async def authorize_device(request: Request, api: ApiDep) -> Response:
    """Codes for a client whose person decides on another device (RFC 8628 section 3.1): a coding agent on a
    remote machine, say. Only where the tenant's rule for clients has `device`.

    Without `resource` it is for all of the person's connections.
    """
    await api.limits.count_device_login(request.scope)
    try:
        parameters = await _read_form(request)
        view = await begin_device(ClientTokenRequest(api, request, parameters, api.clock.now()))
    except TokenRefused as refused:
        return await _refuse(api, request, refused)
    return Response(view.model_dump_json(), 200, _NO_STORE, "application/json")


async def _read_form(request: Request) -> dict[str, str]:
    """The parameters of the body; those without a value are left out. Raises TokenRefused.

    Repeated resources and audiences (RFC 8693 section 2.1) have a space between two of them.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM or request.url.query:
        raise TokenRefused("invalid_request", f"Send the parameters in the body alone, as {_FORM}.")
    body = await request.body()
    if len(body) > _LONGEST_FORM:
        raise TokenRefused("invalid_request", "The body is too large.")
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise TokenRefused("invalid_request", "The body isn't a form.") from None
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters and name not in _REPEATABLE:
            raise TokenRefused("invalid_request", "A parameter stands in the request twice.")
        parameters[name] = f"{parameters[name]} {value}" if parameters.get(name) else value
    return {name: value for name, value in parameters.items() if value}


def _grant_of(parameters: dict[str, str]) -> Grant:
    """The grant of the request's `grant_type`. Raises TokenRefused."""
    kind = parameters.get("grant_type")
    if kind is None:
        raise TokenRefused("invalid_request", "grant_type is missing.")
    grant = GRANTS.get(kind)
    if grant is None:
        raise TokenRefused("unsupported_grant_type", f"grant_type must be {' or '.join(GRANTS)}.")
    return grant


async def _refuse(api: ApiContext, request: Request, refused: TokenRefused) -> Response:
    metrics.count(metrics.TOKENS, refused.error)
    if refused.claimed is not None:
        await _record_refusal(api, request, refused)
    headers = dict(_NO_STORE)
    if refused.error == "invalid_client":
        scheme = request.headers.get("authorization", "").partition(" ")[0].lower()
        headers["WWW-Authenticate"] = "Basic" if scheme == "basic" else "Bearer"
    view = OAuthError(error=refused.error, error_description=refused.description)
    return JSONResponse(view.model_dump(), 401 if refused.error == "invalid_client" else 400, headers)


async def _record_refusal(api: ApiContext, request: Request, refused: TokenRefused) -> None:
    assert refused.claimed is not None
    async with api.store.read() as tx:
        app = await tx.credentials.app(refused.claimed)
    if app is None:
        return
    refusals: RefusalLog = request.app.state.refusals
    detail = {"app": app.id, "code": refused.error, "rule": refused.recorded}
    await refusals.record(
        AuditEntry(
            tenant=app.tenant,
            at=api.clock.now(),
            action=AuditAction.TOKEN_REFUSED,
            object=app.id,
            context=trace_of(request).request_context(f"{CLAIMED}app:{app.name}"),
            detail=detail,
        )
    )
