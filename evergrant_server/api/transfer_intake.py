"""One item of an import: judged, and written whole or not at all."""

from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from evergrant_server import audit
from evergrant_server.api.authentication import Caller
from evergrant_server.api.definitions import spec_of
from evergrant_server.api.establishing import refuse_scopes, require_ready
from evergrant_server.api.outgoing import signal, start
from evergrant_server.api.parts import Parts
from evergrant_server.api.problems import field_errors
from evergrant_server.api.transactions import committed
from evergrant_server.api.transfer_shapes import ImportItem, ItemOutcome
from evergrant_server.core.access import Action, Integration
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import CENTURY
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import Consent, ConsentKind
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.imports import INSTALL_WITHIN, ImportedTokens
from evergrant_server.core.messages import SIGNAL_CONSENT_GRANTED, Asked, ConsentGranted
from evergrant_server.policy import above, decide
from evergrant_server.store import Tx
from providers.spec import ProviderSpec

_RAISED = (Kind.PLATFORM_UNAVAILABLE,)  # no fault of the item: the whole request is to be sent again


class Intake:
    """Takes items for one caller. Each has a transaction of its own."""

    def __init__(self, parts: Parts, caller: Caller, asked: Asked) -> None:
        self._parts = parts
        self._caller = caller
        self._asked = asked

    async def take(self, index: int, raw: Any, *, dry_run: bool) -> ItemOutcome:
        """What becomes of the item. Raises Failure only for the platform's own trouble."""
        try:
            item = _read(raw)
            if dry_run:
                async with self._parts.store.read() as tx:
                    return await self._would(tx, index, item)
            return await committed(self._parts.store, lambda tx: self._taken(tx, index, item))
        except Failure as failure:
            if failure.kind in _RAISED:
                raise
            field = failure.context.get("field")
            return ItemOutcome(
                index=index, status="invalid", code=failure.code, field=field, detail=failure.detail
            )

    async def _would(self, tx: Tx, index: int, item: ImportItem) -> ItemOutcome:
        await self._judged(tx, item)
        found = await self._there(tx, item)
        return _exists(index, found) if found else ItemOutcome(index=index, status="would_import")

    async def _taken(self, tx: Tx, index: int, item: ImportItem) -> ItemOutcome:
        integration, scopes = await self._judged(tx, item)
        found = await self._there(tx, item)
        if found is not None:
            return _exists(index, found)
        await tx.integrations.hold(integration)
        connection = await self._write(tx, integration, item, scopes)
        return ItemOutcome(index=index, status="imported", connection_id=connection.id)

    async def _there(self, tx: Tx, item: ImportItem) -> Connection | None:
        found = await tx.connections.by_names(self._caller.tenant, item.integration, item.subject, item.label)
        return None if found is None or found.state.final else found

    async def _judged(self, tx: Tx, item: ImportItem) -> tuple[Integration, tuple[str, ...]]:
        """The integration and the scopes. Raises the Failure that says why it can't come in."""
        integration = await tx.integrations.by_name(self._caller.tenant, item.integration)
        if integration is None:
            raise Failure(Code.NOT_FOUND, "There is no such integration.", field="integration")
        require_ready(integration)
        spec = await spec_of(tx, self._parts.registry, integration)
        _require_near(item, self._parts.clock.now())
        self._usable(spec, item)
        return integration, self._scopes(integration, spec, item)

    def _usable(self, spec: ProviderSpec, item: ImportItem) -> None:
        if item.refresh_token is not None and not spec.refresh_supported:
            raise _invalid("refresh_token", f"{spec.name} has no refresh: leave it out")
        if item.refresh_token is not None:
            return
        now = self._parts.clock.now()
        ends = expiry_of(item, now)
        if ends is not None and ends <= now:
            why = "is unknown" if item.expires else "has passed"
            raise _invalid("expires", f"the expiry {why} and there is no refresh token: nobody could use it")

    def _scopes(self, integration: Integration, spec: ProviderSpec, item: ImportItem) -> tuple[str, ...]:
        scopes = (
            item.scopes if item.scopes is not None else (integration.default_scopes or spec.default_scopes)
        )
        scopes = tuple(dict.fromkeys(scopes))
        counted = tuple(scope for scope in scopes if scope != spec.offline_scope)
        verdict = decide(
            self._caller.permits,
            integration=integration.name,
            subject=item.subject,
            action=Action.ADMIN,
            scopes=counted,
        )
        if not verdict.allowed or above(counted, integration.scope_ceiling):
            refuse_scopes(above(counted, verdict.ceiling, integration.scope_ceiling))
        return scopes

    async def _write(
        self, tx: Tx, integration: Integration, item: ImportItem, scopes: tuple[str, ...]
    ) -> Connection:
        """Connection, sealed tokens, outbox and audit: one transaction, so nothing comes half."""
        now = self._parts.clock.now()
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
        await tx.connections.begin(connection)
        consent = Consent.unasked(
            connection,
            ConsentKind.IMPORT,
            scopes,
            self._asked,
            at=now,
            expires_at=connection.consent_deadline,
        )
        await tx.consents.add_import(consent, tokens_of(item, now))
        await tx.outbox.add(start(connection, self._parts.ring, self._asked, now))
        granted = ConsentGranted(attempt_id=consent.id, asked=self._asked)
        await tx.outbox.add(signal(connection, SIGNAL_CONSENT_GRANTED, granted, now))
        entry = AuditEntry(
            tenant=connection.tenant,
            at=now,
            action=AuditAction.CONNECTION_IMPORTED,
            object=connection.id,
            asked=self._asked,
            detail={
                "integration": integration.name,
                "label": item.label,
                "scopes": list(scopes),
                "refreshable": item.refresh_token is not None,
                "consent": consent.id,
            },
        )
        await audit.append(tx, entry)
        return connection


def expiry_of(item: ImportItem, now: datetime) -> datetime | None:
    """When the access token ends; None: never. An unknown expiry is now."""
    if item.never_expires:
        return None
    if item.expires_at is not None:
        return item.expires_at
    return now if item.expires_in is None else now + timedelta(seconds=item.expires_in)


def _require_near(item: ImportItem, now: datetime) -> None:
    """A far moment leaves no room to reckon with, and stands for never, or for a moment nobody knows."""
    at = item.expires_at
    if at is not None and at - now > CENTURY:
        raise _invalid("expires_at", "is over a century away: if it means never, say never_expires: true")
    if at is not None and now - at > CENTURY:
        raise _invalid("expires_at", 'is over a century ago: if nobody knows it, say expires: "unknown"')


def tokens_of(item: ImportItem, now: datetime) -> ImportedTokens:
    return ImportedTokens(
        access_token=item.access_token,
        refresh_token=item.refresh_token,
        token_type=item.token_type,
        expires_at=expiry_of(item, now),
        metadata=item.metadata,
    )


def _read(raw: Any) -> ImportItem:
    """Raises Failure INVALID_REQUEST that names the field, never the value."""
    if getattr(raw, "doubled", None):
        raise _invalid("item", "a member is given twice")
    try:
        return ImportItem.model_validate(raw)
    except ValidationError as error:
        first = field_errors(error)[0]
    # a union's branches are places inside pydantic, not fields of the sender's
    name = "item" if first["field"] == "body" else first["field"].partition(".")[0]
    raise _invalid(name, first["problem"])


def _invalid(field: str, why: str) -> Failure:
    return Failure(Code.INVALID_REQUEST, f"{field}: {why}", field=field)


def _exists(index: int, found: Connection) -> ItemOutcome:
    detail = "it is there and waits" if found.state is State.PENDING_CONSENT else f"it is {found.state.value}"
    return ItemOutcome(index=index, status="exists", connection_id=found.id, detail=detail)
