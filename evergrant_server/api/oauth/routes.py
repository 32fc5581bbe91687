"""`POST /oauth/token` by client credentials.

An error has the form of RFC 6749 section 5.2. A refusal is counted; one that names an app is in the audit log
too, its repetitions within a minute as one record.
"""

from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from evergrant_server.api.http.app_tokens import new_token
from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.models import View
from evergrant_server.api.http.refusal_log import RefusalLog
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.http.transactions import record, run_transaction
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, ProvenClient, TokenRefused
from evergrant_server.api.oauth.metadata import CLIENT_CREDENTIALS, TOKEN_PATH
from evergrant_server.api.oauth.methods import prove
from evergrant_server.core.access import TOKEN_LIFETIME, App, AppToken
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics

router = APIRouter(tags=["oauth"])

_FORM = "application/x-www-form-urlencoded"
_LONGEST_FORM, _MOST_PARAMETERS = 64 * 1024, 30
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 section 5.1


class TokenView(View):
    """An access token for Evergrant's own API (RFC 6749 section 5.1). `expires_in` is in seconds."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int


class OAuthError(View):
    """An error of RFC 6749 section 5.2; the description names the rule that refused."""

    error: str
    error_description: str


_PARAMETERS = ("grant_type", "client_id", "client_assertion_type", "client_assertion", "scope")
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {name: {"type": "string"} for name in _PARAMETERS},
                }
            }
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OAuthError, "description": "An error of RFC 6749 section 5.2"} for status in (400, 401)
}


@router.post(TOKEN_PATH, response_model=TokenView, responses=_ERRORS, openapi_extra=_BODY)
async def issue_token(request: Request, api: ApiDep) -> Response:
    """An access token for an app that proves its identity (RFC 6749 section 4.4, RFC 7523 section 2.2).

    `client_id` is the app's id, `app_…`. The token stands where an API key can, for ten minutes at most.
    """
    try:
        parameters = await _read_form(request)
        _require_grant(parameters)
        client = await prove(ClientTokenRequest(api, request, parameters, api.clock.now()))
        if client.app.disabled:
            why = "The app is disabled."
            raise TokenRefused("unauthorized_client", why, claimed=client.app.id)
        await api.limits.count_token(request.scope, client.app)
        token, text = await _issue(api, request, client)
    except TokenRefused as refused:
        return await _refuse(api, request, refused)
    metrics.count(metrics.TOKENS, "issued")
    api.ledger.note_use(client.app.tenant, client.credential.id)
    lifetime = int((token.expires_at - token.created_at).total_seconds())
    view = TokenView(access_token=text, expires_in=lifetime)
    return Response(view.model_dump_json(), 200, _NO_STORE, "application/json")


async def _read_form(request: Request) -> dict[str, str]:
    """The parameters of the body; those without a value are left out. Raises TokenRefused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM or request.url.query:
        raise TokenRefused("invalid_request", f"Send the parameters in the body alone, as {_FORM}.")
    body = await request.body()
    if len(body) > _LONGEST_FORM:
        raise TokenRefused("invalid_request", "The body is too large.")
    try:
        text = body.decode("ascii")
        given = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise TokenRefused("invalid_request", "The body isn't a form.") from None
    if len({name for name, _ in given}) != len(given):
        raise TokenRefused("invalid_request", "A parameter stands in the request twice.")
    return {name: value for name, value in given if value}


def _require_grant(parameters: dict[str, str]) -> None:
    """Raises TokenRefused for another grant than client credentials, and for a scope."""
    if "grant_type" not in parameters:
        raise TokenRefused("invalid_request", "grant_type is missing.")
    if parameters["grant_type"] != CLIENT_CREDENTIALS:
        raise TokenRefused("unsupported_grant_type", f"grant_type must be {CLIENT_CREDENTIALS}.")
    if "scope" in parameters:
        why = "Tokens of apps have no scopes: an app's permits say what it may do."
        raise TokenRefused("invalid_scope", why)


async def _issue(api: ApiContext, request: Request, client: ProvenClient) -> tuple[AppToken, str]:
    """Store a token and its audit record. Raises TokenRefused for an assertion that was used before."""
    app, credential, now = client.app, client.credential, api.clock.now()
    ends = min(it for it in (now + TOKEN_LIFETIME, client.expires_at, app.ends_at) if it is not None)
    token, text = new_token(api.ring, credential, now, ends, client.confirmation)
    context = trace_of(request).request_context(f"app:{app.name}")

    async def write(tx: Transaction) -> None:
        if client.once is not None and not await tx.tokens.use_assertion(app, *client.once):
            raise TokenRefused("invalid_client", "The assertion's jti was used before.", claimed=app.id)
        if not await tx.tenants.is_enabled(app.tenant):
            raise TokenRefused("unauthorized_client", "The tenant is disabled.", claimed=app.id)
        await _require_active(tx, app, now)
        await tx.tokens.add(token)
        detail = {"app": app.name, "method": credential.method, "token": token.id}
        await record(tx, app.tenant, AuditAction.TOKEN_ISSUED, credential.id, context, now, **detail)

    await run_transaction(api.store, write)
    return token, text


async def _require_active(tx: Transaction, app: App, now: datetime) -> None:
    """Raises TokenRefused for an agent that has ended."""
    try:
        await tx.agents.require_active(app, now)
    except Failure as failure:
        if failure.code is not ErrorCode.AGENT_ENDED:
            raise
        raise TokenRefused("unauthorized_client", failure.detail, claimed=app.id) from None


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
