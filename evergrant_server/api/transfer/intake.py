"""Imports existing grants: checks the items, and writes those that are new."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError

from evergrant_server import audit
from evergrant_server.access.context import integration_spec
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.connections.consents import signal_granted
from evergrant_server.api.connections.create import new_connection
from evergrant_server.api.connections.scopes import ScopeCheck
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.transfer.models import ImportItem, ImportOutcome
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import INSTALL_WITHIN, ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.snapshot import import_message
from evergrant_server.core.outbox import OutboxMessage
from evergrant_server.core.people.leavers import Match
from evergrant_server.problems import field_errors, invalid_request
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

_ITEMS_AT_ONCE = 25  # of one transaction: more would make other writers wait longer and save little
_RAISED_KINDS = (FailureKind.PLATFORM_UNAVAILABLE,)  # not the item's fault: the app repeats the request


class JsonObject(dict[str, Any]):
    """A JSON object that records whether a member name occurred twice (RFC 8259 section 4 permits it)."""

    has_duplicates = False

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> "JsonObject":
        members = cls(pairs)
        members.has_duplicates = len(members) < len(pairs) or any(
            getattr(value, "has_duplicates", False) for _, value in pairs
        )
        return members


class ImportWriter:
    """Imports the items of one call, some of them in each transaction."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._store = call.api.store
        self.renewed: dict[ConnectionId, int] = {}  # dead imports that get new tokens, and their generation

    async def import_items(
        self, items: Sequence[Any], *, dry_run: bool, in_background: bool
    ) -> list[ImportOutcome]:
        """The outcomes, in order. `in_background`: their workflows may start after all others.

        Raises Failure only of the kind PLATFORM_UNAVAILABLE.
        """
        outcomes: list[ImportOutcome] = []
        for first in range(0, len(items), _ITEMS_AT_ONCE):
            parsed = [_parsed(raw, first + place) for place, raw in enumerate(items[first:][:_ITEMS_AT_ONCE])]

            async def take(
                tx: Transaction, parsed: list[_ParsedItem | ImportOutcome] = parsed
            ) -> list[ImportOutcome]:
                writing = _ImportTransaction(self._call, tx, dry_run=dry_run, in_background=in_background)
                outcomes = await writing.take(parsed)
                self.renewed |= writing.renewed
                return outcomes

            if dry_run:
                async with self._store.read() as tx:
                    outcomes += await take(tx)
            else:
                outcomes += await run_transaction(self._store, self._call.while_standing(take))
        return outcomes


class _ImportTransaction:
    """Items that are checked, and written, in one transaction. Each integration is read once."""

    def __init__(self, call: ApiCall, tx: Transaction, *, dry_run: bool, in_background: bool) -> None:
        self._call = call
        self._tx = tx
        self._dry_run = dry_run
        self._in_background = in_background
        self._integrations: dict[str, tuple[Integration, ProviderSpec]] = {}
        self._known: set[tuple[str, str, str]] = set()  # names that connections have or had
        self._leaving: list[Match] = []
        self._new: dict[tuple[str, str, str], _NewConnection] = {}
        self._again: list[_NewConnection] = []  # into connections that were imported dead
        self.renewed: dict[ConnectionId, int] = {}

    async def take(self, parsed: Sequence["_ParsedItem | ImportOutcome"]) -> list[ImportOutcome]:
        """Raises Failure STORE_CONFLICT when another request has just written one of them."""
        items = [entry.item for entry in parsed if isinstance(entry, _ParsedItem)]
        integrations = {item.integration for item in items}
        subjects = {item.subject for item in items}
        self._known = await self._tx.connections.known_names(self._call.tenant, integrations, subjects)
        self._leaving = await self._tx.leavers.leaving(self._call.tenant)
        outcomes = [
            entry if isinstance(entry, ImportOutcome) else await self._outcome(entry) for entry in parsed
        ]
        if self._new:
            await self._write(list(self._new.values()))
        for row in self._again:
            await self._tx.consents.add(row.consent, None, row.tokens)
            await signal_granted(self._tx, row.connection, row.consent, self._call.context, self._call.now)
            await audit.append_all(self._tx, [self._entry(row, again=True)])
        return outcomes

    async def _outcome(self, parsed: "_ParsedItem") -> ImportOutcome:
        """What becomes of the item; one that is imported is noted, to be written with the others."""
        index, item = parsed
        names = (item.integration, item.subject, item.label)
        try:
            integration, spec = await self._integration(item.integration)
            scopes = self._require_valid(item, integration, spec)
            connection = await self._existing(names)
            if connection is None and any(match.covers(*names[:2]) for match in self._leaving):
                raise Failure(ErrorCode.CONNECTION_HELD)
        except Failure as failure:
            if failure.kind in _RAISED_KINDS:
                raise
            return _invalid_outcome(index, failure)
        if connection is not None and await self._is_dead_import(connection):
            return self._imported_again(index, connection, item, scopes)
        if connection is not None:
            pending = connection.state is LifecycleState.PENDING_CONSENT
            detail = (
                f"the connection {'exists and is pending' if pending else f'is {connection.state.value}'}"
            )
            return ImportOutcome(index=index, status="exists", connection_id=connection.id, detail=detail)
        if self._dry_run:
            return ImportOutcome(index=index, status="would_import")
        new = self._new[names] = self._new_connection(item, integration, scopes)
        return ImportOutcome(index=index, status="imported", connection_id=new.connection.id)

    async def _is_dead_import(self, connection: Connection) -> bool:
        """Whether the connection has never had another grant than one of an import, which has died."""
        if connection.state is not LifecycleState.NEEDS_REAUTH or connection.id in self.renewed:
            return False
        if not self._dry_run:  # of requests at the same time, the second sees what the first one wrote
            locked = await self._tx.connections.get_for_update(connection.tenant, connection.id)
            if locked is None or locked.state is not LifecycleState.NEEDS_REAUTH:
                return False
        newest = await self._tx.consents.newest(connection.tenant, connection.id)
        if newest is None or newest.status is ConsentStatus.CODE_RECEIVED:  # its tokens wait for a worker
            return False
        return newest.kind is ConsentKind.IMPORT and not newest.came_from_browser

    def _imported_again(
        self, index: int, connection: Connection, item: ImportItem, scopes: tuple[str, ...]
    ) -> ImportOutcome:
        """A dead import gets the tokens of this one, which a worker installs as a consent's."""
        if self._dry_run:
            return ImportOutcome(index=index, status="would_import", connection_id=connection.id)
        consent = self._consent(connection, scopes)
        self._again.append(_NewConnection(connection, consent, self._tokens(item)))
        self.renewed[connection.id] = connection.generation + 1
        return ImportOutcome(index=index, status="imported", connection_id=connection.id)

    async def _existing(self, names: tuple[str, str, str]) -> Connection | None:
        """The live connection of these names, or the one that this request makes of an earlier item."""
        if names in self._new:
            return self._new[names].connection
        if names not in self._known:
            return None
        connection = await self._tx.connections.by_names(self._call.tenant, *names)
        return None if connection is None or connection.state.is_final else connection

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
            await self._tx.integrations.lock_for_use(integration)
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

    def _new_connection(
        self, item: ImportItem, integration: Integration, scopes: tuple[str, ...]
    ) -> "_NewConnection":
        ends = self._call.now + INSTALL_WITHIN
        connection = new_connection(
            self._call, integration, subject=item.subject, label=item.label, scopes=scopes, deadline=ends
        )
        return _NewConnection(connection, self._consent(connection, scopes), self._tokens(item))

    def _consent(self, connection: Connection, scopes: tuple[str, ...]) -> Consent:
        at = self._call.now
        context, ends = self._call.context, at + INSTALL_WITHIN
        return Consent.without_subject(
            connection, ConsentKind.IMPORT, scopes, context, at=at, expires_at=ends
        )

    def _tokens(self, item: ImportItem) -> ImportedTokens:
        return ImportedTokens(
            access_token=item.access_token,
            refresh_token=item.refresh_token,
            id_token=item.id_token,
            token_type=item.token_type,
            expires_at=_access_token_expiry(item, self._call.now),
            metadata=item.metadata,
        )

    async def _write(self, new: Sequence["_NewConnection"]) -> None:
        """Write connections, sealed tokens, messages that start their workflows, and audit records."""
        tx = self._tx
        await tx.connections.add_all([row.connection for row in new])
        await tx.consents.add_imports([(row.consent, row.tokens) for row in new])
        await tx.outbox.add_first([self._start(row) for row in new])
        await audit.append_all(tx, [self._entry(row) for row in new])

    def _start(self, new: "_NewConnection") -> OutboxMessage:
        connection = new.connection
        return import_message(
            connection,
            new.consent.id,
            self._call.api.ring.subject_hash(connection.tenant, connection.subject),
            self._call.context,
            self._call.now,
            in_background=self._in_background,
            refreshes=not self._in_background and new.tokens.refresh_token is not None,
        )

    def _entry(self, new: "_NewConnection", **more: object) -> AuditEntry:
        return self._call.entry(
            AuditAction.CONNECTION_IMPORTED,
            new.connection.id,
            integration=new.connection.integration,
            label=new.connection.label,
            scopes=list(new.consent.scopes),
            refreshable=new.tokens.refresh_token is not None,
            consent=new.consent.id,
            **more,
        )


class _ParsedItem(NamedTuple):
    index: int
    item: ImportItem


class _NewConnection(NamedTuple):
    """What is written of an item."""

    connection: Connection
    consent: Consent
    tokens: ImportedTokens


def _parsed(raw: Any, index: int) -> _ParsedItem | ImportOutcome:
    """The item, or the outcome that says why it can't be read."""
    try:
        return _ParsedItem(index, _parse_item(raw))
    except Failure as failure:
        return _invalid_outcome(index, failure)


def _invalid_outcome(index: int, failure: Failure) -> ImportOutcome:
    field = failure.context.get("field")
    return ImportOutcome(index=index, status="invalid", code=failure.code, field=field, detail=failure.detail)


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
