"""A family of tokens, which begins with one authorization of a client: its tokens, and their record.

Its end is `access.person_ends`; what leads to it, and the replay ledger, are the grants'
(`authorization_code`, `refresh_token`).
"""

from typing import NamedTuple

from evergrant_server.access.callers import standing_app
from evergrant_server.access.credentials import new_access_token, new_text
from evergrant_server.access.transactions import record
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, RefreshTokenId, new_id
from evergrant_server.core.oauth.authorizations import Authorization, RefreshToken, TokenFamily
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction
from evergrant_server.telemetry.traces import trace_of

_STANDING = (
    ErrorCode.UNAUTHENTICATED,
    ErrorCode.TENANT_DISABLED,
    ErrorCode.APP_DISABLED,
    ErrorCode.AGENT_ENDED,
)


class FamilyTokenView(View):
    """Tokens of a gateway's client (RFC 6749 section 5.1). `expires_in` is in seconds."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int
    refresh_token: str
    scope: str


class NewRefreshToken(NamedTuple):
    token: RefreshToken
    text: str


def invalid_grant(description: str, claimed: AppId | None = None, *, recorded: str = "") -> TokenRefused:
    return TokenRefused("invalid_grant", description, claimed=claimed, recorded=recorded or None)


async def require_standing(tx: Transaction, authorization: Authorization, request: ClientTokenRequest) -> App:
    """The app as which the client acts. Raises TokenRefused when tenant, app, client or login count no more,
    Failure AUTHORITY_BROKEN."""
    try:
        return await standing_app(tx, authorization, request.now)
    except Failure as failure:
        if failure.code not in _STANDING:
            raise
        raise invalid_grant(failure.detail, authorization.app_id) from None


def require_parameters(request: ClientTokenRequest, authorization: Authorization) -> tuple[str, ...]:
    """The scopes of the new access token. Raises TokenRefused for another resource (RFC 8707 section 2.2), or
    a scope that wasn't authorized (RFC 6749 section 6)."""
    parameters = request.parameters
    if parameters.get("resource") not in (None, authorization.resource):
        raise TokenRefused("invalid_target", "resource isn't the one that the subject authorized.")
    if "scope" not in parameters:
        return authorization.scopes
    asked = tuple(dict.fromkeys(parameters["scope"].split(" ")))
    if not set(asked) <= set(authorization.scopes):
        raise TokenRefused("invalid_scope", "scope has more than the subject authorized.")
    return asked


def refresh_token_of(ring: KeyRing, family: TokenFamily, request: ClientTokenRequest) -> NewRefreshToken:
    """A new refresh token of the family, and its text."""
    id = RefreshTokenId(new_id("rtk"))
    secret, text = new_text(id)
    token = RefreshToken(
        tenant=family.tenant,
        id=id,
        family_id=family.id,
        secret_hash=refresh_mac(ring, id, secret),
        created_at=request.now,
    )
    return NewRefreshToken(token, text)


def refresh_mac(ring: KeyRing, id: str, secret: str) -> str:
    """What the store keeps of a refresh token's secret; the row's own authenticator covers the rest."""
    return ring.token_mac("refresh", id, secret)


async def issue(
    tx: Transaction,
    request: ClientTokenRequest,
    family: TokenFamily,
    app: App,
    next_token: str,
    scopes: tuple[str, ...],
    action: AuditAction,
    **detail: object,
) -> FamilyTokenView:
    """Add an access token beside the family's older ones, and the audit record of it. `next_token` is the
    refresh token to answer with."""
    now = request.now
    ends = [now + request.api.settings.oauth_access_token_lifetime, family.expires_at, app.ends_at]
    expires_at = min(end for end in ends if end is not None)
    token, text = new_access_token(tx.sealer.ring, family, scopes, now, expires_at)
    await tx.oauth_tokens.add(token)
    context = trace_of(request.http).request_context(f"app:{app.name}")
    facts = {**family.named, "app": app.name, "resource": family.resource, "scopes": list(scopes)}
    await record(tx, family.tenant, action, family.id, context, now, **facts, token=token.id, **detail)
    return FamilyTokenView(
        access_token=text,
        expires_in=int((expires_at - now).total_seconds()),
        refresh_token=next_token,
        scope=" ".join(scopes),
    )
