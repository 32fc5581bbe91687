"""A key service in this process: a key for each purpose, and principals that may use some of them."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from evergrant_server.core.clock import Clock
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
)
from evergrant_server.crypto.root_keys import first_roots, service_purposes
from evergrant_server.store import Store
from evergrant_server.wiring.root_keeper import RootKeeper
from tests.fakes.databases import NOW


@dataclass
class ScriptedKeys:
    """The service itself: whether it answers, which of its keys are disabled, and who was refused."""

    name: str = "scripted"
    away: bool = False
    disabled: set[ServicePurpose] = field(default_factory=set)
    calls: list[tuple[str, ServicePurpose]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = {purpose: AESGCM(secrets.token_bytes(32)) for purpose in ServicePurpose}

    def of(self, role: Role) -> BoundKeyService:
        """The service as the principal of this role calls it."""
        may_use = service_purposes(role) if role in (Role.API, Role.GATEWAY) else ServicePurpose
        return BoundKeyService(ScriptedKeyService(self, role.value, set(may_use)))


@dataclass
class ScriptedKeyService:
    """The calls of one principal."""

    service: ScriptedKeys
    principal: str
    may_use: set[ServicePurpose]

    def key_name(self, purpose: ServicePurpose) -> str:
        return f"{self.service.name}:{purpose}"

    async def wrap(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        cipher, nonce = self._cipher("wrap", purpose), secrets.token_bytes(12)
        return nonce + cipher.encrypt(nonce, key, context.encoded(purpose))

    async def unwrap(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        try:
            cipher = self._cipher("unwrap", purpose)
            return cipher.decrypt(wrapped[:12], wrapped[12:], context.encoded(purpose))
        except (InvalidTag, ValueError):
            raise self._failure(FailureReason.BROKEN, purpose, "didn't wrap this") from None

    async def describe(self, purpose: ServicePurpose) -> KeyDescription:
        self._cipher("describe", purpose)
        return KeyDescription(self.key_name(purpose), "1", principal=self.principal)

    async def close(self) -> None:
        """Nothing is open."""

    def _cipher(self, call: str, purpose: ServicePurpose) -> AESGCM:
        self.service.calls.append((call, purpose))
        if self.service.away:
            raise self._failure(FailureReason.AWAY, purpose, "can't be reached")
        if purpose not in self.may_use:
            raise self._failure(FailureReason.DENIED, purpose, "may not be used")
        if purpose in self.service.disabled:
            raise self._failure(FailureReason.GONE, purpose, "is disabled")
        return self.service.keys[purpose]

    def _failure(self, reason: FailureReason, purpose: ServicePurpose, why: str) -> KeyServiceFailure:
        return KeyServiceFailure(reason, self.key_name(purpose), why, principal=self.principal)


async def wrapped_by(keys: ScriptedKeys, store: Store) -> None:
    """Have the service wrap the keys of this store's file: a ring without a file holds them from here on."""
    file = store.ring.file
    assert file is not None
    rows = await first_roots(keys.of(Role.OPERATOR), file, NOW, lie_in_file=False)
    async with store.write() as tx:
        for root, wrapped in rows:
            await tx.root_keys.add(root, wrapped)


@asynccontextmanager
async def ring_of(
    keys: ScriptedKeys,
    url: str,
    role: Role,
    hold: timedelta,
    clock: Clock,
    *,
    before: ScriptedKeys | None = None,
) -> AsyncIterator[tuple[Store, RootKeeper]]:
    """The store of a role whose ring the service fills, and its keeper, which looks when it is told to."""
    store = await Store.open(url, KeyRing("scripted", role, None), clock)
    services = [keys.of(role)] + ([] if before is None else [before.of(role)])
    keeper = RootKeeper(store, services, hold)
    try:
        yield store, keeper
    finally:
        await keeper.close()
        await store.close()
