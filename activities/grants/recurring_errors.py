"""Errors that a refresh was answered with: whose they are to repair, by what the store knows of the others.

`core.single_use.recurring_errors` decides. Nothing is spent here.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace

from activities.grants import GrantServices
from activities.grants.token_request import introspect_grant, supports_introspection
from activities.single_use.intent import open_attempt
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, commit_with_retries, is_taken_over, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from evergrant_server.core.provider_events import IntrospectionFinding
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.core.single_use.recurring_errors import ErrorKind, RecurringError
from evergrant_server.store import Transaction
from providers.responses.error_mapping import UnreadableTokens
from providers.responses.reply_error import PassingError, UnnamedRefusal

_INTROSPECTION_TIMEOUT_S = 10.0  # the activity has half a minute after the reply
_TOKEN_ACTIVE = {
    IntrospectionFinding.REFRESH_TOKEN_ACTIVE: True,
    IntrospectionFinding.REFRESH_TOKEN_INACTIVE: False,
}


@dataclass(frozen=True)
class AnsweredError:
    """The error that the provider answered an attempt with, where it ends no grant by itself."""

    attempt: Attempt
    failure: Failure
    kind: ErrorKind
    code: ErrorCode
    repeated: bool = False  # the refresh before it failed with the same code


async def answered_error(
    tx: Transaction,
    context: ProviderContext,
    row: Attempt,
    current: Connection,
    failure: Failure,
    outcome: AttemptOutcome | None,
) -> AnsweredError | None:
    """The error of a refresh; None: no reply came, or it says that the grant has ended, or to wait.

    Its code is another than the reply's where the same client's requests have worked: then the admin
    can't repair them.
    """
    kind = _kind_of(failure, outcome)
    if kind is None:
        return None
    error = AnsweredError(row, failure, kind, failure.code)
    if (await _load(tx, context, current, error)).is_of_one_grant:
        error = replace(error, code=ErrorCode.PROVIDER_ERROR)
    return replace(error, repeated=current.last_failure is error.code)


def _kind_of(failure: Failure, outcome: AttemptOutcome | None) -> ErrorKind | None:
    answered = "provider_status" in failure.context and outcome is not AttemptOutcome.NOT_SENT
    ends_grant = failure.kind is FailureKind.RECONNECT_NEEDED
    if not answered or ends_grant or isinstance(failure, UnreadableTokens):
        return None
    if isinstance(failure, UnnamedRefusal):
        return ErrorKind.REQUEST if failure.code is ErrorCode.CLIENT_REJECTED else ErrorKind.UNNAMED
    refused = outcome is AttemptOutcome.REFUSED and failure.code is ErrorCode.PROVIDER_ERROR
    return ErrorKind.REFUSED if refused and not isinstance(failure, PassingError) else ErrorKind.OTHER


async def _load(
    tx: Transaction, context: ProviderContext, current: Connection, error: AnsweredError
) -> RecurringError:
    """The error beside what the store knows of this connection's refreshes and of the others'."""
    row, tenant = error.attempt, current.tenant
    first = await tx.attempts.first_refused(tenant, current.id, row.from_generation) or row
    refused_since = first.closed_at or first.opened_at
    since = min(refused_since, row.first_opened_at)
    worked_at = await tx.attempts.newest_refresh(tenant, current.integration_id)
    # Others' failures count from this connection's first one on: the newest success of a busy integration is
    # always recent.
    after = None if worked_at is None else min(worked_at, since)
    return RecurringError(
        kind=error.kind,
        repeated=error.repeated,
        since=since,
        refused_since=refused_since,
        client_changed_at=context.integration.changed_at,
        worked_at=worked_at,
        others_worked=await tx.attempts.refreshes_of_others(current, since),
        others_fail=await tx.connections.others_fail(current, after),
        others_refused=after is not None and await tx.connections.others_refused(current, after),
    )


async def may_be_spent_by_another_use(tx: Transaction, context: ProviderContext, row: Attempt) -> bool:
    """True when another use, and not the subject, may have ended the grant."""
    if context.spends_nothing:
        return False
    credential = (row.tenant, row.connection_id, row.from_generation)
    return row.sends > 1 or await is_taken_over(tx, row) or await tx.attempts.may_be_invalidated(*credential)


async def reconnect_if_it_recurs(
    services: GrantServices, request: RefreshGrant, context: ProviderContext, error: AnsweredError
) -> GrantResult | None:
    """Have the subject consent again, if this error is theirs to repair. None: it is tried again later."""
    if context.connection.flow.is_client_grant:
        return None  # there is no subject: the integration's admin repairs it
    token_active = await _ask_about_token(services, context, error)

    async def condemn(tx: Transaction) -> GrantResult | None:
        current, now = await load_connection(tx, request), services.clock.now()
        row, opened = error.attempt, await open_attempt(tx, current)
        if current.state is not LifecycleState.ACTIVE or current.generation != row.from_generation:
            return None
        if opened is not None and opened.id != row.id:
            return None  # another use of its token is under way
        facts = replace(await _load(tx, context, current, error), token_active=token_active)
        reason = facts.reason_to_reconnect(now)
        if reason is None:
            return None
        if error.kind is not ErrorKind.OTHER and await may_be_spent_by_another_use(tx, context, row):
            reason = ErrorCode.OUTCOME_UNKNOWN
        if opened is not None:
            await tx.attempts.close(opened, AttemptOutcome.GIVEN_UP, now)
        await tx.connections.replace(current.rejected(reason, now), expected=current.revision)
        detail = {"reason": reason, "since": facts.since.isoformat()}
        await append_audit(tx, request, AuditAction.NEEDS_REAUTH, now, **detail, **words_in(error.failure))
        return GrantResult(attempt_id=row.id, failure=reason)

    return await commit_with_retries(services.store, condemn)


async def _ask_about_token(
    services: GrantServices, context: ProviderContext, error: AnsweredError
) -> bool | None:
    """Whether introspection says that the refused token is active; None: it says nothing."""
    if not supports_introspection(context):
        return None
    async with services.store.read() as tx:
        if not (await _load(tx, context, context.connection, error)).is_of_one_grant:
            return None
    with suppress(Failure, TimeoutError):
        async with asyncio.timeout(_INTROSPECTION_TIMEOUT_S):
            now = services.clock.now()
            finding = await introspect_grant(services.store, services.sender, context, now)
            return _TOKEN_ACTIVE.get(finding)
    return None
