"""The console's sessions of API keys: pasted once, one hour, and a cookie that isn't the key.

A session counts while its key does: a revoked or expired key, a disabled app and a log-out end it at the next
request. Its cookie is read by the console and by what opens stories for the Temporal UI, so that a browser
never reaches a token with it.
"""

import hmac
import re
import secrets
from datetime import UTC, timedelta
from typing import NamedTuple

from starlette.requests import Request

from evergrant_server.access.callers import Caller, PresentedCredential
from evergrant_server.access.context import ApiContext
from evergrant_server.core.access import AuthenticationMethod, KeySession
from evergrant_server.core.ids import KeyId, SessionId, new_id
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import unless_broken

LASTS = timedelta(hours=1)
_COOKIE = re.compile(r"(ses_[0-9a-z]{22})_([0-9a-f]{64})\Z")


class KeyCaller(NamedTuple):
    """An app, authenticated by the session of one of its keys."""

    caller: Caller
    session: KeySession


def key_cookie(public_url: str) -> str:
    """The cookie's name. `__Host-` needs Secure, and browsers refuse Secure cookies over plain http."""
    return "__Host-evergrant-console" if public_url.startswith("https://") else "evergrant-dev-console"


def new_key_session(api: ApiContext, caller: Caller) -> tuple[KeySession, str]:
    """A session of the key that the caller has presented, and its cookie, which isn't stored."""
    secret, now = secrets.token_hex(32), api.clock.now()
    session = KeySession(
        tenant=caller.tenant,
        id=SessionId(new_id("ses")),
        key_id=KeyId(caller.credential.id),
        secret_hash="",
        created_at=now,
        expires_at=min(now + LASTS, caller.credential.valid_until),
    )
    kept = session.__replace__(secret_hash=_mac(api.ring, session, secret))
    return kept, f"{session.id}_{secret}"


async def key_caller(api: ApiContext, request: Request) -> KeyCaller | None:
    """The app whose key was pasted in this browser; None without a live session.

    Raises Failure TENANT_DISABLED, APP_DISABLED, AGENT_ENDED.
    """
    presented = _COOKIE.match(request.cookies.get(key_cookie(api.settings.public_url), ""))
    if presented is None:
        return None
    async with api.store.read() as tx:
        session = await tx.key_sessions.find(SessionId(presented[1]))
        if session is None or api.clock.now() >= session.expires_at:
            return None
        if not hmac.compare_digest(session.secret_hash, _mac(api.ring, session, presented[2])):
            return None
        return await _caller(tx, api, session)


async def _caller(tx: Transaction, api: ApiContext, session: KeySession) -> KeyCaller | None:
    row = await unless_broken(tx.access.key(session.key_id))
    if row is None or row[0].expires_at is None or not row[0].is_live(api.clock.now()):
        return None
    key, app = row
    await tx.tenants.require_enabled(app.tenant)
    await tx.agents.require_active(app, api.clock.now())
    credential = PresentedCredential(key.id, AuthenticationMethod.API_KEY, row[0].expires_at).of(app)
    permits = await tx.access.permits_of(app)
    return KeyCaller(Caller(app, credential, tuple(permits), b""), session)


def _mac(ring: KeyRing, session: KeySession, secret: str) -> str:
    """What the store keeps of a session's secret: a MAC that also covers the row."""
    ends = session.expires_at.astimezone(UTC).isoformat(" ", "microseconds")
    return ring.keyed_hash("key sessions", session.tenant, session.id, session.key_id, ends, secret)
