"""Installs imported grants, and exports grants sealed to an admin's key."""

import json
import logging
from datetime import datetime

from temporalio import activity

from activities.grants.account_check import is_meant_account, refuse_account, with_account
from activities.grants.replaced_grants import install_new_grant
from activities.support.provider_context import ProviderContext
from activities.support.temporal import heartbeating
from activities.support.transactions import (
    append_audit,
    commit_with_retries,
    end_consent,
    load_connection,
    record_grant,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant, TokenSet, known_scopes
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.export import Export, ExportStatus
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ConsentCall, GrantResult
from evergrant_server.core.messages.export import DeleteExport, ExportCall, ExportProgress, SealExportPage
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.crypto import Recipient
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.metrics import report_unreadable

log = logging.getLogger("evergrant.activities")

PAGE_SIZE = 100  # connections in one transaction


async def install_import(
    store: Store, clock: Clock, request: ConsentCall, context: ProviderContext, consent: Consent
) -> GrantResult:
    """Move an import's tokens from the intake key to the connection's lease and refresh keys.

    No request is sent to the provider, so one transaction is enough, repeated until it commits.
    """

    async def install(tx: Transaction) -> GrantResult:
        current = await load_connection(tx, request)
        waiting = await tx.consents.get(consent.tenant, consent.id)
        if waiting is None or waiting.status is not ConsentStatus.CODE_RECEIVED:
            grant = await tx.grants.get(request.tenant, request.connection_id)
            return context.grant_result(current, grant) if grant else GrantResult(state=current.state)
        if current.state.is_final:
            await end_consent(tx, waiting, ConsentStatus.FAILED, ErrorCode.CONSENT_EXPIRED)
            return GrantResult(failure=ErrorCode.CONSENT_EXPIRED)
        return await _install(tx, request, context, current, waiting, clock.now())

    return await commit_with_retries(store, install)


async def _install(
    tx: Transaction,
    request: ConsentCall,
    context: ProviderContext,
    current: Connection,
    consent: Consent,
    now: datetime,
) -> GrantResult:
    imported = await tx.consents.imported_tokens(consent)
    obtained_at = imported.obtained_at(consent.created_at)
    tokens = _with_named_account(context, consent, imported.token_set(obtained_at))
    # a further slot's tokens: its connection may have a pin of its own
    if tokens.account is not None and not await is_meant_account(tx, context, current, tokens):
        return await refuse_account(tx, request, context, current, consent, tokens, now)
    if context.access_token_exchange is not None:  # it is the subject token of later exchanges
        tokens = tokens.__replace__(refresh_token=None, refresh_expires_in=tokens.expires_in)
    after = current.granted(now, request.generation)
    after = context.after_consent(after, consent) if consent.came_from_browser else after
    grant = Grant.from_tokens(
        tokens,
        generation=after.generation,
        requested=consent.scopes,
        at=obtained_at,
        renewable=context.renewable,
    )
    detail = _import_details(current, consent)
    is_new = "imported" in detail
    saved = await install_new_grant(tx, request, context, current, after, tokens, grant, imported=is_new)
    under_way = await tx.attempts.open_of_any_kind(request.tenant, request.connection_id, MAIN_SLOT)
    if under_way is not None:  # a refresh of the grant that this one replaces
        await tx.attempts.close(under_way, AttemptOutcome.SUPERSEDED, now)
    await record_grant(tx, request, current, consent, grant, now, None, **detail)
    return context.grant_result(saved, grant)


def _with_named_account(context: ProviderContext, consent: Consent, tokens: TokenSet) -> TokenSet:
    """With the account that an imported id token names, if it names one."""
    if consent.came_from_browser:
        return tokens
    named = with_account(context, tokens)
    return tokens if named.account is None else named


def _import_details(current: Connection, consent: Consent) -> dict[str, object]:
    """The origin of the tokens, for the audit record."""
    if current.consented_with:
        return {"consented_with": current.consented_with}
    return {} if consent.came_from_browser else {"imported": True}


async def is_import_pending(store: Store, request: ConsentCall) -> bool:
    """True for an import whose tokens can be opened, now or once the key service answers."""
    async with store.read() as tx:
        consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.kind is not ConsentKind.IMPORT:
            return False
        try:
            await tx.consents.imported_tokens(consent)
        except Failure as failure:
            return failure.code is not ErrorCode.SEAL_BROKEN
        return True


class ExportActivities:
    """Seals and deletes exports. Only workers do this, because only they can open refresh tokens."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.SEAL_EXPORT_PAGE.name)
    async def export_page(self, request: SealExportPage) -> ExportProgress:
        """Seal one page of connections and append an audit record for each, in one transaction."""

        async def write(tx: Transaction) -> ExportProgress:
            export = await _load_export(tx, request)
            if export.pages > request.page or export.status is not ExportStatus.RUNNING:
                return _progress(export)  # an earlier attempt of this activity has committed
            return await self._seal_page(tx, request, export)

        async with heartbeating():
            return await commit_with_retries(self._store, write)

    async def _seal_page(self, tx: Transaction, request: SealExportPage, export: Export) -> ExportProgress:
        recipient = Recipient.parse(dict(export.recipient))
        page = await tx.connections.page(
            export.tenant, **export.filters.model_dump(), after=export.after, limit=PAGE_SIZE
        )
        lines: list[str] = []
        for connection in page:
            if (line := await _export_line(tx, connection)) is None:
                continue
            lines.append(recipient.seal(line))
            action, now = AuditAction.CONNECTION_EXPORTED, self._clock.now()
            detail = {"export": export.id, "key": recipient.thumbprint}
            await append_audit(tx, request, action, now, connection.id, **detail)
        report_unreadable(log, ((row.id, row.why) for row in page.unreadable))
        skipped = len(page) + len(page.unreadable) - len(lines)
        after = export.page_sealed(len(lines), skipped, page.last if page.has_more else None)
        return _progress(await tx.exports.write_page(export, after, lines))

    @activity.defn(name=jobs.DELETE_EXPORT.name)
    async def drop_export(self, request: DeleteExport) -> None:
        """Delete the lines of an export that the admin didn't fetch in time, if they still exist."""

        async def delete(tx: Transaction) -> None:
            export = await _load_export(tx, request)
            if export.status is ExportStatus.GONE:
                return
            await tx.exports.delete_lines(export)
            action, now = AuditAction.EXPORT_DELETED, self._clock.now()
            await append_audit(tx, request, action, now, reason="expired")

        await commit_with_retries(self._store, delete)


async def _load_export(tx: Transaction, request: ExportCall) -> Export:
    export = await tx.exports.get(request.tenant, request.export_id)
    if export is None:
        raise Failure(ErrorCode.NOT_FOUND, f"there is no export {request.export_id}")
    return export


def _progress(export: Export) -> ExportProgress:
    done = export.status is not ExportStatus.RUNNING
    return ExportProgress(exported=export.exported, skipped=export.skipped, done=done)


async def _export_line(tx: Transaction, connection: Connection) -> Secret | None:
    """The connection as a line for `import`; None without a live grant, or when its row or seal is broken."""
    grant = await tx.grants.get(connection.tenant, connection.id)
    if connection.state is not LifecycleState.ACTIVE or connection.held_by is not None:
        return None
    if grant is None or grant.token_type == DPOP_TOKEN_TYPE:
        return None  # a DPoP-bound token is useless without its key, which is not exported
    try:
        await tx.connections.get_authentic(connection.tenant, connection.id)
        access = await tx.grants.access_token(connection)
        refresh = await tx.grants.refresh_token(connection)
    except Failure as failure:
        if failure.code not in (ErrorCode.SEAL_BROKEN, ErrorCode.AUTHORITY_BROKEN):
            raise
        return None
    item = {
        "integration": connection.integration,
        "subject": connection.subject,
        "label": connection.label,
        "access_token": access.reveal(),
        "refresh_token": None if refresh is None else refresh.reveal(),
        "token_type": grant.token_type,
        "scopes": list(known_scopes(grant.scopes)),
        "metadata": grant.metadata,
        **_expiry(grant.expires_at),
    }
    return Secret(json.dumps({name: value for name, value in item.items() if value is not None}))


def _expiry(at: datetime | None) -> dict[str, object]:
    return {"never_expires": True} if at is None else {"expires_at": at.isoformat()}
