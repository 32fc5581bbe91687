"""What several activities record of a connection: its health, the end of a consent, its grant.

`failing` is announced once to its repairer, and so is the recovery.
"""

from datetime import datetime, timedelta

from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.account import Account, ConsentAccount
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind, RetryAdvice
from evergrant_server.core.messages.activities import ConnectionCall, ConsentCall
from evergrant_server.core.provider_words import words_in
from evergrant_server.store import Store, Transaction

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

    The page of the browser that consented names the account that `came`.
    """
    await record_recovery(tx, call, before, now)
    shown = ConsentAccount(came=came.name) if came is not None and consent.came_from_browser else None
    await end_unless_done(tx, consent, ConsentStatus.DONE, account=shown)
    detail = {"generation": grant.generation, "scopes": list(grant.scopes), "consent": consent.id, **detail}
    await append_audit(tx, call, AuditAction.GRANT_INSTALLED, now, **detail)
