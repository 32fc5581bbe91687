"""The first grant of a consent: what code exchange, client grants and the device flow have in common."""

from abc import ABC
from dataclasses import dataclass
from datetime import datetime

from temporalio import activity

from activities.consents.import_export import install_import
from activities.grants import GrantServices
from activities.grants.account_check import (
    MISMATCH,
    is_meant_account,
    record_sharing,
    refuse_account,
    require_own_account,
    require_replaceable,
)
from activities.grants.late_tokens import keep_late_tokens, signal_late_tokens
from activities.grants.replaced_grants import install_new_grant, keep_overtaken_tokens
from activities.grants.spend import GrantSpend, spend
from activities.grants.token_slots import install_further_slots
from activities.single_use.attempt import JournaledReply, SingleUseAttempt
from activities.support.provider_context import ProviderContext
from activities.support.temporal import failed_grant_result, heartbeating, internal_after_last_try
from activities.support.transactions import (
    append_audit,
    commit_with_retries,
    load_connection,
    record_consent_failure,
    record_grant,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import Grant, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.activities import ConsentCall, GrantResult
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.store import Store, Transaction

_RETRIED_BY_TEMPORAL = (
    *(ErrorCode.REFRESH_PENDING, ErrorCode.JOURNAL_UNAVAILABLE),
    *(ErrorCode.KEY_UNAVAILABLE, ErrorCode.KEY_DENIED, ErrorCode.KEY_GONE),
)
_MAX_TRIES = 200  # three seconds apart: longer than a reply may be waited for


@dataclass
class FirstGrantSpend(GrantSpend[ConsentCall]):
    """Spends what a consent gave, and installs its grant."""

    consent: Consent
    loaded: Endpoints | None = None  # of the definition that is tried first; None: a journal has the reply

    @property
    def credential(self) -> str:
        return self.consent.id

    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        consent, now = self.consent, self.services.clock.now()
        scopes = tokens.scopes if tokens.scopes is not None else consent.granted_scopes
        tokens = tokens.__replace__(metadata=tokens.metadata | consent.facts, scopes=scopes)
        current = await load_connection(tx, self.call, locked=True)
        row = await tx.attempts.get(attempt.row.tenant, attempt.row.id)
        if row is None or row.outcome not in (None, AttemptOutcome.UNREAD):
            return await self._keep_late(tx, current, row or attempt.row, tokens)
        if current.state.is_final:
            return None
        was_unread = row.outcome is AttemptOutcome.UNREAD
        if was_unread and _is_overtaken(current, attempt.row):
            await tx.attempts.close(row, AttemptOutcome.SUPERSEDED, now)
            return await self._keep_late(tx, current, attempt.row, tokens)
        if not await is_meant_account(tx, self.context, current, tokens):
            await tx.attempts.close(row, AttemptOutcome.REFUSED, now)
            return await refuse_account(tx, self.call, self.context, current, consent, tokens, now)
        result = await self._install(tx, row, current, tokens, since)
        if was_unread:  # its workflow has given the consent up
            await signal_late_tokens(tx, self.call, attempt.row, now)
        return result

    async def _install(
        self, tx: Transaction, row: Attempt, current: Connection, tokens: TokenSet, since: datetime
    ) -> GrantResult:
        request, context, consent = self.call, self.context, self.consent
        now = self.services.clock.now()
        pin = await tx.account_identifiers.account_hash(current)
        after = context.after_consent(current.granted(now, request.generation), consent)
        if context.integration.id != current.integration_id:
            expected = tx.account_identifiers.expectation_at(current, context.integration.id, tokens.account)
            after = after.of_client(context.integration.id, expected)
        grant = Grant.from_tokens(
            tokens,
            generation=after.generation,
            requested=consent.scopes,
            at=since,
            renewable=context.renewable or context.issues_short_lived_token,
            short_lived=context.issues_short_lived_token,
        )
        saved = await install_new_grant(tx, request, context, current, after, tokens, grant)
        ring = self.services.store.ring
        await install_further_slots(tx, ring, request, context, saved, tokens, since, now, consent)
        # not `close_attempt`: a takeover in this moment is a conflict, and the row shows it at the next try
        await tx.attempts.close(row, AttemptOutcome.INSTALLED, now)
        moved = {} if saved.integration_id == current.integration_id else {"client": saved.integration_id}
        await record_grant(tx, request, current, consent, grant, now, tokens.account, **moved)
        await record_sharing(tx, request, saved, tokens, pin, now)
        return context.grant_result(saved, grant)

    async def _keep_late(
        self, tx: Transaction, current: Connection, row: Attempt, tokens: TokenSet
    ) -> GrantResult | None:
        """The attempt has ended: its reply was replayed, or another worker took over and was refused.

        None: the connection has ended, and the tokens are revoked.
        """
        call, now = self.call, self.services.clock.now()
        consent = await tx.consents.get(call.tenant, call.consent_id)
        judged = row.outcome is AttemptOutcome.REFUSED  # or the mismatch was another use's of the code
        if judged and consent is not None and consent.failure == ErrorCode.ACCOUNT_MISMATCH:
            return MISMATCH
        grant = await tx.grants.get(call.tenant, call.connection_id)
        if row.outcome is AttemptOutcome.INSTALLED and grant is not None:
            return self.context.grant_result(current, grant)  # perhaps by this worker's lost commit
        ends_alone = current.state is LifecycleState.REVOKING and not current.flow.may_be_revoked
        if current.state.is_final or ends_alone:
            return None
        waits = current.generation == row.from_generation and current.state in STATES_WITHOUT_GRANT
        if waits and self.context.integration.id == current.integration_id:
            await keep_late_tokens(tx, call, row, tokens, now)
        else:  # a revocation takes them too; alone they may end the grant in use, if it is of the same code
            detail = {"attempt": row.id, "state": current.state, "revoked": False}
            await append_audit(tx, call, AuditAction.LATE_TOKENS_RECEIVED, now, **detail)
            await keep_overtaken_tokens(tx, call, self.context, row, tokens, now, call.consent_id)
        return GrantResult(attempt_id=row.id, failure=ErrorCode.OUTCOME_UNKNOWN)


def _is_overtaken(current: Connection, attempt: Attempt) -> bool:
    """True when another grant came since the tokens were set aside, or the provider ended the grant."""
    ended = current.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE and current.changed_at > attempt.opened_at
    return ended or current.generation != attempt.from_generation


async def _require_newest_client(store: Store, connection: Connection, consent: Consent) -> None:
    """Raise Failure CALLBACK_INVALID, before a code is spent, for a consent to another client than has got
    the grant, unless it is to the one that subjects consent to by now."""
    if consent.integration_id == connection.integration_id:
        return
    async with store.read() as tx:
        newest = await tx.integrations.of_next_consent(connection)
    if newest is None or newest.id != consent.integration_id:
        why = "Its integration has got another client since: begin anew."
        raise Failure(ErrorCode.CALLBACK_INVALID, why)


def may_be_sent_later(failure: Failure) -> bool:
    """True for a failure before anything was sent, which a later try may not meet.

    Keys that can't be had are among them, also when an operator has to give them back: a key that was taken
    away by mistake ends no consent while its code is good.
    """
    return failure.code in _RETRIED_BY_TEMPORAL


class FirstGrantActivities(ABC):
    """Gets the first tokens of a consent, once. A flow says what it asks with, and what a failure ends."""

    spend_type: type["FirstGrantSpend"]

    def __init__(self, services: GrantServices) -> None:
        self._services = services

    async def _record_failed_activity(self, tx: Transaction, request: ConsentCall, failure: Failure) -> bool:
        """Record a failure that came before or instead of a reply. Returns True if the consent is over."""
        await record_consent_failure(tx, request, failure, self._services.clock.now(), over=False)
        return False

    async def _get_first_grant(self, request: ConsentCall) -> GrantResult:
        """Returns what the store holds afterwards. Raises what Temporal tries again."""
        async with heartbeating():
            try:
                with internal_after_last_try():
                    return await self._send_and_install(request)
            except Failure as failure:
                if may_be_sent_later(failure) and activity.info().attempt < _MAX_TRIES:
                    raise
                return await self._result_of_failure(request, failure)

    async def _send_and_install(self, request: ConsentCall) -> GrantResult:
        """The flow from load to commit. Each candidate is tried at most once, in an attempt of its own."""
        services = self._services
        consent = await self._load_consent(request)
        context = await services.contexts.load(request.tenant, request.connection_id, consent.integration_id)
        if consent.kind is ConsentKind.IMPORT:  # it came with its tokens
            return await install_import(services.store, services.clock, request, context, consent)
        result = _result_if_ended(consent, context)
        if result is not None:
            return result
        await _require_newest_client(services.store, context.connection, consent)
        await require_own_account(services.store, context.connection)
        await require_replaceable(services.store, context.connection, consent)
        context = context.for_new_grant()

        def spend_with(candidate: ProviderContext) -> FirstGrantSpend:
            return self.spend_type(services, request, candidate, consent, context.endpoints)

        _, result = await spend(context, spend_with)
        return result

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, ConsentCall.model_validate(journaled.request)
        consent = await self._load_consent(request)
        context = await services.contexts.load(request.tenant, request.connection_id, consent.integration_id)
        replayed = self.spend_type(services, request, context, consent, provisional=journaled.provisional)
        return await services.single_use.conclude(attempt, journaled, replayed)

    async def _load_consent(self, request: ConsentCall) -> Consent:
        """Raises Failure CALLBACK_INVALID when the connection has no such consent."""
        async with self._services.store.read() as tx:
            consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.connection_id != request.connection_id:
            raise Failure(ErrorCode.CALLBACK_INVALID, f"there is no consent {request.consent_id}")
        return consent

    async def _result_of_failure(self, request: ConsentCall, failure: Failure) -> GrantResult:
        services, result = self._services, failed_grant_result(failure)
        async with services.store.read() as tx:
            consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is not None and consent.status is ConsentStatus.DONE:  # by a replay, during this try
            context = await services.contexts.load(request.tenant, request.connection_id)
            return _result_if_ended(consent, context) or result
        over = await commit_with_retries(
            services.store, lambda tx: self._record_failed_activity(tx, request, failure)
        )
        return result.__replace__(consent_over=over)


def _result_if_ended(consent: Consent, context: ProviderContext) -> GrantResult | None:
    """The result of an earlier try that has committed. Raises Failure CONNECTION_REVOKED."""
    if consent.status is ConsentStatus.DONE and context.grant is not None:
        return context.grant_result(context.connection, context.grant)
    if consent.status is not ConsentStatus.CODE_RECEIVED:
        failure = ErrorCode(consent.failure or ErrorCode.CALLBACK_INVALID)
        return GrantResult(failure=failure, consent_over=True)
    if context.connection.state is LifecycleState.REVOKING or context.connection.state.is_final:
        raise Failure(ErrorCode.CONNECTION_REVOKED)  # an unspent code is no grant: nothing to revoke
    return None
