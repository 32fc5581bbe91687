"""Opaque access tokens of apps: `evg_tok_<id>_<secret><checksum>`, and what the store keeps of one.

Built as API keys are (`api_keys`). The MAC covers every field of the row: one that was written or changed by
hand is no token.
"""

import json
import re
import secrets
from datetime import UTC, datetime
from typing import NamedTuple

from evergrant_server.api.http.api_keys import checksum
from evergrant_server.core.access import AppCredential, AppToken
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import TokenId, new_id
from evergrant_server.crypto import KeyRing

PREFIX = "evg_tok_"
_TOKEN = re.compile(r"^(evg_(tok_[0-9a-z]{22})_([0-9a-f]{64}))([0-9A-Za-z]{6})\Z")


class PresentedToken(NamedTuple):
    """A token as a request presents it. Its secret isn't verified yet."""

    id: TokenId
    secret: str


def new_token(
    ring: KeyRing,
    credential: AppCredential,
    now: datetime,
    expires_at: datetime,
    confirmation: dict[str, str] | None,
) -> tuple[AppToken, str]:
    """A new token of the credential's app, and its text, which isn't stored."""
    secret = secrets.token_hex(32)
    token = AppToken(
        tenant=credential.tenant,
        id=TokenId(new_id("tok")),
        app_id=credential.app_id,
        credential_id=credential.id,
        credential_revision=credential.revision,
        method=credential.method,
        confirmation=confirmation,
        secret_hash="",
        created_at=now,
        expires_at=expires_at,
    )
    text = f"evg_{token.id}_{secret}"
    return token.__replace__(secret_hash=token_mac(ring, token, secret)), text + checksum(text)


def parse_token(text: str) -> PresentedToken:
    """The parts of a token. Raises Failure UNAUTHENTICATED."""
    match = _TOKEN.match(text)
    if match is None:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    if checksum(match[1]) != match[4]:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is mistyped: its checksum doesn't match.")
    return PresentedToken(TokenId(match[2]), match[3])


def token_mac(ring: KeyRing, token: AppToken, secret: str) -> str:
    """What the store keeps of a token's secret: a MAC that also covers the row."""
    return ring.token_mac(
        *(token.tenant, token.app_id, token.id, token.credential_id, str(token.credential_revision)),
        *(token.method, json.dumps(token.confirmation, sort_keys=True)),
        token.expires_at.astimezone(UTC).isoformat(" ", "microseconds"),
        secret,
    )


def token_ended(why: str) -> Failure:
    """The failure of a request with a token that counts no longer."""
    return Failure(ErrorCode.UNAUTHENTICATED, f"{why} Get another one from POST /oauth/token.")
