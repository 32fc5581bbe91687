"""Checks and writes the items of an import, each in its own transaction."""

from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from evergrant_server.api.connections.scopes import require_permitted
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.outbox_messages import connection_signal_message, connection_start_message
from evergrant_server.api.http.problems import field_errors
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.integrations.definitions import integration_spec, require_ready
from evergrant_server.api.transfer.models import ImportItem, ImportOutcome
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind
from evergrant_server.core.connections.grant import INSTALL_WITHIN, ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext, SignalName
from evergrant_server.core.messages.connection import ConsentGranted
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

_RAISED_KINDS = (FailureKind.PLATFORM_UNAVAILABLE,)  # not the item's fault: the app repeats the request


class ImportWriter:
    """Imports items for one caller."""

    def __init__(self, api: ApiContext, caller: Caller, context: RequestContext) -> None:
        self._api = api
        self._caller = caller
        self._context = context

    async def import_item(self, index: int, raw: Any, *, dry_run: bool) -> ImportOutcome:
        """The outcome of the item. Raises Failure only of the kind PLATFORM_UNAVAILABLE."""
        try:
            item = _parse_item(raw)
            if dry_run:
                async with self._api.store.read() as tx:
                    return await self._dry_run(tx, index, item)
            return await run_transaction(self._api.store, lambda tx: self._import(tx, index, item))
        except Failure as failure:
            if failure.kind in _RAISED_KINDS:
                raise
            field = failure.context.get("field")
            return ImportOutcome(
                index=index, status="invalid", code=failure.code, field=field, detail=failure.detail
            )

    async def _dry_run(self, tx: Transaction, index: int, item: ImportItem) -> ImportOutcome:
        await self._check_item(tx, item)
        found = await self._existing(tx, item)
        return _already_exists(index, found) if found else ImportOutcome(index=index, status="would_import")

    async def _import(self, tx: Transaction, index: int, item: ImportItem) -> ImportOutcome:
        integration, scopes = await self._check_item(tx, item)
        found = await self._existing(tx, item)
        if found is not None:
            return _already_exists(index, found)
        await tx.integrations.lock_against_deletion(integration)
        connection = await self._write(tx, integration, item, scopes)
        return ImportOutcome(index=index, status="imported", connection_id=connection.id)

    async def _existing(self, tx: Transaction, item: ImportItem) -> Connection | None:
        found = await tx.connections.by_names(self._caller.tenant, item.integration, item.subject, item.label)
        return None if found is None or found.state.is_final else found

    async def _check_item(self, tx: Transaction, item: ImportItem) -> tuple[Integration, tuple[str, ...]]:
        """The integration and the scopes. Raises the Failure that says why the item is invalid."""
        integration = await tx.integrations.by_name(self._caller.tenant, item.integration)
        if integration is None:
            raise Failure(ErrorCode.NOT_FOUND, "There is no such integration.", field="integration")
        require_ready(integration)
        spec = await integration_spec(tx, self._api.registry, integration)
        _require_near_expiry(item, self._api.clock.now())
        self._require_usable(spec, item)
        return integration, self._permitted_scopes(integration, spec, item)

    def _require_usable(self, spec: ProviderSpec, item: ImportItem) -> None:
        if item.refresh_token is not None and not spec.refresh_supported:
            raise _invalid("refresh_token", f"{spec.name} has no refresh: leave it out")
        if item.refresh_token is not None:
            return
        now = self._api.clock.now()
        ends = access_token_expiry(item, now)
        if ends is not None and ends <= now:
            why = "is unknown" if item.expires else "has passed"
            raise _invalid(
                "expires", f"the expiry {why} and there is no refresh token: the grant is unusable"
            )

    def _permitted_scopes(
        self, integration: Integration, spec: ProviderSpec, item: ImportItem
    ) -> tuple[str, ...]:
        scopes = (
            item.scopes if item.scopes is not None else (integration.default_scopes or spec.default_scopes)
        )
        scopes = tuple(dict.fromkeys(scopes))
        require_permitted(self._caller, integration, spec, item.subject, scopes, Action.ADMIN)
        return scopes

    async def _write(
        self, tx: Transaction, integration: Integration, item: ImportItem, scopes: tuple[str, ...]
    ) -> Connection:
        """Write connection, sealed tokens, outbox messages and audit record."""
        now = self._api.clock.now()
        connection = Connection(
            tenant=integration.tenant,
            id=ConnectionId(new_id("con")),
            integration_id=integration.id,
            integration=integration.name,
            provider=integration.provider,
            subject=item.subject,
            label=item.label,
            requested_scopes=scopes,
            created_at=now,
            changed_at=now,
            consent_deadline=now + INSTALL_WITHIN,
        )
        await tx.connections.add_new(connection)
        consent = Consent.without_subject(
            connection,
            ConsentKind.IMPORT,
            scopes,
            self._context,
            at=now,
            expires_at=connection.consent_deadline,
        )
        await tx.consents.add_import(consent, imported_tokens(item, now))
        await tx.outbox.add(connection_start_message(connection, self._api.ring, self._context, now))
        granted = ConsentGranted(consent_id=consent.id, context=self._context)
        await tx.outbox.add(connection_signal_message(connection, SignalName.CONSENT_GRANTED, granted, now))
        await record(
            tx,
            connection.tenant,
            AuditAction.CONNECTION_IMPORTED,
            connection.id,
            self._context,
            now,
            integration=integration.name,
            label=item.label,
            scopes=list(scopes),
            refreshable=item.refresh_token is not None,
            consent=consent.id,
        )
        return connection


def access_token_expiry(item: ImportItem, now: datetime) -> datetime | None:
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


def imported_tokens(item: ImportItem, now: datetime) -> ImportedTokens:
    return ImportedTokens(
        access_token=item.access_token,
        refresh_token=item.refresh_token,
        token_type=item.token_type,
        expires_at=access_token_expiry(item, now),
        metadata=item.metadata,
    )


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
    return Failure(ErrorCode.INVALID_REQUEST, f"{field}: {why}", field=field)


def _already_exists(index: int, found: Connection) -> ImportOutcome:
    detail = (
        "the connection exists and is pending"
        if found.state is LifecycleState.PENDING_CONSENT
        else f"the connection is {found.state.value}"
    )
    return ImportOutcome(index=index, status="exists", connection_id=found.id, detail=detail)
