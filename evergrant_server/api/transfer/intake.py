"""Checks and writes the items of an import, each in its own transaction."""

from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from evergrant_server.api.connections.consents import signal_granted
from evergrant_server.api.connections.create import add_connection
from evergrant_server.api.connections.scopes import ScopeCheck
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.problems import field_errors, invalid_request
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
from evergrant_server.core.integrations import Integration
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec

_RAISED_KINDS = (FailureKind.PLATFORM_UNAVAILABLE,)  # not the item's fault: the app repeats the request


class ImportWriter:
    """Imports the items of one call."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._api = call.api

    async def import_item(self, index: int, raw: Any, *, dry_run: bool) -> ImportOutcome:
        """The outcome of the item. Raises Failure only of the kind PLATFORM_UNAVAILABLE."""
        try:
            item = _parse_item(raw)
            if dry_run:
                async with self._api.store.read() as tx:
                    return await self._import(tx, index, item, dry_run=True)
            return await run_transaction(self._api.store, lambda tx: self._import(tx, index, item))
        except Failure as failure:
            if failure.kind in _RAISED_KINDS:
                raise
            field = failure.context.get("field")
            return ImportOutcome(
                index=index, status="invalid", code=failure.code, field=field, detail=failure.detail
            )

    async def _import(
        self, tx: Transaction, index: int, item: ImportItem, *, dry_run: bool = False
    ) -> ImportOutcome:
        integration, scopes = await self._check_item(tx, item)
        found = await tx.connections.by_names(self._call.tenant, item.integration, item.subject, item.label)
        if found is not None and not found.state.is_final:
            pending = found.state is LifecycleState.PENDING_CONSENT
            state = "exists and is pending" if pending else f"is {found.state.value}"
            detail = f"the connection {state}"
            return ImportOutcome(index=index, status="exists", connection_id=found.id, detail=detail)
        if dry_run:
            return ImportOutcome(index=index, status="would_import")
        await tx.integrations.lock_against_deletion(integration)
        connection = await self._write(tx, integration, item, scopes)
        return ImportOutcome(index=index, status="imported", connection_id=connection.id)

    async def _check_item(self, tx: Transaction, item: ImportItem) -> tuple[Integration, tuple[str, ...]]:
        """The integration and the scopes. Raises the Failure that says why the item is invalid."""
        integration = await tx.integrations.by_name(self._call.tenant, item.integration)
        if integration is None:
            raise Failure(ErrorCode.NOT_FOUND, "There is no such integration.", field="integration")
        require_ready(integration)
        spec = await integration_spec(tx, self._api.registry, integration)
        now = self._call.now
        _require_near_expiry(item, now)
        _require_usable(spec, item, now)
        scopes = item.scopes if item.scopes is not None else integration.default_scopes or spec.default_scopes
        scopes = tuple(dict.fromkeys(scopes))
        check = ScopeCheck(self._call, integration, spec, item.subject)
        return integration, check.require(scopes, Action.ADMIN)

    async def _write(
        self, tx: Transaction, integration: Integration, item: ImportItem, scopes: tuple[str, ...]
    ) -> Connection:
        """Write connection, sealed tokens, outbox messages and audit record."""
        now, context = self._call.now, self._call.context
        ends = now + INSTALL_WITHIN
        connection = await add_connection(
            tx,
            self._call,
            integration,
            subject=item.subject,
            label=item.label,
            scopes=scopes,
            deadline=ends,
        )
        consent = Consent.without_subject(
            connection, ConsentKind.IMPORT, scopes, context, at=now, expires_at=ends
        )
        tokens = ImportedTokens(
            access_token=item.access_token,
            refresh_token=item.refresh_token,
            token_type=item.token_type,
            expires_at=_access_token_expiry(item, now),
            metadata=item.metadata,
        )
        await tx.consents.add(consent, None, tokens)
        await signal_granted(tx, connection, consent, context, now)
        await self._call.record(
            tx,
            AuditAction.CONNECTION_IMPORTED,
            connection.id,
            integration=integration.name,
            label=item.label,
            scopes=list(scopes),
            refreshable=item.refresh_token is not None,
            consent=consent.id,
        )
        return connection


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
