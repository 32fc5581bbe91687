"""Errors that a refresh was answered with: whose they are to repair, by what the store knows of the others.

`core.single_use.recurring_errors` decides. Nothing is spent here.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from activities.grants import GrantServices
from activities.grants.client_secrets import is_client_refused
from activities.grants.control_request import equals_control, is_evidence_to_be_had
from activities.grants.late_tokens import keep_for_last_try
from activities.grants.token_request import introspect_grant, supports_introspection
from activities.single_use.attempt import REPLY_PURPOSES
from activities.single_use.intent import open_attempt
from activities.support.provider_context import ProviderContext
from activities.support.temporal import why_unsent
from activities.support.transactions import append_audit, commit_with_retries, is_taken_over, load_connection
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from evergrant_server.core.provider_events import IntrospectionFinding
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome, is_safe_to_resend
from evergrant_server.core.single_use.recurring_errors import (
    UNDECIDED,
    ErrorKind,
    RecurringError,
    UndecidedRefusals,
)
from evergrant_server.store import Transaction
from providers.requests.sender import SendFailed
from providers.responses.error_mapping import UnreadableTokens
from providers.responses.reply_error import PassingError, UnknownRefusal, UnnamedRefusal

_INTROSPECTION_TIMEOUT_S = 10.0  # the activity has half a minute after the reply
_TOKEN_ACTIVE = {
    IntrospectionFinding.REFRESH_TOKEN_ACTIVE: True,
    IntrospectionFinding.REFRESH_TOKEN_INACTIVE: False,
}
# Members of audit records: of a refresh that failed, for the next one of the same token, and of one that
# worked.
_ANSWER_LOST, _UNDECIDED, _ROTATED = "answer_lost", UNDECIDED, "rotated"
_CLIENT_REFUSED = "client_refused_at"


@dataclass(frozen=True)
class AnsweredError:
    """The error that the provider answered an attempt with, where it ends no grant by itself."""

    attempt: Attempt
    failure: Failure
    kind: ErrorKind
    code: ErrorCode
    repeated: bool = False  # the refresh before it failed with the same code
    undecided: UndecidedRefusals | None = None  # None: it says whose turn it is, or is no refusal
    answer_lost: bool = False  # no answer came to an earlier use of the token
    client_refused_at: datetime | None = None  # the newest use of the token that was refused for our client


@dataclass(frozen=True)
class FailedRefresh:
    """A refresh that failed, and what the audit log says of those of the same token before it."""

    attempt: Attempt
    failure: Failure
    outcome: AttemptOutcome | None
    answer_lost: bool = False  # of this use or an earlier one
    undecided: UndecidedRefusals | None = None
    client_refused_at: datetime | None = None  # the newest of these uses that was refused for our client
    client_suspected: bool = False  # it was changed, and no refresh has worked since

    @property
    def detail(self) -> dict[str, object]:
        """What its audit record has, beside the provider's words, for the next one."""
        detail: dict[str, object] = {_ANSWER_LOST: True} if self.answer_lost else {}
        if self.undecided is not None:
            since, answered = self.undecided.since, self.undecided.answered_since
            moments = {"since": since.isoformat(), "answered_since": answered.isoformat()}
            detail[_UNDECIDED] = {"answer": self.undecided.answer, **moments}
        if self.client_refused_at is not None:
            detail[_CLIENT_REFUSED] = self.client_refused_at.isoformat()
        return detail

    def result(self, code: ErrorCode) -> GrantResult:
        """What the workflow learns of it, by the code that it counts as."""
        return GrantResult(
            attempt_id=self.attempt.id,
            failure=code,
            retry_after=self.failure.retry_after,
            why_unsent=why_unsent(self.failure),
            client_refused=is_client_refused(self.failure),
            unknown_error=self.outcome is AttemptOutcome.REFUSED
            and not isinstance(self.failure, PassingError),
            answer_lost=self.outcome is None and isinstance(self.failure, SendFailed),
        )


async def failed_refresh(
    tx: Transaction,
    current: Connection,
    row: Attempt,
    failure: Failure,
    outcome: AttemptOutcome | None,
    answer: str | None,
    changed_at: datetime,
    now: datetime,
) -> FailedRefresh:
    """A failed refresh beside the one before it; `answer`: its reply as `comparable_answer` writes it.

    `changed_at`: the integration's last change, since when refusals are counted anew.
    """
    record = await audit.newest_record(tx, current.tenant, current.id, AuditAction.REFRESH_FAILED)
    since, _ = await _failing_since(tx, row)
    before = record if record is not None and record.at >= since else None
    used_before = before is None and (row.sends > 1 or await is_taken_over(tx, row))  # by a worker that died
    lost = outcome is None and isinstance(failure, SendFailed)
    lost = lost or used_before or (before is not None and bool(before.detail.get(_ANSWER_LOST)))
    undecided = None
    if answer is not None and isinstance(failure, UnknownRefusal):
        earlier = None if before is None else _undecided_in(before)
        undecided = UndecidedRefusals(now, answer, now)
        if earlier is not None and before is not None and before.at >= changed_at:
            undecided = earlier.followed_by(answer, now, before.at)
    written = None if before is None else before.detail.get(_CLIENT_REFUSED)
    refused_at = None if written is None else datetime.fromisoformat(written)
    suspected = (
        undecided is not None
        and not lost
        and (refused_at is None or refused_at >= changed_at)
        and await _has_worked_before(tx, current, changed_at)
    )
    if suspected or (failure.code is ErrorCode.CLIENT_REJECTED and not isinstance(failure, UnknownRefusal)):
        refused_at = now
    return FailedRefresh(row, failure, outcome, lost, undecided, refused_at, suspected)


async def _has_worked_before(tx: Transaction, current: Connection, changed_at: datetime) -> bool:
    """True when refreshes of the integration have worked, and none has since this change of it: what is
    refused without a name then may be our client."""
    worked_at = await tx.attempts.newest_refresh(current.tenant, current.integration_id)
    return worked_at is not None and worked_at < changed_at


def _undecided_in(record: AuditRecord) -> UndecidedRefusals | None:
    detail = record.detail.get(_UNDECIDED)
    if detail is None:
        return None
    since, answered = (datetime.fromisoformat(detail[name]) for name in ("since", "answered_since"))
    return UndecidedRefusals(since, detail["answer"], answered)


async def answered_error(
    tx: Transaction, context: ProviderContext, current: Connection, failed: FailedRefresh
) -> AnsweredError | None:
    """The error of a refresh; None: no reply came, or it says that the grant has ended, or to wait.

    Its code is another than the reply's where the same client's requests have worked, or where another use
    may have spent the token: then the admin can't repair it.
    """
    row, failure = failed.attempt, failed.failure
    kind = _kind_of(failure, failed.outcome)
    if kind is None:
        return None
    error = AnsweredError(
        row,
        failure,
        kind,
        failure.code,
        undecided=failed.undecided,
        answer_lost=failed.answer_lost,
        client_refused_at=failed.client_refused_at,
    )
    facts = await _load(tx, context, current, error)
    decides = failed.undecided is not None and (facts.may_be_spent or facts.client_was_repaired)
    if facts.is_of_one_grant or decides:
        error = replace(error, code=ErrorCode.PROVIDER_ERROR)
    elif failed.client_suspected:
        error = replace(error, code=ErrorCode.CLIENT_REJECTED)
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


async def _failing_since(tx: Transaction, row: Attempt) -> tuple[datetime, datetime]:
    """When the first use of this refresh token that brought no tokens was sent or refused, and when the first
    was refused."""
    first = await tx.attempts.first_refused(row.tenant, row.connection_id, row.from_generation) or row
    refused_since = first.closed_at or first.opened_at
    return min(refused_since, row.first_opened_at), refused_since


async def _load(
    tx: Transaction, context: ProviderContext, current: Connection, error: AnsweredError
) -> RecurringError:
    """The error beside what the store knows of this connection's refreshes and of the others'."""
    row, tenant, undecided = error.attempt, current.tenant, error.undecided
    since, refused_since = await _failing_since(tx, row)
    worked_at = await tx.attempts.newest_refresh(tenant, current.integration_id)
    # Others' failures count from this connection's first one on: the newest success of a busy integration is
    # always recent.
    after = None if worked_at is None else min(worked_at, since)
    spent = undecided is not None and await _may_be_spent_at_rotation(tx, context, current, row)
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
        undecided_since=None if undecided is None else undecided.since,
        may_be_spent=spent,
        answer_lost=error.answer_lost,
        client_refused_at=error.client_refused_at,
        others_fail_as_well=undecided is not None
        and await tx.connections.others_fail(current, undecided.since),
    )


async def _may_be_spent_at_rotation(
    tx: Transaction, context: ProviderContext, current: Connection, row: Attempt
) -> bool:
    """True when another use may have been served, at a provider that takes a refresh token once."""
    rules = context.integration.refresh
    if is_safe_to_resend(rules, row, row.opened_at):
        return False
    if not await may_be_spent_by_another_use(tx, context, row):
        return False
    return rules.rotation is not Rotation.UNKNOWN or await _rotates(tx, current)


def rotation_seen(context: ProviderContext, sent: Secret | None, tokens: TokenSet) -> dict[str, object]:
    """What the audit record of a refresh has of the provider's rotation, where its definition doesn't say.

    `sent` is the refresh token that was sent; None: the reply comes from a journal.
    """
    known = context.integration.refresh.rotation is not Rotation.UNKNOWN
    if known or sent is None or tokens.refresh_token is None:
        return {}
    return {_ROTATED: tokens.refresh_token.reveal() != sent.reveal()}


async def _rotates(tx: Transaction, current: Connection) -> bool:
    """True when the newest refresh of the connection, else of its integration, brought another refresh
    token."""
    newest = await tx.attempts.newest_refreshed(current.tenant, current.integration_id)
    for connection_id in filter(None, (current.id, newest)):
        refreshed = AuditAction.GRANT_REFRESHED
        record = await audit.newest_record(tx, current.tenant, connection_id, refreshed)
        if record is not None:
            return bool(record.detail.get(_ROTATED))
    return False


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
    refusals = error.undecided
    equal = refusals is not None and await equals_control(services, request, context, refusals)
    names = request.tenant, request.connection_id
    keys = await services.store.unwrap_keys(*names, REPLY_PURPOSES) if equal else None

    async def condemn(tx: Transaction) -> GrantResult | None:
        current, now = await load_connection(tx, request), services.clock.now()
        row, opened = error.attempt, await open_attempt(tx, current)
        if current.state is not LifecycleState.ACTIVE or current.generation != row.from_generation:
            return None
        if opened is not None and opened.id != row.id:
            return None  # another use of its token is under way
        facts = await _load(tx, context, current, error)
        facts = replace(facts, token_active=token_active, equals_control=equal)
        reason = facts.reason_to_reconnect(now)
        if reason is None:
            return None
        if error.kind is not ErrorKind.OTHER and await may_be_spent_by_another_use(tx, context, row):
            reason = ErrorCode.OUTCOME_UNKNOWN
        last_try = reason is ErrorCode.GRANT_PROBABLY_OVER
        if last_try:
            await keep_for_last_try(tx, context, row, now)
        if opened is not None:
            await tx.attempts.close(opened, AttemptOutcome.GIVEN_UP, now)
        await tx.connections.replace(current.rejected(reason, now), expected=current.revision)
        detail = {"reason": reason, "since": facts.since.isoformat()}
        await append_audit(tx, request, AuditAction.NEEDS_REAUTH, now, **detail, **words_in(error.failure))
        return GrantResult(attempt_id=row.id, failure=reason, last_try=last_try)

    return await commit_with_retries(services.store, condemn, keys)


async def is_worth_a_try(services: GrantServices, context: ProviderContext) -> bool:
    """Whether one more refusal could be decided now: the provider is asked before its time only then."""
    connection = context.connection
    async with services.store.read() as tx:
        record = await audit.newest_record(tx, connection.tenant, connection.id, AuditAction.REFRESH_FAILED)
    refusals = None if record is None else _undecided_in(record)
    if record is None or refusals is None:
        return False
    now = services.clock.now()
    return await is_evidence_to_be_had(
        services, context, refusals.followed_by(refusals.answer, now, record.at)
    )


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
