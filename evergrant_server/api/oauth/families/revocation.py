"""`POST /oauth/revoke` (RFC 7009): a client gives its tokens back."""

from evergrant_server.access.credentials import CLIENT_TOKEN, is_right, parse_text
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.families.client import KnownClient, client_of
from evergrant_server.api.oauth.families.ending import end_family
from evergrant_server.api.oauth.families.issuing import invalid_grant
from evergrant_server.api.oauth.families.refresh_grant import find_refresh_token
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AccessTokenId
from evergrant_server.core.oauth.authorizations import FamilyEnd
from evergrant_server.store import Transaction
from evergrant_server.telemetry.request_ids import trace_of

_FOREIGN = "The token was issued to another client."


async def revoke(request: ClientTokenRequest) -> None:
    """Revoke an access token alone, or with a refresh token all that the subject authorized with it. A token
    that counts no more is revoked already (section 2.2). Raises TokenRefused."""
    if "token" not in request.parameters:
        raise TokenRefused("invalid_request", "token is missing.")
    if request.parameters["token"].startswith(("evg_tok_", "evg_key_")):
        why = "Tokens of apps end by themselves: delete their credential."
        raise TokenRefused("unsupported_token_type", why)
    known = await client_of(request)
    await run_transaction(request.api.store, lambda tx: _revoke(tx, request, known))


async def _revoke(tx: Transaction, request: ClientTokenRequest, known: KnownClient) -> None:
    text = request.parameters["token"]
    if text.startswith(CLIENT_TOKEN):
        return await _revoke_access_token(tx, request, known)
    found = await find_refresh_token(tx, text)
    if found is None:
        return
    _, family = found
    if family.client_id != known.client.client_id:
        raise invalid_grant(_FOREIGN, family.app_id)
    if family.ended_at is None:
        context = trace_of(request.http).request_context(f"client:{known.client.client_id}")
        await end_family(tx, family, FamilyEnd.REVOKED, context, request.now)


async def _revoke_access_token(tx: Transaction, request: ClientTokenRequest, known: KnownClient) -> None:
    given = parse_text(request.parameters["token"])
    token = None if given is None else await tx.oauth_tokens.find(AccessTokenId(given.id))
    if given is None or token is None or not is_right(tx.sealer.ring, token, given.secret):
        return
    family = await tx.token_families.get(token.tenant, token.family_id)
    if family is None:
        return
    if family.client_id != known.client.client_id:
        raise invalid_grant(_FOREIGN, family.app_id)
    await tx.oauth_tokens.delete(token)
    await tx.access.bump(family.tenant, family.app_id)  # its callers are read anew
    context = trace_of(request.http).request_context(f"client:{known.client.client_id}")
    action, now = AuditAction.RESOURCE_TOKEN_REVOKED, request.now
    await record(tx, family.tenant, action, token.id, context, now, **family.named)
