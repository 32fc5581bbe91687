"""Imports existing grants: writes the items, waits for their installation, and refreshes each once."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError

from evergrant_server import audit
from evergrant_server.access.context import integration_spec
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.connections.create import new_connection
from evergrant_server.api.connections.scopes import ScopeCheck
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.transfer.models import ImportItem, ImportOutcome
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind
from evergrant_server.core.connections.grant import INSTALL_WITHIN, ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.snapshot import import_message
from evergrant_server.core.messages.connection import EnsureFresh
from evergrant_server.problems import field_errors, invalid_request
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

WAIT_S = 15.0  # per request: shorter than the client's timeout
MIN_WAIT_S = 3.0  # left for verification after a slow import
MAX_CONCURRENT = 16  # refreshes of one request at a time
_ITEMS_AT_ONCE = 10  # of one transaction: more would make other writers wait longer and save little
_RAISED_KINDS = (FailureKind.PLATFORM_UNAVAILABLE,)  # not the item's fault: the app repeats the request
_POLL_S = 0.1
_FIRST_GENERATION = 1  # the generation that an import installs
_REFUSED_KINDS = (FailureKind.RECONNECT_NEEDED, FailureKind.CLIENT_MISCONFIGURED)


class ImportWriter:
    """Imports the items of one call, some of them in each transaction."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._store = call.api.store

    async def import_items(
        self, items: Sequence[Any], *, dry_run: bool, in_background: bool
    ) -> list[ImportOutcome]:
        """The outcomes, in order. `in_background`: their workflows may start after all others.

        Raises Failure only of the kind PLATFORM_UNAVAILABLE.
        """
        outcomes: list[ImportOutcome] = []
        for first in range(0, len(items), _ITEMS_AT_ONCE):
            some = list(enumerate(items[first : first + _ITEMS_AT_ONCE], first))

            async def take(tx: Transaction, some: list[tuple[int, Any]] = some) -> list[ImportOutcome]:
                writing = _ImportTransaction(self._call, tx, dry_run=dry_run, in_background=in_background)
                return await writing.take(some)

            if dry_run:
                async with self._store.read() as tx:
                    outcomes += await take(tx)
            else:
                outcomes += await run_transaction(self._store, take)
        return outcomes


class _ImportTransaction:
    """Items that are checked, and written, in one transaction. Each integration is read once."""

    def __init__(self, call: ApiCall, tx: Transaction, *, dry_run: bool, in_background: bool) -> None:
        self._call = call
        self._tx = tx
        self._dry_run = dry_run
        self._in_background = in_background
        self._integrations: dict[str, tuple[Integration, ProviderSpec]] = {}
        self._entries: list[AuditEntry] = []

    async def take(self, items: Iterable[tuple[int, Any]]) -> list[ImportOutcome]:
        """Raises Failure STORE_CONFLICT when another request has just written one of them."""
        outcomes: list[ImportOutcome] = []
        for index, raw in items:
            checked = await self._check(index, raw)
            if isinstance(checked, ImportOutcome):
                outcomes.append(checked)
            elif self._dry_run:
                outcomes.append(ImportOutcome(index=index, status="would_import"))
            else:
                connection = await self._write(*checked)
                outcomes.append(ImportOutcome(index=index, status="imported", connection_id=connection.id))
        if self._entries:
            await audit.append_all(self._tx, self._entries)
        return outcomes

    async def _check(self, index: int, raw: Any) -> "_CheckedItem | ImportOutcome":
        """The item that may be written, or the outcome that says why not."""
        try:
            item = _parse_item(raw)
            integration, spec = await self._integration(item.integration)
            scopes = self._require_valid(item, integration, spec)
            names = (self._call.tenant, item.integration, item.subject, item.label)
            connection = await self._tx.connections.by_names(*names)
        except Failure as failure:
            if failure.kind in _RAISED_KINDS:
                raise
            field = failure.context.get("field")
            return ImportOutcome(
                index=index, status="invalid", code=failure.code, field=field, detail=failure.detail
            )
        if connection is None or connection.state.is_final:
            return _CheckedItem(item, integration, scopes)
        pending = connection.state is LifecycleState.PENDING_CONSENT
        state = "exists and is pending" if pending else f"is {connection.state.value}"
        detail = f"the connection {state}"
        return ImportOutcome(index=index, status="exists", connection_id=connection.id, detail=detail)

    async def _integration(self, name: str) -> tuple[Integration, ProviderSpec]:
        """The integration and its provider. Raises Failure NOT_FOUND, DISCOVERY_FAILED."""
        known = self._integrations.get(name)
        if known is not None:
            return known
        integration = await self._tx.integrations.by_name(self._call.tenant, name)
        if integration is None:
            raise Failure(ErrorCode.NOT_FOUND, "There is no such integration.", field="integration")
        require_ready(integration)
        if not self._dry_run:
            await self._tx.integrations.lock_against_deletion(integration)
        spec = await integration_spec(self._tx, self._call.api.registry, integration)
        self._integrations[name] = integration, spec
        return integration, spec

    def _require_valid(
        self, item: ImportItem, integration: Integration, spec: ProviderSpec
    ) -> tuple[str, ...]:
        """The scopes to request. Raises the Failure that says why the item is invalid."""
        now = self._call.now
        _require_near_expiry(item, now)
        _require_usable(spec, item, now)
        scopes = item.scopes if item.scopes is not None else integration.default_scopes or spec.default_scopes
        scopes = tuple(dict.fromkeys(scopes))
        check = ScopeCheck(self._call, integration, spec, item.subject)
        return check.require(scopes, Action.ADMIN)

    async def _write(self, item: ImportItem, integration: Integration, scopes: tuple[str, ...]) -> Connection:
        """Write connection, sealed tokens and outbox messages; note the audit entry."""
        now, context, tx = self._call.now, self._call.context, self._tx
        ends = now + INSTALL_WITHIN
        connection = new_connection(
            self._call, integration, subject=item.subject, label=item.label, scopes=scopes, deadline=ends
        )
        consent = Consent.without_subject(
            connection, ConsentKind.IMPORT, scopes, context, at=now, expires_at=ends
        )
        tokens = ImportedTokens(
            access_token=item.access_token,
            refresh_token=item.refresh_token,
            id_token=item.id_token,
            token_type=item.token_type,
            expires_at=_access_token_expiry(item, now),
            metadata=item.metadata,
        )
        await tx.connections.add_new(connection)
        await tx.consents.add(consent, None, tokens)
        subject_hash = self._call.api.ring.subject_hash(connection.tenant, connection.subject)
        start = import_message(
            connection, consent.id, subject_hash, context, now, in_background=self._in_background
        )
        await tx.outbox.add(start)
        detail = {
            "integration": integration.name,
            "label": item.label,
            "scopes": list(scopes),
            "refreshable": item.refresh_token is not None,
            "consent": consent.id,
        }
        self._entries.append(self._call.entry(AuditAction.CONNECTION_IMPORTED, connection.id, **detail))
        return connection


class _CheckedItem(NamedTuple):
    """An item that may be written, and the scopes to request."""

    item: ImportItem
    integration: Integration
    scopes: tuple[str, ...]


def _require_usable(spec: ProviderSpec, item: ImportItem, now: datetime) -> None:
    if item.refresh_token is not None and not spec.refresh_supported:
        raise _invalid("refresh_token", f"{spec.name} has no refresh: leave it out")
    ends = _access_token_expiry(item, now)
    if item.refresh_token is None and ends is not None and ends <= now:
        why = "is unknown" if item.expires else "has passed"
        raise _invalid("expires", f"the expiry {why} and there is no refresh token: the grant is unusable")


def _access_token_expiry(item: ImportItem, now: datetime) -> datetime | None:
    """When the access token expires; None: never. An unknown expiry counts as now."""
    if item.never_expires:
        return None
    if item.expires_at is not None:
        return item.expires_at
    return now if item.expires_in is None else now + timedelta(seconds=item.expires_in)


def _require_near_expiry(item: ImportItem, now: datetime) -> None:
    """Raise Failure INVALID_REQUEST for an expiry over a century away: it is a placeholder."""
    at = item.expires_at
    if at is not None and at - now > MAX_LIFETIME:
        raise _invalid("expires_at", "is over a century away: if it means never, say never_expires: true")
    if at is not None and now - at > MAX_LIFETIME:
        raise _invalid("expires_at", 'is over a century ago: if it is unknown, say expires: "unknown"')


def _parse_item(raw: Any) -> ImportItem:
    """Parse an item. Raises Failure INVALID_REQUEST that names the field, never its value."""
    if getattr(raw, "has_duplicates", None):
        raise _invalid("item", "a member is given twice")
    try:
        return ImportItem.model_validate(raw)
    except ValidationError as error:
        first = field_errors(error)[0]
    # drop the branch names that pydantic adds for unions
    name = "item" if first["field"] == "body" else first["field"].partition(".")[0]
    raise _invalid(name, first["problem"])


def _invalid(field: str, why: str) -> Failure:
    return invalid_request(field, f"{field}: {why}")


class ImportVerification:
    """Verifies the outcomes of one request within `WAIT_S` of its creation."""

    def __init__(self, call: ApiCall) -> None:
        self._api = call.api
        self._tenant = call.tenant
        self._context = call.context
        self._gate = asyncio.Semaphore(MAX_CONCURRENT)
        self._ends = asyncio.get_running_loop().time() + WAIT_S

    async def verify(self, outcomes: list[ImportOutcome]) -> list[ImportOutcome]:
        """The outcomes in the same order, imported ones with their verification."""
        self._ends = max(self._ends, asyncio.get_running_loop().time() + MIN_WAIT_S)
        waiting = await self._unverified(outcomes)
        running: dict[str, asyncio.Task[ImportOutcome]] = {}
        try:
            while waiting and self._seconds_left() > 0:
                async with self._api.store.read() as tx:
                    installed = await tx.connections.past_consent(self._tenant, list(waiting))
                for connection, refreshable in installed:
                    outcome = waiting.pop(connection.id)
                    judging = self._verify_one(outcome, connection, refreshable)
                    running[connection.id] = asyncio.create_task(judging)
                if waiting:
                    await asyncio.sleep(_POLL_S)
            if running:
                await asyncio.wait(running.values(), timeout=max(self._seconds_left(), 0.0))
            return [self._final_outcome(outcome, waiting, running) for outcome in outcomes]
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _unverified(self, outcomes: list[ImportOutcome]) -> dict[ConnectionId, ImportOutcome]:
        """Outcomes to verify: imported now, or by an earlier request and not refreshed yet."""
        unverified = {
            ConnectionId(outcome.connection_id): outcome
            for outcome in outcomes
            if outcome.connection_id and outcome.status == "imported"
        }
        async with self._api.store.read() as tx:
            for outcome in outcomes:
                if (
                    outcome.status != "exists"
                    or not outcome.connection_id
                    or outcome.connection_id in unverified
                ):
                    continue
                connection = await tx.connections.get(self._tenant, ConnectionId(outcome.connection_id))
                if connection is None or connection.generation > _FIRST_GENERATION:
                    continue
                if await tx.consents.import_consent(self._tenant, connection.id) is not None:
                    unverified[connection.id] = outcome
        return unverified

    async def _verify_one(
        self, outcome: ImportOutcome, connection: Connection, refreshable: bool
    ) -> ImportOutcome:
        if connection.state is not LifecycleState.ACTIVE:
            return outcome.with_verification("failed", connection.reason or ErrorCode.CONSENT_REQUIRED)
        if connection.generation > _FIRST_GENERATION:
            return outcome.with_verification("verified")
        if not refreshable:
            return outcome.with_verification("unverified", detail="there is no refresh token to verify")
        async with self._gate:
            return await self._verify_by_refresh(outcome, connection)

    async def _verify_by_refresh(self, outcome: ImportOutcome, connection: Connection) -> ImportOutcome:
        ask = EnsureFresh(seen_generation=_FIRST_GENERATION, context=self._context)
        left = max(self._seconds_left(), 0.5)
        try:
            result = await self._api.link.ensure_fresh(self._tenant, connection.id, ask, timeout=left)
        except Failure as failure:
            return outcome.with_verification("unverified", failure.code, failure.detail)
        if result.generation > _FIRST_GENERATION:
            return outcome.with_verification("verified")
        failure = Failure(result.problem or ErrorCode.REFRESH_PENDING)
        how = "failed" if failure.kind in _REFUSED_KINDS else "unverified"
        return outcome.with_verification(how, failure.code, failure.detail)

    def _final_outcome(
        self,
        outcome: ImportOutcome,
        waiting: dict[ConnectionId, ImportOutcome],
        running: dict[str, asyncio.Task[ImportOutcome]],
    ) -> ImportOutcome:
        task = running.get(outcome.connection_id or "")
        if task is not None and task.done():
            judged = task.result()
            if judged.verification is None:
                return outcome
            detail = judged.detail or outcome.detail
            return outcome.with_verification(judged.verification, judged.code, detail)
        if task is None and outcome.connection_id not in waiting:
            return outcome
        why = "no worker has installed it yet" if task is None else "its first refresh has not ended yet"
        return outcome.with_verification("unverified", ErrorCode.REFRESH_PENDING, why)

    def _seconds_left(self) -> float:
        return self._ends - asyncio.get_running_loop().time()
