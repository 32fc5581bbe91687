"""The grant `client_credentials`: an access token for an app that proves who it is (RFC 6749 section 4.4)."""

from datetime import datetime

from evergrant_server.access.credentials import new_app_token
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth import jwt_bearer, mutual_tls
from evergrant_server.api.oauth.client_authentication import (
    JWT_BEARER,
    Authenticate,
    ClientTokenRequest,
    KeysNeeded,
    ProvenClient,
    TokenRefused,
    invalid_client,
    read_keys,
)
from evergrant_server.core.access import TOKEN_LIFETIME, App, AppToken, AuthenticationMethod
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.store import Transaction
from evergrant_server.telemetry.traces import trace_of

GRANT_TYPE = "client_credentials"


class TokenView(View):
    """An access token for Evergrant's own API (RFC 6749 section 5.1). `expires_in` is in seconds."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int


async def issue(request: ClientTokenRequest) -> TokenView:
    """An access token for the app that the request proves. Raises TokenRefused, RateLimited."""
    if "scope" in request.parameters:
        why = "Tokens of apps have no scopes: an app's permits say what it may do."
        raise TokenRefused("invalid_scope", why)
    client = await proven_app(request)
    token, text = await _add_token(request, client)
    request.api.ledger.note_use(client.app.tenant, client.credential.id)
    lifetime = int((token.expires_at - token.created_at).total_seconds())
    return TokenView(access_token=text, expires_in=lifetime)


async def proven_app(request: ClientTokenRequest) -> ProvenClient:
    """The enabled app that the request proves, counted. Raises TokenRefused, RateLimited."""
    client = await _prove(request)
    if client.app.disabled:
        raise TokenRefused("unauthorized_client", "The app is disabled.", claimed=client.app.id)
    await request.api.limits.count_token(request.http.scope, client.app)
    return client


async def _add_token(request: ClientTokenRequest, client: ProvenClient) -> tuple[AppToken, str]:
    """Store a token and its audit record. Raises TokenRefused for an assertion that was used before."""
    app, credential, now = client.app, client.credential, request.now
    ends = min(end for end in (now + TOKEN_LIFETIME, client.expires_at, app.ends_at) if end is not None)
    token, text = new_app_token(request.api.ring, credential, now, ends, client.confirmation)
    context = trace_of(request.http).request_context(f"app:{app.name}")

    async def write(tx: Transaction) -> None:
        if client.once is not None and not await tx.tokens.use_assertion(app, *client.once):
            raise TokenRefused("invalid_client", "The assertion's jti was used before.", claimed=app.id)
        if not await tx.tenants.is_enabled(app.tenant):
            raise TokenRefused("unauthorized_client", "The tenant is disabled.", claimed=app.id)
        await require_active(tx, app, now)
        await tx.tokens.add(token)
        detail = {"app": app.name, "method": credential.method, "token": token.id}
        await record(tx, app.tenant, AuditAction.TOKEN_ISSUED, credential.id, context, now, **detail)

    await run_transaction(request.api.store, write)
    return token, text


async def require_active(tx: Transaction, app: App, now: datetime) -> None:
    """Check that the app is no agent that has ended. Raises TokenRefused."""
    try:
        await tx.agents.require_active(app, now)
    except Failure as failure:
        if failure.code is not ErrorCode.AGENT_ENDED:
            raise
        raise TokenRefused("unauthorized_client", failure.detail, claimed=app.id) from None


# --- which method a request uses ----------------------------------------------------------------

# token_endpoint_auth_methods_supported; a platform's token has no name there, and a JWT-SVID has the draft's
ADVERTISED = (AuthenticationMethod.PRIVATE_KEY_JWT.value, "spiffe_jwt")
ADVERTISED_WITH_MTLS = (
    *ADVERTISED,
    AuthenticationMethod.TLS_CLIENT_AUTH.value,
    AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH.value,
    "spiffe_x509",  # as draft-ietf-oauth-spiffe-client-auth names `x509_svid`
)


async def _prove(request: ClientTokenRequest) -> ProvenClient:
    """The proven client; a worker reads the keys of a workload's issuer first where that is needed."""
    try:
        async with request.api.store.read() as tx:
            return await _authenticate(tx, request)
    except KeysNeeded as needed:
        context = trace_of(request.http).request_context(f"{CLAIMED}app:{needed.claimed}")
        await read_keys(request.api, needed, context)
    async with request.api.store.read() as tx:
        return await _authenticate(tx, request)


async def _authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The client that the request proves, by the one method it uses (RFC 6749 section 2.3).

    Raises TokenRefused, Failure AUTHORITY_BROKEN.
    """
    kind, named = request.parameters.get("client_assertion_type", ""), request.parameters.get("client_id")
    if bool(kind) != ("client_assertion" in request.parameters):
        raise TokenRefused("invalid_request", "client_assertion and client_assertion_type go together.")
    if "authorization" in request.http.headers or "client_secret" in request.parameters:
        why = "Secrets and an Authorization header are no way to prove an identity here."
        raise invalid_client(why, named)
    method = METHODS.get(kind)
    if method is None:
        raise invalid_client("The request uses no authentication method that Evergrant knows.", named)
    return await method(tx, request)


# by `client_assertion_type`; a method without an assertion has the name ""
METHODS: dict[str, Authenticate] = {
    JWT_BEARER: jwt_bearer.authenticate,
    jwt_bearer.JWT_SPIFFE: jwt_bearer.workload_identity,
    "": mutual_tls.authenticate,
}
