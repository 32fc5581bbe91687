"""The grant `client_credentials`: an access token for an app that is proven (RFC 6749 section 4.4)."""

from datetime import datetime

from evergrant_server.access.credentials import new_app_token
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, ProvenClient, TokenRefused
from evergrant_server.api.oauth.methods import prove
from evergrant_server.core.access import TOKEN_LIFETIME, App, AppToken
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Transaction
from evergrant_server.telemetry.request_ids import trace_of

GRANT_TYPE = "client_credentials"


class TokenView(View):
    """An access token for Evergrant's own API (RFC 6749 section 5.1). `expires_in` is in seconds."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int


async def issue(request: ClientTokenRequest) -> TokenView:
    """Raises TokenRefused."""
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
    client = await prove(request)
    if client.app.disabled:
        raise TokenRefused("unauthorized_client", "The app is disabled.", claimed=client.app.id)
    await request.api.limits.count_token(request.http.scope, client.app)
    return client


async def _add_token(request: ClientTokenRequest, client: ProvenClient) -> tuple[AppToken, str]:
    """Store a token and its audit record. Raises TokenRefused for an assertion that was used before."""
    app, credential, now = client.app, client.credential, request.now
    ends = min(it for it in (now + TOKEN_LIFETIME, client.expires_at, app.ends_at) if it is not None)
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
    """Raises TokenRefused for an agent that has ended."""
    try:
        await tx.agents.require_active(app, now)
    except Failure as failure:
        if failure.code is not ErrorCode.AGENT_ENDED:
            raise
        raise TokenRefused("unauthorized_client", failure.detail, claimed=app.id) from None
