"""Carries out a command of `core.lifecycle`: the activity to call, and the event that its result is."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.lifecycle.command import Command, Transition
    from evergrant_server.core.lifecycle.confirmations import next_to_lapse
    from evergrant_server.core.lifecycle.grants import (
        awaits_evidence,
        grant_ends_at,
        may_come_later,
        no_token_to_protect,
    )
    from evergrant_server.core.messages import activities as m
    from evergrant_server.core.messages import jobs
    from evergrant_server.core.messages.connection import ConnectionState, EventKind, LifecycleEvent
    from workflows import runs

_REFRESH_AHEAD = replace(jobs.REFRESH_GRANT, urgent=False)

Call = dict[str, Any]  # the fields of a ConnectionCall


class Overtaken(Exception):
    """The refresh ended without a result, since a caller came: another one may begin now."""


async def carry_out(
    step: Transition, cause: LifecycleEvent, call: Call, now: datetime, is_waited_for: Callable[[], bool]
) -> LifecycleEvent | None:
    """Call the activity; None when no event follows. `cause` is the event that led to the command.

    Raises Overtaken for a refresh ahead that a caller, of whom `is_waited_for` tells, came before.
    """
    connection = step.state
    match step.command:
        case Command.NOTHING:
            return None
        case Command.ANNOUNCE_EXPIRY:
            return await _announce_expiry(step, call)
        case Command.END_CONSENT:
            return await _end_consent(step, cause, call)
        case Command.LAPSE_CONSENT:
            return await _lapse_consent(connection, cause, call)
        case Command.BEGIN_REVOCATION:
            reason = connection.revoke_reason or ""
            await runs.call(jobs.BEGIN_REVOCATION, m.BeginRevocation(**call, reason=reason))
            return _event(EventKind.REVOCATION_ENDED, cause)
        case Command.REVOKE:
            revocation = await runs.call(jobs.REVOKE_GRANT, m.RevokeGrant(**call))
            return _event(EventKind.REVOCATION_ENDED, cause, revocation=revocation)
        case Command.REFRESH | Command.REFRESH_IF_LEASED:
            refresh = _refresh_request(step.command, connection, cause, call, now)
            if _is_ahead(cause):
                result = await _refresh_ahead(refresh, is_waited_for)
            else:
                result = await runs.call(jobs.REFRESH_GRANT, refresh)
            return _event(
                EventKind.REFRESH_ENDED, cause, result=result, seen_generation=cause.seen_generation
            )
        case _:
            kind, request = _grant_request(step.command, connection, cause, call)
            consent_id = connection.waiting_consent if kind is EventKind.FIRST_TOKENS_ENDED else None
            return _event(kind, cause, result=await request, consent_id=consent_id)


async def _announce_expiry(step: Transition, call: Call) -> None:
    ends_at = step.ends_at
    assert ends_at is not None
    silent_since = step.state.obtained_at if ends_at != grant_ends_at(step.state) else None
    announcement = m.AnnounceExpiry(
        **call, days=step.days_before_end, ends_at=ends_at, silent_since=silent_since
    )
    await runs.call(jobs.ANNOUNCE_EXPIRY, announcement)


async def _end_consent(step: Transition, cause: LifecycleEvent, call: Call) -> LifecycleEvent | None:
    deadline = None if step.denied else step.state.consent_deadline
    end = m.EndConsent(**call, consent_id=cause.consent_id, denied=step.denied, deadline=deadline)
    result = await runs.call(jobs.END_CONSENT, end)
    return None if result is None else _event(EventKind.CONSENT_NOT_ENDED, cause, result=result)


async def _lapse_consent(connection: ConnectionState, cause: LifecycleEvent, call: Call) -> LifecycleEvent:
    overdue = next_to_lapse(connection)
    assert overdue is not None
    lapse = m.LapseConsent(**call, consent_id=overdue.consent_id)
    until = (await runs.call(jobs.LAPSE_CONSENT, lapse)).confirm_by
    return _event(EventKind.CONSENT_LAPSED, cause, consent_id=overdue.consent_id, until=until)


def _grant_request(
    command: Command, connection: ConnectionState, cause: LifecycleEvent, call: Call
) -> tuple[EventKind, Awaitable[m.GrantResult]]:
    """The activities that answer with a GrantResult, each with the event that its result is."""
    generation = connection.generation
    match command:
        case Command.EXCHANGE_CODE:
            consent_id = cause.consent_id or (cause.result and cause.result.consent_id)
            assert consent_id is not None
            code = m.ExchangeCode(**call, consent_id=consent_id, generation=generation)
            return EventKind.CODE_EXCHANGE_ENDED, runs.call(jobs.EXCHANGE_CODE, code)
        case Command.REQUEST_CLIENT_GRANT | Command.POLL_DEVICE_TOKEN:
            assert connection.waiting_consent is not None
            first = m.RequestFirstTokens(**call, consent_id=connection.waiting_consent, generation=generation)
            polls = command is Command.POLL_DEVICE_TOKEN
            activity = jobs.POLL_DEVICE_TOKEN if polls else jobs.REQUEST_CLIENT_GRANT
            return EventKind.FIRST_TOKENS_ENDED, runs.call(activity, first)
        case Command.VERIFY_LATE_TOKENS:
            assert connection.late_attempt is not None
            late = m.VerifyLateTokens(**call, attempt_id=connection.late_attempt)
            return EventKind.LATE_VERIFICATION_ENDED, runs.call(jobs.VERIFY_LATE_TOKENS, late)
        case Command.LOOK_UP_ACCOUNTS:
            lookup = m.LookUpAccounts(**call, generation=generation)
            return EventKind.ACCOUNT_LOOKUP_ENDED, runs.call(jobs.LOOK_UP_ACCOUNTS, lookup)
        case _:
            raise AssertionError(f"{command} asks for no grant")


def _is_ahead(cause: LifecycleEvent) -> bool:
    """True when no caller waits: a timer or a rotation led to the refresh, or a lease that had a token."""
    return cause.ahead or cause.kind in (EventKind.TIMER_FIRED, EventKind.ROTATION_REQUESTED)


def _refresh_request(
    command: Command, connection: ConnectionState, cause: LifecycleEvent, call: Call, now: datetime
) -> m.RefreshGrant:
    """From the newest generation that is known here: a caller may know a newer one than this run."""
    generation = max(connection.generation, cause.seen_generation or 0)
    known = generation == connection.generation  # the end of a newer one's token is not known here
    rotates = cause.kind is EventKind.ROTATION_REQUESTED  # it is wanted now, and no timer comes back to it
    return m.RefreshGrant(
        **call,
        generation=generation,
        may_be_postponed=_is_ahead(cause) and not rotates and may_come_later(connection, now),
        only_if_leased=command is Command.REFRESH_IF_LEASED,
        only_with_evidence=known and not rotates and awaits_evidence(connection, now),
        token_over=connection.reported_generation == generation
        or (known and no_token_to_protect(connection, now)),
        scopes=cause.scopes,
    )


async def _refresh_ahead(request: m.RefreshGrant, is_waited_for: Callable[[], bool]) -> m.GrantResult:
    """The result of a refresh that no caller waits for. Raises Overtaken when one comes before a worker has
    begun it; either way it has ended.

    Temporal ends at once an activity that waits in the queue or for its next try, and a worker
    finishes what it has begun, so two refreshes of a connection never run at once.
    """
    refresh = runs.begin(_REFRESH_AHEAD, request)
    await workflow.wait_condition(lambda: refresh.done() or is_waited_for())
    if refresh.done():
        return await refresh
    refresh.cancel()
    try:
        return await refresh
    except ActivityError:  # cancelled, or a try failed after which Temporal begins no other
        raise Overtaken from None


def _event(kind: EventKind, cause: LifecycleEvent, **brings: Any) -> LifecycleEvent:
    return LifecycleEvent(kind=kind, context=cause.context, **brings)
