"""Carries out a command of `core.lifecycle`: the activity to call, and the event that its result is."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.lifecycle.command import Command, Transition
    from evergrant_server.core.lifecycle.confirmations import next_to_lapse
    from evergrant_server.core.lifecycle.grants import grant_ends_at, may_come_later, no_token_to_protect
    from evergrant_server.core.messages import activities as m
    from evergrant_server.core.messages.connection import ConnectionState, EventKind, LifecycleEvent
    from workflows import activity_calls
    from workflows.refresh_ahead import refresh_ahead

Call = dict[str, Any]  # the fields of a ConnectionCall


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
            ends_at = grant_ends_at(connection)
            assert ends_at is not None
            announcement = m.AnnounceExpiry(**call, days=step.days_before_end, ends_at=ends_at)
            await activity_calls.announce_expiry(announcement)
            return None
        case Command.END_CONSENT:
            deadline = None if step.denied else connection.consent_deadline
            end = m.EndConsent(**call, consent_id=cause.consent_id, denied=step.denied, deadline=deadline)
            result = await activity_calls.end_consent(end)
            return None if result is None else _event(EventKind.CONSENT_NOT_ENDED, cause, result=result)
        case Command.LAPSE_CONSENT:
            overdue = next_to_lapse(connection)
            assert overdue is not None
            lapse = m.LapseConsent(**call, consent_id=overdue.consent_id)
            until = (await activity_calls.lapse_consent(lapse)).confirm_by
            return _event(EventKind.CONSENT_LAPSED, cause, consent_id=overdue.consent_id, until=until)
        case Command.BEGIN_REVOCATION:
            reason = connection.revoke_reason or ""
            await activity_calls.begin_revocation(m.BeginRevocation(**call, reason=reason))
            return _event(EventKind.REVOCATION_ENDED, cause)
        case Command.REVOKE:
            revocation = await activity_calls.revoke_grant(m.RevokeGrant(**call))
            return _event(EventKind.REVOCATION_ENDED, cause, revocation=revocation)
        case Command.REFRESH | Command.REFRESH_IF_LEASED:
            refresh = _refresh_request(step.command, connection, cause, call, now)
            ahead = _is_ahead(cause)
            result = await (
                refresh_ahead(refresh, is_waited_for) if ahead else activity_calls.refresh_grant(refresh)
            )
            return _event(
                EventKind.REFRESH_ENDED, cause, result=result, seen_generation=cause.seen_generation
            )
        case _:
            kind, request = _grant_request(step.command, connection, cause, call)
            consent_id = connection.waiting_consent if kind is EventKind.FIRST_TOKENS_ENDED else None
            return _event(kind, cause, result=await request, consent_id=consent_id)


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
            return EventKind.CODE_EXCHANGE_ENDED, activity_calls.exchange_code(code)
        case Command.REQUEST_CLIENT_GRANT | Command.POLL_DEVICE_TOKEN:
            assert connection.waiting_consent is not None
            first = m.RequestFirstTokens(**call, consent_id=connection.waiting_consent, generation=generation)
            polls = command is Command.POLL_DEVICE_TOKEN
            activity = activity_calls.poll_device_token if polls else activity_calls.request_client_grant
            return EventKind.FIRST_TOKENS_ENDED, activity(first)
        case Command.VERIFY_LATE_TOKENS:
            assert connection.late_attempt is not None
            late = m.VerifyLateTokens(**call, attempt_id=connection.late_attempt)
            return EventKind.LATE_VERIFICATION_ENDED, activity_calls.verify_late_tokens(late)
        case Command.LOOK_UP_ACCOUNTS:
            lookup = m.LookUpAccounts(**call, generation=generation)
            return EventKind.ACCOUNT_LOOKUP_ENDED, activity_calls.look_up_accounts(lookup)
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
        token_over=connection.reported_generation == generation
        or (known and no_token_to_protect(connection, now)),
        scopes=cause.scopes,
    )


def _event(kind: EventKind, cause: LifecycleEvent, **brings: Any) -> LifecycleEvent:
    return LifecycleEvent(kind=kind, context=cause.context, **brings)
