"""`grant_type=refresh_token` (RFC 6749 section 6), the ledger of used tokens, and revocation (RFC 7009).

Clients of one person share a file of tokens between processes, which refresh at once, or with a token that
another one has used minutes ago. Within a window a used token therefore gets the same successor again; each
repetition is counted. Beyond it, or again and again, it was stolen: the family ends (RFC 9700 section
4.14.2).
"""

import hmac
from typing import NamedTuple

from evergrant_server.access.credentials import CLIENT_TOKEN, is_right, parse_text
from evergrant_server.access.person_ends import end_family
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.gateway_client import KnownClient, client_of, current_client_of, note_use
from evergrant_server.api.oauth.token_family import (
    FamilyTokenView,
    invalid_grant,
    issue,
    refresh_mac,
    refresh_token_of,
    require_parameters,
    require_standing,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AccessTokenId, RefreshTokenId
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.core.oauth.authorizations import FamilyEnd, RefreshToken, TokenFamily
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_replayed_token
from evergrant_server.telemetry.traces import trace_of

_FOREIGN = "The token was issued to another client."
_WRONG = "The refresh token is unknown, has expired or was revoked, or is another client's."


class _Refreshed(NamedTuple):
    """The tokens, and which repetition of a used refresh token this was; 0: none."""

    view: FamilyTokenView
    replays: int


async def refresh(request: ClientTokenRequest) -> FamilyTokenView:
    """The next access token of a family. Raises TokenRefused, RateLimited."""
    if "refresh_token" not in request.parameters:
        raise TokenRefused("invalid_request", "refresh_token is missing.")

    async def require_held(tx: Transaction, client: GatewayClient) -> None:
        token = await _find_token(tx, request.parameters["refresh_token"])
        family = None if token is None else await tx.token_families.get(token.tenant, token.family_id)
        if family is None or family.client_id != client.client_id:
            raise invalid_grant(_WRONG)

    known = await current_client_of(request, require_held)
    await _count(request)
    result = await run_transaction(request.api.store, lambda tx: _refresh(tx, request, known))
    if isinstance(result, _Refreshed):
        metrics.count(metrics.TOKEN_FAMILIES, "replayed" if result.replays else "refreshed")
        return result.view
    report_replayed_token(result, FamilyEnd.TOKEN_REPLAYED)
    raise invalid_grant("The refresh token was used before: what it belonged to has ended.")


async def _count(request: ClientTokenRequest) -> None:
    """Count the request against its family. Raises RateLimited."""
    presented = parse_text(request.parameters["refresh_token"])
    if presented is None:
        return
    async with request.api.store.read() as tx:
        token = await tx.refresh_tokens.find(RefreshTokenId(presented.id))
    if token is not None:
        await request.api.limits.count_family(request.http.scope, token.family_id)


async def _find_with_family(tx: Transaction, text: str) -> tuple[RefreshToken, TokenFamily] | None:
    """The refresh token with this text, and its family, which no other transaction changes until this one
    ends. Raises Failure AUTHORITY_BROKEN."""
    token = await _find_token(tx, text)
    if token is None:
        return None
    family = await tx.token_families.locked(token.tenant, token.family_id)
    token = await tx.refresh_tokens.find(token.id)  # as it is behind the lock
    return None if family is None or token is None else (token, family)


async def _find_token(tx: Transaction, text: str) -> RefreshToken | None:
    presented = parse_text(text)
    token = None if presented is None else await tx.refresh_tokens.find(RefreshTokenId(presented.id))
    if presented is None or token is None:
        return None
    right = refresh_mac(tx.sealer.ring, token.id, presented.secret)
    return token if hmac.compare_digest(token.secret_hash, right) else None


async def _refresh(
    tx: Transaction, request: ClientTokenRequest, known: KnownClient
) -> _Refreshed | TokenFamily:
    """The tokens, or the family that a replay has ended."""
    rows = await _find_with_family(tx, request.parameters["refresh_token"])
    if rows is None or rows[1].client_id != known.client.client_id:
        raise invalid_grant(_WRONG)
    token, family = rows
    if family.bound and not known.client.is_bound:  # its key was what bound a token that isn't rotated
        raise invalid_grant(_WRONG, family.app_id, recorded=f"{family.id} is bound to a key")
    settings, now = request.api.settings, request.now
    if not family.is_live(now, settings.oauth_idle):
        raise invalid_grant(_WRONG, family.app_id, recorded=f"{family.id} has ended")
    app = await require_standing(tx, family, request)
    if token.is_stolen(now, settings.oauth_replay_window, settings.oauth_replays):
        context = trace_of(request.http).request_context(f"{CLAIMED}client:{family.client_id}")
        await end_family(tx, family, FamilyEnd.TOKEN_REPLAYED, context, now)
        return family
    scopes = require_parameters(request, family)
    await note_use(tx, known, app, now)
    replays = token.replays + 1 if token.rotated_at is not None else 0
    text = await _next(tx, request, token, family)
    used = family.__replace__(used_at=now, replays=family.replays + (replays > 0))
    family = await tx.token_families.replace(used, expected=family.revision)
    refreshed = AuditAction.TOKEN_FAMILY_REFRESHED
    detail = {"refresh_token": token.id} | ({"replay": replays} if replays else {})
    view = await issue(tx, request, family, app, text.reveal(), scopes, refreshed, **detail)
    return _Refreshed(view, replays)


async def _next(
    tx: Transaction, request: ClientTokenRequest, token: RefreshToken, family: TokenFamily
) -> Secret:
    """The refresh token to answer with: of a client with a key the same one, else its one successor."""
    if family.bound:
        return Secret(request.parameters["refresh_token"])
    if token.rotated_at is not None:
        replayed = await tx.refresh_tokens.replace(token.replayed(request.now), expected=token.revision)
        return await tx.refresh_tokens.successor(replayed)
    successor = refresh_token_of(tx.sealer.ring, family, request)
    text = Secret(successor.text)
    await tx.refresh_tokens.rotated(token, successor.token, text)
    return text


# --- `POST /oauth/revoke` (RFC 7009): a client gives its tokens back -----------------------------


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
    rows = await _find_with_family(tx, text)
    if rows is None:
        return
    _, family = rows
    if family.client_id != known.client.client_id:
        raise invalid_grant(_FOREIGN, family.app_id)
    if family.ended_at is None:
        context = trace_of(request.http).request_context(f"client:{known.client.client_id}")
        await end_family(tx, family, FamilyEnd.REVOKED, context, request.now)


async def _revoke_access_token(tx: Transaction, request: ClientTokenRequest, known: KnownClient) -> None:
    presented = parse_text(request.parameters["token"])
    token = None if presented is None else await tx.oauth_tokens.find(AccessTokenId(presented.id))
    if presented is None or token is None or not is_right(tx.sealer.ring, token, presented.secret):
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
