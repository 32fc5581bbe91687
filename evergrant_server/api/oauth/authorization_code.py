"""`grant_type=authorization_code` (RFC 6749 section 4.1.3) with PKCE (RFC 7636): a code begins a family."""

import base64
import hashlib
import hmac
import re

from evergrant_server.access.person_ends import end_family
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.gateway_client import KnownClient, current_client_of, note_use
from evergrant_server.api.oauth.token_family import (
    FamilyTokenView,
    invalid_grant,
    issue,
    refresh_token_of,
    require_parameters,
    require_standing,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import TokenFamilyId, new_id
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.core.oauth.authorizations import AuthorizationCode, FamilyEnd, TokenFamily
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_replayed_token
from evergrant_server.telemetry.traces import trace_of

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}\Z")  # RFC 7636 section 4.1
_WRONG = "The code is unknown, has expired, or belongs to another request."


async def exchange_code(request: ClientTokenRequest) -> FamilyTokenView:
    """The first tokens of a family. Raises TokenRefused; a code that was used ends the family that it began
    (RFC 6749 section 4.1.2)."""
    for name in ("code", "redirect_uri", "code_verifier"):
        if name not in request.parameters:
            raise TokenRefused("invalid_request", f"{name} is missing.")

    async def require_held(tx: Transaction, client: GatewayClient) -> None:
        await _find_code(tx, request, client)

    known = await current_client_of(request, require_held)
    result = await run_transaction(request.api.store, lambda tx: _exchange(tx, request, known))
    return begun(result)


def begun(result: FamilyTokenView | TokenFamily | None) -> FamilyTokenView:
    """The first tokens of a family. Raises TokenRefused for a code that was used, and reports the family that
    it has ended by that."""
    if isinstance(result, FamilyTokenView):
        metrics.count(metrics.TOKEN_FAMILIES, "begun")
        return result
    if result is not None:
        report_replayed_token(result, FamilyEnd.CODE_REPLAYED)
    raise invalid_grant(_WRONG)


async def _exchange(
    tx: Transaction, request: ClientTokenRequest, known: KnownClient
) -> FamilyTokenView | TokenFamily | None:
    """The tokens; or the family that the code's second use has ended; None for a code that counts no more."""
    parameters, now = request.parameters, request.now
    code = await _find_code(tx, request, known.client)
    if code.used_at is not None:
        return await end_replayed(tx, request, code)
    if now >= code.expires_at or parameters["redirect_uri"] != code.redirect_uri:
        raise invalid_grant(_WRONG, code.app_id)
    if not _is_verified(parameters["code_verifier"], code.challenge):
        raise invalid_grant("code_verifier isn't that of the code's challenge.", code.app_id)
    return await begin_family(tx, request, known, code)


async def begin_family(
    tx: Transaction, request: ClientTokenRequest, known: KnownClient, code: AuthorizationCode
) -> FamilyTokenView:
    """Use the code up: the first tokens of its family. Raises TokenRefused, Failure AUTHORITY_BROKEN."""
    now = request.now
    scopes = require_parameters(request, code)
    app = await require_standing(tx, code, request)
    await note_use(tx, known, app, now)
    family = _family_of(request, code, known)
    await tx.token_families.add(family)
    used = code.__replace__(used_at=now, family_id=family.id)
    await tx.authorization_codes.replace(used, expected=code.revision)
    refresh = refresh_token_of(tx.sealer.ring, family, request)
    await tx.refresh_tokens.add(refresh.token)
    action = AuditAction.TOKEN_FAMILY_BEGUN
    return await issue(tx, request, family, app, refresh.text, scopes, action, code=code.id)


async def _find_code(
    tx: Transaction, request: ClientTokenRequest, client: GatewayClient
) -> AuthorizationCode:
    """The client's code, used or not. Raises TokenRefused."""
    code = await tx.authorization_codes.by_hash(AuthorizationCode.hash_of(request.parameters["code"]))
    if code is None or code.client_id != client.client_id:
        raise invalid_grant(_WRONG)
    return code


def _family_of(request: ClientTokenRequest, code: AuthorizationCode, known: KnownClient) -> TokenFamily:
    now = request.now
    return TokenFamily(
        tenant=code.tenant,
        id=TokenFamilyId(new_id("fam")),
        client_id=code.client_id,
        app_id=code.app_id,
        subject=code.subject,
        resource=code.resource,
        connection_id=code.connection_id,
        scopes=code.scopes,
        rule=code.rule,
        bound=known.client.is_bound,
        created_at=now,
        used_at=now,
        expires_at=now + request.api.settings.oauth_lifetime,
    )


async def end_replayed(
    tx: Transaction, request: ClientTokenRequest, code: AuthorizationCode
) -> TokenFamily | None:
    """End the family that a code has begun, which comes a second time; None if that has ended."""
    if code.family_id is None:
        return None
    family = await tx.token_families.locked(code.tenant, code.family_id)
    if family is None or family.ended_at is not None:
        return None
    context = trace_of(request.http).request_context(f"{CLAIMED}client:{code.client_id}")
    await end_family(tx, family, FamilyEnd.CODE_REPLAYED, context, request.now)
    return family


def _is_verified(verifier: str, challenge: str) -> bool:
    """Whether the challenge is the verifier's, by S256 (RFC 7636 section 4.6)."""
    if not _VERIFIER.match(verifier):
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return hmac.compare_digest(made, challenge)
