"""Access tokens of the gateways' clients: opaque, for one resource, read from the store with each request.

`evg_atk_<id>_<secret><checksum>`, built as API keys are (`api_keys`); refresh tokens are `evg_rtk_…`. The MAC
of an access token covers every field of its row.
"""

import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import NamedTuple

from starlette.requests import Request

from evergrant_server.api.http.api_keys import checksum
from evergrant_server.core.access import App
from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AccessTokenId, new_id
from evergrant_server.core.oauth.authorizations import AccessToken, Authorization, TokenFamily
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority

PREFIX = "evg_atk_"
RESOURCE = "evergrant.resource"  # of the ASGI scope: which resource the request is for
_TEXT = re.compile(r"^(evg_((?:atk|rtk)_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")


class PresentedText(NamedTuple):
    """A token as a request presents it. Its secret isn't verified yet."""

    id: str
    secret: str


class ResourceToken(NamedTuple):
    """An access token that counts, and what it stands for."""

    token: AccessToken
    family: TokenFamily
    app: App


def new_text(id: str) -> tuple[str, str]:
    """A new secret, and the text of the token with this id."""
    secret = secrets.token_hex(32)
    text = f"evg_{id}_{secret}"
    return secret, text + checksum(text)


def parse_text(text: str) -> PresentedText | None:
    """The parts of an access token or refresh token; None for any other text."""
    match = _TEXT.match(text)
    return PresentedText(match[2], match[3]) if match and checksum(match[1]) == match[4] else None


def new_access_token(
    ring: KeyRing, family: TokenFamily, scopes: tuple[str, ...], now: datetime, expires_at: datetime
) -> tuple[AccessToken, str]:
    """A new access token of the family for its resource, and its text, which isn't stored."""
    id = AccessTokenId(new_id("atk"))
    secret, text = new_text(id)
    token = AccessToken(
        tenant=family.tenant,
        id=id,
        family_id=family.id,
        secret_hash="",
        resource=family.resource,
        scopes=scopes,
        created_at=now,
        expires_at=expires_at,
    )
    return token.__replace__(secret_hash=_mac(ring, token, secret)), text


def is_right(ring: KeyRing, token: AccessToken, secret: str) -> bool:
    """Whether the token's row is of this secret, in every field."""
    return hmac.compare_digest(token.secret_hash, _mac(ring, token, secret))


def _mac(ring: KeyRing, token: AccessToken, secret: str) -> str:
    moments = (
        it.astimezone(UTC).isoformat(" ", "microseconds") for it in (token.created_at, token.expires_at)
    )
    names = (token.tenant, token.id, token.family_id, token.resource, " ".join(token.scopes))
    return ring.token_mac("resource", *names, *moments, secret)


async def read_token(tx: Transaction, request_resource: object, text: str, now: datetime) -> ResourceToken:
    """What an access token stands for at this resource. Raises Failure UNAUTHENTICATED, and those of
    `standing_app`."""
    given = parse_text(text)
    token = None if given is None else await _find(tx, AccessTokenId(given.id))
    if given is None or token is None or not is_right(tx.sealer.ring, token, given.secret):
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is malformed or unknown.")
    if token.resource != request_resource:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is for another resource.")
    if now >= token.expires_at:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token has expired: refresh it.")
    family = await tx.token_families.get(token.tenant, token.family_id)
    if family is None or family.ended_at is not None or now >= family.expires_at:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token's authorization has ended.")
    return ResourceToken(token, family, await standing_app(tx, family, now))


async def _find(tx: Transaction, id: AccessTokenId) -> AccessToken | None:
    """The token of this id, or None. One that was changed by hand is unknown, with an alarm."""
    try:
        return await tx.oauth_tokens.find(id)
    except Failure as failure:
        report_broken_authority(failure)
        return None


async def standing_app(tx: Transaction, authorization: Authorization, now: datetime) -> App:
    """The app as which the client acts, if tenant, app, client and the subject's login still count.

    Raises Failure UNAUTHENTICATED, TENANT_DISABLED, APP_DISABLED, AGENT_ENDED, AUTHORITY_BROKEN.
    """
    await tx.tenants.require_enabled(authorization.tenant)
    app = await tx.access.app(authorization.tenant, authorization.app_id)
    client = await tx.oauth_clients.by_client_id(authorization.client_id)
    if app is None or client is None or client.disabled or _is_older(authorization, client):
        raise Failure(ErrorCode.UNAUTHENTICATED, "The client was disabled or deleted.")
    if authorization.rule is not None:
        rule = await tx.client_logins.of_tenant(authorization.tenant)
        if rule is None or rule.id != authorization.rule or not rule.takes(client.kind):
            raise Failure(ErrorCode.UNAUTHENTICATED, "The login of clients was changed: authorize again.")
    await tx.agents.require_active(app, now)
    return app


def _is_older(authorization: Authorization, client: GatewayClient) -> bool:
    """Whether it was of a client that was deleted, whose id came again, as the URL of a document does."""
    return authorization.created_at + CLOCK_SKEW < client.created_at


def require_resource(request: Request, authorization: Authorization | None) -> None:
    """Check that the request is for the resource that its token is for. Raises Failure UNAUTHENTICATED."""
    if authorization is not None and request.scope.get(RESOURCE) != authorization.resource:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is for another resource.")
