"""Failing and recovered: who can repair a connection hears of it once, and once more when it works."""

from datetime import datetime, timedelta

from activities.records import connection_of, record, settled
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import FAILURES, Code, Failure, Kind
from evergrant_server.core.grant import MAIN
from evergrant_server.core.messages import Call
from evergrant_server.store import Store, Tx

# A wait for an answer that may be lost ends within a minute, or once the access token is over. Where that
# is far away, an owner's host has to come back first, and somebody should know.
_LONG_WAIT = timedelta(hours=1)


async def note_failure(
    tx: Tx, call: Call, current: Connection, why: Code, now: datetime, *, token_over: bool
) -> None:
    """Count a refresh that failed; the one with which it is failing is announced."""
    if current.state is not State.ACTIVE:
        return
    after = current.refresh_failed(why, now, token_over=token_over)
    await tx.connections.replace(after, expected=current.revision)
    if current.failing_since is None and after.failing_since is not None:
        repairer = FAILURES[why].repairer
        await record(
            tx,
            call,
            AuditAction.CONNECTION_FAILING,
            now,
            reason=why,
            failures=after.failures,
            repairer=repairer,
        )


async def note_recovery(tx: Tx, call: Call, before: Connection, now: datetime) -> None:
    """After a grant was installed over `before`."""
    if before.unwell and before.state is not State.REVOKING:
        reason = before.last_failure or before.reason
        await record(tx, call, AuditAction.CONNECTION_RECOVERED, now, reason=reason)


async def note_unsent(store: Store, clock: Clock, call: Call, failure: Failure) -> None:
    """Nothing was sent: a circuit is open, or a key is away. Callers feel it once the token is over.

    A refusal of our own is a failure like a provider's: somebody has to act, and can see it from the first.
    So is a wait of an hour for the answer to an earlier use.
    """
    if failure.code is Code.NOT_FOUND:
        return
    denied, waits = failure.kind is Kind.DENIED, failure.code is Code.REFRESH_PENDING

    async def note(tx: Tx) -> None:
        current, now = await connection_of(tx, call), clock.now()
        grant = await tx.grants.get(call.tenant, call.connection_id)
        over = grant is not None and not grant.valid(now)
        if waits:
            opened = await tx.attempts.opened(call.tenant, call.connection_id, MAIN)
            over = opened is not None and now - opened.opened_at >= _LONG_WAIT
        if denied:
            said = {"reason": failure.code, **refused_in_whose_name(failure)}
            await record(tx, call, AuditAction.REFRESH_FAILED, now, **said)
        if denied or (over and current.failing_since is None):
            await note_failure(tx, call, current, failure.code, now, token_over=over)

    await settled(store, note)


def refused_in_whose_name(failure: Failure) -> dict[str, str]:
    """For the record of a refusal of our own: which app may not lease which source."""
    return dict(failure.context) if failure.kind is Kind.DENIED else {}
