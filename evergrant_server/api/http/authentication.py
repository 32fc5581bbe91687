"""Authenticates apps by API keys `evg_<key id>_<secret>` (RFC 6750 section 2.1)."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from starlette.requests import Request

from evergrant_server.core.access import App, AppKey, Permit
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyId, Tenant
from evergrant_server.store import Store

_KEY = re.compile(r"^evg_(key_[0-9a-z]{22})_([0-9a-f]{64})\Z")
_UNKNOWN_HASH = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
_MAX_CACHED = 10_000


@dataclass(frozen=True)
class Caller:
    """An authenticated app and its permits, read at the app's `revision`."""

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


def hash_secret(secret: str) -> str:
    """SHA-256 in hex. A secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def format_key(key_id: KeyId, secret: str) -> str:
    return f"evg_{key_id}_{secret}"


class Authenticator:
    """Finds the app that owns a key. Caches callers for the lease path."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: dict[str, Caller] = {}

    async def authenticate(self, request: Request) -> Caller:
        """Read the key, the app and its permits from the store.

        Raises Failure UNAUTHENTICATED or APP_DISABLED.
        """
        key_id, given = _parse_credential(request)
        async with self._store.read() as tx:
            found = await tx.access.key(key_id)
            permits = await tx.access.permits(found[1].tenant, found[1].id) if found else []
        # An unknown key costs the same comparison as a known one.
        right = hmac.compare_digest(found[0].secret_hash if found else _UNKNOWN_HASH, hash_secret(given))
        if found is None or not right or found[0].revoked_at is not None:
            raise Failure(ErrorCode.UNAUTHENTICATED)
        caller = Caller(found[1], found[0], tuple(permits))
        if caller.app.disabled:
            raise Failure(ErrorCode.APP_DISABLED)
        return caller

    async def authenticate_cached(self, request: Request) -> tuple[Caller, bool]:
        """The caller, and whether it comes from the cache.

        A cached caller may be out of date: refuse or issue only after the app's revision was
        compared with the store. Raises as `authenticate` does.
        """
        key_id, given = _parse_credential(request)
        known = self._cache.get(key_id)
        if known is not None and hmac.compare_digest(known.key.secret_hash, hash_secret(given)):
            return known, True
        caller = await self.authenticate(request)
        self.cache(caller)
        return caller, False

    def cache(self, caller: Caller) -> None:
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[caller.key.id] = caller

    def evict(self, caller: Caller) -> None:
        self._cache.pop(caller.key.id, None)


def _parse_credential(request: Request) -> tuple[KeyId, str]:
    values = request.headers.getlist("authorization")
    if len(values) != 1:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    scheme, _, credential = values[0].partition(" ")
    match = _KEY.match(credential.strip())
    if scheme.lower() != "bearer" or match is None:
        raise Failure(ErrorCode.UNAUTHENTICATED)
    return KeyId(match.group(1)), match.group(2)
