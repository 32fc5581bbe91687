"""Who is asking: API keys `evg_<key id>_<secret>` in the Authorization header (RFC 6750 section 2.1)."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from starlette.requests import Request

from evergrant_server.core.access import App, AppKey, Permit
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import KeyId, Tenant
from evergrant_server.store import Store

_KEY = re.compile(r"^evg_(key_[0-9a-z]{22})_([0-9a-f]{64})\Z")
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
_MOST_CACHED = 10_000


@dataclass(frozen=True)
class Caller:
    """An authenticated app with its permits, as they were read at the app's `revision`."""

    app: App
    key: AppKey
    permits: tuple[Permit, ...]

    @property
    def tenant(self) -> Tenant:
        return self.app.tenant

    @property
    def by(self) -> str:
        return f"app:{self.app.name}"


def new_key_secret() -> str:
    """256 random bits in hex."""
    return secrets.token_hex(32)


def hash_of(secret: str) -> str:
    """SHA-256 in hex. Enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def format_key(key_id: KeyId, secret: str) -> str:
    return f"evg_{key_id}_{secret}"


class Authenticator:
    """Finds the caller behind a key. Knows the lease path's callers by heart."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Caller] = {}

    async def fresh(self, request: Request) -> Caller:
        """Read the key, the app and its permits now.

        Raises Failure UNAUTHENTICATED or APP_DISABLED.
        """
        key_id, given = _presented(request)
        async with self._store.read() as tx:
            found = await tx.access.key(key_id)
            permits = await tx.access.permits(found[1].tenant, found[1].id) if found else []
        # An unknown key costs the same comparison as a known one.
        right = hmac.compare_digest(found[0].secret_hash if found else _NOBODY, hash_of(given))
        if found is None or not right or found[0].revoked_at is not None:
            raise Failure(Code.UNAUTHENTICATED)
        caller = Caller(found[1], found[0], tuple(permits))
        if caller.app.disabled:
            raise Failure(Code.APP_DISABLED)
        return caller

    async def cached(self, request: Request) -> tuple[Caller, bool]:
        """The caller, and whether it comes from memory: then nothing may be refused, nor handed
        out, before the app's revision was seen to be the same. Raises as `fresh` does.
        """
        key_id, given = _presented(request)
        known = self._known.get(key_id)
        if known is not None and hmac.compare_digest(known.key.secret_hash, hash_of(given)):
            return known, True
        caller = await self.fresh(request)
        self.remember(caller)
        return caller, False

    def remember(self, caller: Caller) -> None:
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        self._known[caller.key.id] = caller

    def forget(self, caller: Caller) -> None:
        self._known.pop(caller.key.id, None)


def _presented(request: Request) -> tuple[KeyId, str]:
    values = request.headers.getlist("authorization")
    if len(values) != 1:
        raise Failure(Code.UNAUTHENTICATED)
    scheme, _, credential = values[0].partition(" ")
    match = _KEY.match(credential.strip())
    if scheme.lower() != "bearer" or match is None:
        raise Failure(Code.UNAUTHENTICATED)
    return KeyId(match.group(1)), match.group(2)
