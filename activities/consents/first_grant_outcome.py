"""The outcome of a request for first tokens: the grant of a consent, or why there is none yet."""

from datetime import datetime

from activities.grants.consent_changes import after_consent, end_consent, end_unless_done
from activities.grants.grant_outcome import GrantOutcome
from activities.grants.late_tokens import keep_late_tokens, signal_late_tokens
from activities.grants.services import GrantServices
from activities.grants.token_replies import merge_callback
from activities.grants.token_slots import install_further_slots
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.attempt_tracker import open_attempt
from activities.support.connection_health import denied_source, record_recovery
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, RetryAdvice
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.activities import ExchangeCode, GrantResult, RequestFirstTokens
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.store import Transaction

ConsentRequest = ExchangeCode | RequestFirstTokens


class FirstGrantOutcome(GrantOutcome):
    """Installs the grant of a consent."""

    def __init__(
        self,
        services: GrantServices,
        request: ConsentRequest,
        context: ProviderContext,
        consent: Consent,
        *,
        provisional: bool = False,
    ) -> None:
        super().__init__(services, request, context, provisional=provisional)
        self._request = request
        self.consent = consent

    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        request, context, consent = self._request, self.context, self.consent
        now, tokens = self.services.clock.now(), merge_callback(tokens, consent)
        current = await load_connection(tx, request)
        row = await tx.attempts.get(attempt.row.tenant, attempt.row.id)
        if row is None or row.outcome not in (None, AttemptOutcome.UNREAD):
            installed = row is not None and row.outcome is AttemptOutcome.INSTALLED
            return await self._keep_late(tx, current, attempt.row, tokens, installed=installed)
        if current.state.is_final:
            return None
        was_unread = row.outcome is AttemptOutcome.UNREAD
        if was_unread and _is_overtaken(current, attempt.row):
            await tx.attempts.close(row, AttemptOutcome.SUPERSEDED, now)
            return await self._keep_late(tx, current, attempt.row, tokens, installed=False)
        after = after_consent(current.granted(now, request.generation), consent, context)
        grant = Grant.from_tokens(
            tokens,
            generation=after.generation,
            requested=consent.scopes,
            at=since,
            renewable=context.renewable or context.issues_short_lived_token,
            short_lived=context.issues_short_lived_token,
        )
        saved = await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=current.revision)
        await install_further_slots(tx, self.services.store.ring, request, saved, tokens, since, now)
        # not `close_attempt`: a takeover in this moment is a conflict, and the row shows it at the next try
        await tx.attempts.close(row, AttemptOutcome.INSTALLED, now)
        await record_recovery(tx, request, current, now)
        await end_unless_done(tx, consent, ConsentStatus.DONE)
        detail = {"generation": grant.generation, "scopes": list(grant.scopes), "consent": consent.id}
        await append_audit(tx, request, AuditAction.GRANT_INSTALLED, now, **detail)
        if was_unread:  # its workflow has given the consent up
            await signal_late_tokens(tx, request, attempt.row, now)
        return context.grant_result(saved, grant)

    async def _keep_late(
        self, tx: Transaction, current: Connection, row: Attempt, tokens: TokenSet, *, installed: bool
    ) -> GrantResult | None:
        """The attempt has ended: its reply was replayed, or another worker took over and was refused.

        None: the connection has ended, and the tokens are revoked.
        """
        call, now = self._request, self.services.clock.now()
        grant = await tx.grants.get(call.tenant, call.connection_id)
        if installed and grant is not None:
            return self.context.grant_result(current, grant)  # perhaps by this worker's lost commit
        if current.state is LifecycleState.REVOKING or current.state.is_final:
            return None
        if current.generation == row.from_generation and current.state in STATES_WITHOUT_GRANT:
            await keep_late_tokens(tx, call, row, tokens, now)
        else:  # revoking them might end the grant that is installed
            detail = {"attempt": row.id, "state": current.state, "revoked": False}
            await append_audit(tx, call, AuditAction.LATE_TOKENS_RECEIVED, now, **detail)
        return GrantResult(attempt_id=row.id, failure=ErrorCode.OUTCOME_UNKNOWN)


def _is_overtaken(current: Connection, attempt: Attempt) -> bool:
    """True when another grant came since the tokens were set aside, or the provider ended the grant."""
    ended = current.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE and current.changed_at > attempt.opened_at
    return ended or current.generation != attempt.from_generation


async def record_failed_try(tx: Transaction, call: ConsentRequest, failure: Failure, now: datetime) -> None:
    """Record the reason; a failure that the same request meets again ends the consent."""
    status = ConsentStatus.FAILED if failure.rule.retry is RetryAdvice.NEVER else None
    await _record_failed_consent(tx, call, failure, status, now)


async def record_ended_consent(
    tx: Transaction, call: ConsentRequest, failure: Failure, now: datetime
) -> None:
    """End a consent that can't lead to tokens any more, and record the reason."""
    denied = failure.code is ErrorCode.CONSENT_DENIED
    await _record_failed_consent(
        tx, call, failure, ConsentStatus.DENIED if denied else ConsentStatus.FAILED, now
    )


async def _record_failed_consent(
    tx: Transaction, call: ConsentRequest, failure: Failure, status: ConsentStatus | None, now: datetime
) -> None:
    """Record the reason on consent and connection, and end the consent if it gets another `status`."""
    consent = await tx.consents.get(call.tenant, call.consent_id)
    if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
        return
    if status is not None:
        await end_consent(tx, consent, status, failure.code)
    current = await load_connection(tx, call)
    if current.state is LifecycleState.PENDING_CONSENT:
        waiting = current.waiting_for_grant(failure.code, now)
        await tx.connections.replace(waiting, expected=current.revision)
    detail = {"reason": failure.code, "consent": consent.id, **denied_source(failure)}
    await append_audit(tx, call, AuditAction.CONSENT_FAILED, now, **detail)


async def require_no_open_attempt(services: GrantServices, tx: Transaction, connection: Connection) -> None:
    """Raises Failure REFRESH_PENDING while an open attempt may still bring tokens: if the connection
    ended now, nothing could use them."""
    attempt = await open_attempt(tx, connection)
    tracker = services.single_use.tracker
    if attempt is not None and tracker.may_be_answered(attempt):
        raise tracker.pending("a token is still on its way")
