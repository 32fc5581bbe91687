"""Keeps the root keys of one process: reads their rows, has the key service unwrap them, lets go of them.

The service is called outside every transaction, for a few rows a minute, however many tenants there are. What
it has unwrapped is held for a stated time after its last answer. A service that refuses, or whose key is
gone, ends that at once. Everything below the roots stays synchronous (ADR 0100).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyRing, SealingKey, keyfile
from evergrant_server.crypto.bundle import BUNDLE
from evergrant_server.crypto.envelope import KEY_BYTES
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import (
    RETRY_AFTER_S,
    Context,
    FailureReason,
    KeyServiceFailure,
    ServicePurpose,
)
from evergrant_server.crypto.keyfile import KeyFile, RootKeys
from evergrant_server.crypto.keyring import PURPOSES_OF_ROLE, HeldKeys
from evergrant_server.crypto.root_keys import BUNDLE_OF_ROLE, RootKey, RootState, service_purposes
from evergrant_server.store import Store
from evergrant_server.store.root_keys import StoredRoot, require_authentic
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.keys")
_READ_S = 15.0  # between two looks at the rows
_RETRY_S = 5.0  # while something is lacking
_CONFIRMED_SHARE = 0.15  # of the time for which keys are held, until the service unwraps them again


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    """What a row wraps, and when the service last said so (the event loop's time)."""

    wrapped: bytes
    value: bytes
    answered_at: float


class RootKeeper:
    """Fills a store's ring. Belongs to one event loop."""

    def __init__(self, store: Store, services: Sequence[BoundKeyService], hold: timedelta) -> None:
        self._store, self._ring, self.services = store, store.ring, services
        self._hold_s = hold.total_seconds()
        self._purposes = service_purposes(store.ring.role)
        self._root_purposes = sorted(purpose.value for purpose in PURPOSES_OF_ROLE[store.ring.role])
        self._no_roots = {purpose: RootKeys("", {}) for purpose in self._root_purposes}
        self._probe = KeyRing(store.ring.source, store.ring.role, None)  # verifies rows before they count
        self._rows: list[StoredRoot] | None = None
        self._unwrapped: dict[str, _Unwrapped] = {}
        self._failures: dict[str, KeyServiceFailure] = {}
        self._put_back: Mapping[str, Failure] = {}  # roots that were retired, whose rows deny it
        self._lacking: Mapping[str, Failure] = {}
        self._turn, self._woken = asyncio.Lock(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        store.ring.when_outdated = self.wake

    async def begin(self) -> None:
        """Fill the ring.

        Raises STORE_UNAVAILABLE, or the Failure with which a root that seals or the bundle lacks.
        """
        await self.look()
        self._ring.require_sealing()

    def wake(self) -> None:
        """Look at the rows now: they have changed."""
        self._woken.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the ring filled while the block runs."""
        task = asyncio.create_task(self._run(), name="root-keeper")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        """Look at the rows again and again, until the task is cancelled."""
        while True:
            pause = min(_RETRY_S if self._lacking or self._failures else _READ_S, self._confirm_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self.look()
            except Exception as error:
                log_event(log, logging.ERROR, LogEvent.UNEXPECTED, type(error).__name__)

    async def look(self, *, confirm: bool = False) -> None:
        """Read the rows, have the service unwrap what is new or wasn't confirmed for a while, and hold it.

        `confirm`: also what it has unwrapped a moment ago.
        """
        async with self._turn:
            await self._read()
            wrapped = {stored.root.id: stored for stored in self._rows or () if stored.is_wrapped}
            self._unwrapped = {id: kept for id, kept in self._unwrapped.items() if id in wrapped}
            self._failures = {id: failure for id, failure in self._failures.items() if id in wrapped}
            due = [stored for stored in wrapped.values() if self._is_due(stored, confirm=confirm)]
            await asyncio.gather(*(self._unwrap(stored) for stored in due))
            self._hold()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for service in self.services:
            await service.close()

    @property
    def _confirm_s(self) -> float:
        return self._hold_s * _CONFIRMED_SHARE

    async def _read(self) -> None:
        """While the store is away, the rows that were read last are confirmed."""
        try:
            async with self._store.read() as tx:
                rows = await tx.root_keys.all()
                self._put_back = await tx.root_keys.put_back(rows) if rows else {}
        except Failure:
            if self._rows is None:
                raise
            return
        self._rows = [stored for stored in rows if stored.root.purpose in self._purposes]

    def _is_due(self, stored: StoredRoot, *, confirm: bool) -> bool:
        kept = self._unwrapped.get(stored.root.id)
        if confirm or kept is None or kept.wrapped != stored.wrapped or stored.root.id in self._failures:
            return True
        return _now() >= kept.answered_at + self._confirm_s

    async def _unwrap(self, stored: StoredRoot) -> None:
        """Have the service unwrap the row. One that was wrapped anew, by a service that this process doesn't
        know yet, is confirmed as it was before."""
        root, wrapped, kept = stored.root, stored.wrapped, self._unwrapped.get(stored.root.id)
        assert wrapped is not None
        try:
            value = await self._value(root, wrapped)
        except KeyServiceFailure as failure:
            before = self._failures.get(root.id)
            if before is None or before.detail != failure.detail:
                event = LogEvent.KEY_SERVICE_FAILED
                log_event(log, logging.WARNING, event, failure.detail, code=failure.code, object=root.id)
            self._failures[root.id] = failure
            if kept is not None and kept.wrapped != wrapped:
                with suppress(KeyServiceFailure):
                    value = await self._value(root, kept.wrapped)
                    self._unwrapped[root.id] = _Unwrapped(kept.wrapped, value, _now())
                    return
            if failure.reason is not FailureReason.AWAY:
                self._unwrapped.pop(root.id, None)  # the service has answered: it is taken away
            return
        self._failures.pop(root.id, None)
        self._unwrapped[root.id] = _Unwrapped(wrapped, value, _now())

    async def _value(self, root: RootKey, wrapped: bytes) -> bytes:
        """What the row wraps, by the service that its row names, or by another that opens it."""
        named = [service for service in self.services if service.key_name(root.purpose) == root.service]
        first = None if named else _no_service(root)
        for service in [*named, *(service for service in self.services if service not in named)]:
            try:
                value = await service.unwrap(root.purpose, wrapped, Context(root.id))
                if root.purpose in PURPOSES_OF_ROLE[self._ring.role] and len(value) != KEY_BYTES:
                    why = f"unwrapped a root key of {len(value)} bytes"
                    raise KeyServiceFailure(FailureReason.BROKEN, root.service, why, row=root.id)
            except KeyServiceFailure as failure:
                metrics.count_key_call(root.purpose, failure.reason)
                first = first or failure
                continue
            metrics.count_key_call(root.purpose, "answered")
            return value
        assert first is not None
        raise first

    def _hold(self) -> None:
        """Give the ring what is held now, and take the rest from it; again when the next time is over."""
        now = _now()
        held = {
            id: kept.value for id, kept in self._unwrapped.items() if now < kept.answered_at + self._hold_s
        }
        lacking: dict[str, Failure] = {}
        bundle, bundle_rows = self._bundle(held, lacking)
        roots = {
            purpose: self._roots(ServicePurpose(purpose), held, lacking) for purpose in self._root_purposes
        }
        self._ring.hold(HeldKeys(roots, bundle, lacking, bundle_rows))
        self._report(lacking)
        if self._timer is not None:
            self._timer.cancel()
        ends = [kept.answered_at + self._hold_s for id, kept in self._unwrapped.items() if id in held]
        self._timer = asyncio.get_running_loop().call_at(min(ends), self._hold) if ends else None

    def _bundle(
        self, held: Mapping[str, bytes], lacking: dict[str, Failure]
    ) -> tuple[KeyFile | None, tuple[str, ...]]:
        """What the role signs with, and the rows that wrap it: the current one, and those that opened.

        Where there are no rows, it is that of the key file.
        """
        purpose = BUNDLE_OF_ROLE[self._ring.role]
        rows = [stored for stored in self._rows or () if stored.root.purpose is purpose]
        opened = tuple(
            stored.root.id
            for stored in rows
            if stored.root.state is not RootState.CURRENT and self._opens(stored, held)
        )
        for stored in rows:
            if stored.root.state is not RootState.CURRENT:
                continue
            id = stored.root.id
            try:
                bundle = keyfile.read_bundle(held[id], f"root_key {id}") if id in held else self._ring.file
                if bundle is not None and self._is_signed_with(bundle, stored):
                    return bundle, (id, *opened) if id in held else opened
                lacking[BUNDLE] = self._why_lacking(stored.root)
            except Failure as failure:
                lacking[BUNDLE] = failure
            return None, ()
        self._probe.hold(HeldKeys(self._no_roots, self._ring.file))
        if self._ring.file is None:
            lacking[BUNDLE] = Failure(
                ErrorCode.KEY_UNAVAILABLE,
                f"The database has no keys that {self._ring.source} wraps. "
                "Run: python -m evergrant_server keys create",
            )
        return self._ring.file, ()

    def _opens(self, stored: StoredRoot, held: Mapping[str, bytes]) -> bool:
        """Whether this process could go on with the bundle that the row wraps."""
        id = stored.root.id
        if id not in held:
            return False
        try:
            return self._is_signed_with(keyfile.read_bundle(held[id], f"root_key {id}"), stored)
        except Failure:
            return False

    def _is_signed_with(self, bundle: KeyFile, stored: StoredRoot) -> bool:
        """Whether the row of a bundle is signed with it. What a key file holds may be another's."""
        self._probe.hold(HeldKeys(self._no_roots, bundle))
        try:
            require_authentic(self._probe, stored)
        except Failure:
            if bundle is not self._ring.file:
                raise
            return False
        return True

    def _roots(
        self, purpose: ServicePurpose, held: Mapping[str, bytes], lacking: dict[str, Failure]
    ) -> RootKeys:
        """The roots of the rows. Without rows those of the key file, which else only wraps others."""
        rows = [stored for stored in self._rows or () if stored.root.purpose is purpose]
        file = self._ring.file
        of_file = RootKeys("", {}) if file is None else file.purposes[purpose.value]
        if not rows and file is not None:
            return of_file
        current, keys = "", dict[str, SealingKey]()
        for stored in rows:
            root = stored.root
            if root.state is RootState.CURRENT:
                current = root.id
            lies_in_file = of_file.keys.get(root.id)
            if BUNDLE in lacking or root.id in self._put_back:  # without the bundle nothing can be verified
                lacking[root.id] = self._put_back.get(root.id) or lacking[BUNDLE]
                continue
            try:
                require_authentic(self._probe, stored)
            except Failure as failure:
                lacking[root.id] = failure
                continue
            if root.state is RootState.RETIRED:
                continue
            if root.id in held:
                keys[root.id] = SealingKey(root.id, held[root.id])
            elif lies_in_file is not None:
                keys[root.id] = lies_in_file
            else:
                lacking[root.id] = self._why_lacking(root, in_file=stored.wrapped is None)
        return RootKeys(current or f"that seals for {purpose}", keys)

    def _why_lacking(self, root: RootKey, *, in_file: bool = False) -> Failure:
        if in_file:
            return Failure(
                ErrorCode.KEY_UNAVAILABLE,
                f"root_key {root.id} of purpose {root.purpose} lies in a key file, and {self._ring.source} "
                "doesn't hold it. Set EVERGRANT_KEY_FILE to that file, and with a key service "
                "EVERGRANT_KEY_SERVICE_BEFORE to file.",
                key_file=str(self._ring.source),
            )
        failure = self._failures.get(root.id)
        if failure is None:
            why = f"root_key {root.id} wasn't unwrapped, or not confirmed for {self._hold_s:g} s."
            return Failure(ErrorCode.KEY_UNAVAILABLE, why, retry_after=RETRY_AFTER_S)
        return failure

    def _report(self, lacking: Mapping[str, Failure]) -> None:
        if lacking and lacking.keys() != self._lacking.keys():
            first, names = next(iter(lacking.values())), ", ".join(sorted(lacking))
            log_event(log, logging.ERROR, LogEvent.KEYS_LACKING, f"{names}: {first.detail}", code=first.code)
        elif self._lacking and not lacking:
            log_event(log, logging.INFO, LogEvent.KEYS_HELD, "every key of this role is held again")
        self._lacking = lacking
        ages: dict[str, float] = {}
        for stored in self._rows or ():
            kept = self._unwrapped.get(stored.root.id)
            if kept is not None:
                age = _now() - kept.answered_at
                ages[stored.root.purpose] = max(age, ages.get(stored.root.purpose, 0.0))
        for purpose, age in ages.items():
            metrics.KEY_AGE.set(age, {metrics.KEY_PURPOSE: purpose})


def _no_service(root: RootKey) -> KeyServiceFailure:
    why = (
        "wraps it, and the settings name another: set EVERGRANT_KEY_SERVICE, or EVERGRANT_KEY_SERVICE_BEFORE"
    )
    return KeyServiceFailure(FailureReason.GONE, root.service, why, row=root.id)


def _now() -> float:
    return asyncio.get_running_loop().time()
