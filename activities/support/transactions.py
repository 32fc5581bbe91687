"""Transactions that must commit, and what several activities record: attempts, health, consents, grants.

`failing` is announced once to its repairer, and so is the recovery.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.account import Account, ConsentAccount
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind, RetryAdvice
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.activities import ConnectionCall, ConsentCall
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.export import ExportCall
from evergrant_server.core.provider_words import ReplyFailure, words_in
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

T = TypeVar("T")

_RECORDED_FOR = timedelta(days=1)  # one record a day for what stays so
_FIRST_WAIT_S, _MAX_WAIT_S = 0.05, 5.0
_MAX_CONFLICTS = 10  # in a row: about 16 seconds. A race ends by the second or third
_LOG_EVERY = 10  # tries while the store is unavailable: under a minute


async def commit_with_retries(
    store: Store, work: Callable[[Transaction], Awaitable[T]], keys: UnwrappedKeys | None = None
) -> T:
    """Run `work` in a write transaction until it commits.

    After a conflict `work` reads the rows again; raises Failure INTERNAL once the store has refused it
    ten times in a row, for then no other change is the cause. A reply in hand stays in the journal. An
    unavailable store is waited for: that reply can't be requested twice. `keys` were unwrapped before it
    came, so that an unavailable key service is not waited for.
    """
    wait, conflicts, tries = _FIRST_WAIT_S, 0, 0
    while True:
        try:
            async with store.write(keys) as tx:
                return await work(tx)
        except Failure as failure:
            if failure.code not in (ErrorCode.STORE_CONFLICT, ErrorCode.STORE_UNAVAILABLE):
                raise
            tries += 1
            conflicts = conflicts + 1 if failure.code is ErrorCode.STORE_CONFLICT else 0
            if conflicts >= _MAX_CONFLICTS:
                detail = f"the store refuses the change each time: {failure.detail}"
                raise Failure(ErrorCode.INTERNAL, detail) from None
            if tries % _LOG_EVERY == 0:
                log_event(log, logging.WARNING, LogEvent.COMMIT_WAITS, failure.detail, code=failure.code)
        await asyncio.sleep(wait)
        wait = min(wait * 2, _MAX_WAIT_S)


async def append_audit(
    tx: Transaction,
    call: ConnectionCall | ExportCall,
    action: AuditAction,
    at: datetime,
    object_id: str = "",
    /,
    **detail: object,
) -> None:
    """Append an audit record, with the workflow run and event that decided it.

    `object_id` is what it is about, if that isn't the connection of `call`.
    """
    entry = AuditEntry(
        tenant=call.tenant,
        at=at,
        action=action,
        object=object_id or (call.connection_id if isinstance(call, ConnectionCall) else call.export_id),
        context=call.context,
        detail=detail,
        provenance=call.provenance,
    )
    await audit.append(tx, entry)


async def close_attempt(tx: Transaction, attempt: Attempt, outcome: AttemptOutcome, at: datetime) -> bool:
    """Write how an open or unread attempt ended; False when it has ended, as after a takeover."""
    return await close_read(tx, await tx.attempts.get(attempt.tenant, attempt.id), outcome, at)


async def close_read(tx: Transaction, now: Attempt | None, outcome: AttemptOutcome, at: datetime) -> bool:
    """As `close_attempt`, for a row that this transaction has read."""
    if now is None or now.outcome not in (None, AttemptOutcome.UNREAD):
        return False
    await tx.attempts.close(now, outcome, at)
    return True


async def is_taken_over(tx: Transaction, attempt: Attempt) -> bool:
    """True when another attempt has sent its credential since."""
    now = await tx.attempts.get(attempt.tenant, attempt.id)
    return now is not None and now.outcome is AttemptOutcome.SUPERSEDED


async def load_connection(tx: Transaction, call: ConnectionCall, *, locked: bool = False) -> Connection:
    """The stored row, locked until `tx` ends if `locked`. Raises Failure NOT_FOUND."""
    read = tx.connections.get_for_update if locked else tx.connections.get
    connection = await read(call.tenant, call.connection_id)
    if connection is None:
        raise Failure(ErrorCode.NOT_FOUND, f"the row of {call.connection_id} is gone")
    return connection


# A wait for a reply ends within a minute, or once the access token has expired. Where that is far away,
# the host of the attempt has to come back first, and an operator should know.
_LONG_WAIT_ALERT = timedelta(hours=1)


async def record_refresh_failure(
    tx: Transaction,
    call: ConnectionCall,
    current: Connection,
    why: ErrorCode,
    now: datetime,
    *,
    token_over: bool,
) -> None:
    """Count a failed refresh; the one from which the connection counts as failing is announced."""
    if current.state is not LifecycleState.ACTIVE:
        return
    after = current.refresh_failed(why, now, token_over=token_over)
    await tx.connections.replace(after, expected=current.revision)
    if current.failing_since is None and after.failing_since is not None:
        detail = {"reason": why, "failures": after.failures, "repairer": FAILURES[why].repairer}
        await append_audit(tx, call, AuditAction.CONNECTION_FAILING, now, **detail)


async def record_recovery(tx: Transaction, call: ConnectionCall, before: Connection, now: datetime) -> None:
    """Announce the recovery of a connection that was failing, or without a grant, as `before`."""
    if before.is_unwell and before.state is not LifecycleState.REVOKING:
        reason = before.last_failure or before.reason
        await append_audit(tx, call, AuditAction.CONNECTION_RECOVERED, now, reason=reason)


async def record_unsent(store: Store, clock: Clock, call: ConnectionCall, failure: Failure) -> None:
    """Record that nothing was sent, once that matters: when the access token has expired.

    A denied permit counts as a failure from the first time, since its admin has to act. So does a
    wait of an hour for the reply to an earlier attempt.
    """
    if failure.code is ErrorCode.NOT_FOUND:
        return
    denied, waits = failure.kind is FailureKind.DENIED, failure.code is ErrorCode.REFRESH_PENDING

    async def note(tx: Transaction) -> None:
        current, now = await load_connection(tx, call), clock.now()
        grant = await tx.grants.get(call.tenant, call.connection_id)
        over = grant is not None and not grant.is_valid(now)
        if waits:
            opened = await tx.attempts.open_of_any_kind(call.tenant, call.connection_id, MAIN_SLOT)
            over = opened is not None and now - opened.opened_at >= _LONG_WAIT_ALERT
        if denied:
            detail = {"reason": failure.code, **denied_source(failure)}
            await append_audit(tx, call, AuditAction.REFRESH_FAILED, now, **detail)
        if denied or (over and current.failing_since is None):
            await record_refresh_failure(tx, call, current, failure.code, now, token_over=over)

    await commit_with_retries(store, note)


def denied_source(failure: Failure) -> dict[str, str]:
    """Which app may not lease which source, for the audit record of a denied refresh."""
    return dict(failure.context) if failure.kind is FailureKind.DENIED else {}


async def end_consent(
    tx: Transaction,
    consent: Consent,
    status: ConsentStatus,
    failure: ErrorCode | None = None,
    account: ConsentAccount | None = None,
) -> None:
    """Write how a consent ended, and erase its secrets. `account` is shown to the subject."""
    ended = consent.__replace__(status=status, failure=failure)
    saved = await tx.consents.replace(ended, expected=consent.revision, account=account)
    await tx.consents.erase_secrets(saved)


async def end_unless_done(
    tx: Transaction,
    consent: Consent,
    status: ConsentStatus,
    failure: ErrorCode | None = None,
    account: ConsentAccount | None = None,
) -> None:
    """As `end_consent`, on the stored row; a consent whose grant is installed stays done."""
    current = await tx.consents.get(consent.tenant, consent.id)
    if current is not None and current.status is not ConsentStatus.DONE:
        await end_consent(tx, current, status, failure, account)


async def record_consent_failure(
    tx: Transaction, call: ConsentCall, failure: Failure, now: datetime, *, over: bool
) -> None:
    """Record the reason on consent and connection.

    The consent ends when it is `over`: it can't lead to tokens any more. So does one whose next try
    would meet the same failure again.
    """
    consent = await tx.consents.get(call.tenant, call.consent_id)
    if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
        return
    if over or failure.rule.retry is RetryAdvice.NEVER:
        denied = over and failure.code is ErrorCode.CONSENT_DENIED
        await end_consent(tx, consent, ConsentStatus.DENIED if denied else ConsentStatus.FAILED, failure.code)
    current = await load_connection(tx, call)
    if current.state is LifecycleState.PENDING_CONSENT:
        waiting = current.waiting_for_grant(failure.code, now)
        await tx.connections.replace(waiting, expected=current.revision)
    detail = {"reason": failure.code, "consent": consent.id, **denied_source(failure), **words_in(failure)}
    await append_audit(tx, call, AuditAction.CONSENT_FAILED, now, **detail)


async def record_grant(
    tx: Transaction,
    call: ConnectionCall,
    before: Connection,
    consent: Consent,
    grant: Grant,
    now: datetime,
    came: Account | None = None,
    **detail: object,
) -> None:
    """Record that the grant of a consent is installed: the consent is done, and `before` has recovered.

    The account that `came` is kept with the consent, for its owner to recognize it by.
    """
    await record_recovery(tx, call, before, now)
    shown = None if came is None else ConsentAccount(came=came.name)
    await end_unless_done(tx, consent, ConsentStatus.DONE, account=shown)
    detail = {"generation": grant.generation, "scopes": list(grant.scopes), "consent": consent.id, **detail}
    await append_audit(tx, call, AuditAction.GRANT_INSTALLED, now, **detail)


def log_words(failure: Failure, object_id: str) -> dict[str, Any]:
    """Log what the provider said, if the failure follows from a reply. Returns it for an audit record."""
    if isinstance(failure, ReplyFailure) and failure.said is not None:
        words = failure.said
        text = f"status {words.status}, {words}" if str(words) else f"status {words.status}"
        log_event(log, logging.INFO, LogEvent.PROVIDER_REFUSED, text, code=failure.code, object=object_id)
    return words_in(failure)


async def record_once_a_day(
    store: Store, now: datetime, tenant: Tenant, action: AuditAction, object: str, detail: dict[str, Any]
) -> bool:
    """Record what stays so, unless the last day has a record of it; whether it was recorded."""
    async with store.write() as tx:
        last = await audit.newest_record(tx, tenant, object, action)
        if last is not None and last.at > now - _RECORDED_FOR:
            return False
        context = RequestContext(by="schedule")
        entry = AuditEntry(
            tenant=tenant, at=now, action=action, object=object, context=context, detail=detail
        )
        await audit.append(tx, entry)
        return True
