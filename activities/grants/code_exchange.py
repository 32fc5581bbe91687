"""The end of a consent: its code exchanged for the first tokens, or its deadline, or a no."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from temporalio import activity

from activities.grants.client_secrets import is_client_refused
from activities.grants.first_tokens import (
    merge_callback,
    read_first_tokens,
    send_code_exchange,
    token_endpoint_for_code,
)
from activities.grants.import_export import end_consent, install_import, is_import_pending
from activities.grants.late_tokens import keep_late_tokens, signal_late_tokens
from activities.grants.orphaned_tokens import revoke_late_tokens, revoke_orphaned_tokens
from activities.grants.token_request import ResponseParser
from activities.grants.token_slots import install_further_slots
from activities.integrations.staged_definitions import may_be_definition_fault
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import OutcomeHandler, SingleUseAttempt, open_attempt
from activities.support.clocks import obtained_at
from activities.support.connection_health import record_recovery
from activities.support.failures import failed_grant_result, is_temporary_outage
from activities.support.heartbeat import heartbeating
from activities.support.provider_activities import ProviderActivities
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, commit_with_retries, load_connection
from evergrant_server.core.access import Endpoints
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.connections.id_token import require_nonce
from evergrant_server.core.connections.refresh_rules import RefreshRules, Rotation
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.lifecycle.late_tokens import STATES_WITHOUT_GRANT
from evergrant_server.core.lifecycle.snapshot import grant_result_of
from evergrant_server.core.messages.connection import (
    ActivityName,
    EndConsent,
    ExchangeCode,
    GrantResult,
    RequestFirstTokens,
)
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.definition.templates import params_from_metadata
from providers.responses.raw_reply import RawReply

RETRIED_BY_TEMPORAL = (ErrorCode.REFRESH_PENDING, ErrorCode.JOURNAL_UNAVAILABLE)
MAX_TRIES = 200  # tries, three seconds apart: longer than an answer may be waited for
CODE_RULES = RefreshRules(rotation=Rotation.STRICT)  # RFC 6749 section 4.1.2


class CodeExchangeActivities(ProviderActivities):
    """Exchanges codes and writes how a consent ended."""

    @activity.defn(name=ActivityName.EXCHANGE_CODE)
    async def exchange_code(self, order: ExchangeCode) -> GrantResult:
        """Spend the code of a consent, once. Says what the store holds afterwards.

        An import is a consent that came with its tokens: they are installed, and nothing is spent.
        """
        async with heartbeating():
            try:
                consent = await self._load_consent(order)
                held = await self._contexts.load(order.tenant, order.connection_id)
                if consent.kind is ConsentKind.IMPORT:
                    return await install_import(self._store, self._clock, order, held, consent)
                return await self._result_if_ended(consent, held) or await self._client_secrets.try_each(
                    order, held, partial(self._exchange_with_definition, order, consent)
                )
            except Failure as failure:
                if failure.code in RETRIED_BY_TEMPORAL and activity.info().attempt < MAX_TRIES:
                    raise  # nothing was sent. Temporal asks again; nobody else would
                if failure.kind is FailureKind.PLATFORM_UNAVAILABLE and await is_import_pending(
                    self._store, order
                ):
                    raise  # its tokens are good when the platform is again
                news = failed_grant_result(failure)
                if (done := await self._result_of_replay(order)) is not None:
                    return done
                await self._fail_consent(order, failure)
                return news

    async def _result_of_replay(self, order: ExchangeCode | RequestFirstTokens) -> GrantResult | None:
        """What a replay brought while this try was under way: the code that it wanted is gone since."""
        async with self._store.read() as tx:
            consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.DONE:
            return None
        return await self._result_if_ended(
            consent, await self._contexts.load(order.tenant, order.connection_id)
        )

    async def _fail_consent(self, order: ExchangeCode, failure: Failure) -> None:
        """A code that can't be spent doesn't wait for ever: the subject opens a link again.

        An import's tokens are no such code: they stay, until its deadline, unless nobody can open them.
        """

        async def give_up(tx: Transaction) -> None:
            consent = await tx.consents.get(order.tenant, order.consent_id)
            waits = consent is not None and consent.status is ConsentStatus.CODE_RECEIVED
            kept = (
                consent is not None and consent.kind is ConsentKind.IMPORT and not consent.came_from_browser
            )
            if consent is None or not waits or (kept and failure.code is not ErrorCode.SEAL_BROKEN):
                return
            await end_consent(tx, consent, ConsentStatus.FAILED, failure.code)
            now = self._clock.now()
            await append_audit(
                tx, order, AuditAction.CONSENT_FAILED, now, reason=failure.code, consent=consent.id
            )

        await commit_with_retries(self._store, give_up)

    async def _load_consent(self, order: ExchangeCode | RequestFirstTokens) -> Consent:
        async with self._store.read() as tx:
            consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.connection_id != order.connection_id:
            raise Failure(ErrorCode.CALLBACK_INVALID, f"there is no consent {order.consent_id}")
        return consent

    async def _result_if_ended(self, consent: Consent, held: ProviderContext) -> GrantResult | None:
        """The answer when an earlier try of this activity had already committed."""
        if consent.status is ConsentStatus.DONE and held.grant is not None:
            return held.grant_result(held.connection, held.grant)
        if consent.status is not ConsentStatus.CODE_RECEIVED:
            return GrantResult(
                failure=ErrorCode(consent.failure or ErrorCode.CALLBACK_INVALID), consent_over=True
            )
        if held.connection.state is LifecycleState.REVOKING or held.connection.state.is_final:
            raise Failure(ErrorCode.CONNECTION_REVOKED)  # an unspent code is no grant: nothing to revoke
        return None

    async def _exchange_with_definition(
        self, order: ExchangeCode, consent: Consent, held: ProviderContext
    ) -> GrantResult:
        ask = partial(self._exchange, order, consent, held.endpoints)
        return await self._definitions.run(held, ask)

    async def _exchange(
        self, order: ExchangeCode, consent: Consent, first_asked: Endpoints, held: ProviderContext
    ) -> GrantResult:
        async with self._store.read() as tx:
            code = await tx.consents.code(consent)
            verifier = await tx.consents.verifier(consent)
        redirect_uri = consent.redirect_uri
        token_endpoint = token_endpoint_for_code(consent, first_asked, held.endpoints)
        if redirect_uri is None or token_endpoint is None:
            raise Failure(ErrorCode.CALLBACK_INVALID, "the consent was never started")
        endpoints = held.endpoints.model_copy(update={"token_endpoint": token_endpoint})
        use = await self._single_use.open(
            AttemptKind.CODE_EXCHANGE,
            held.connection,
            CODE_RULES,
            token_valid=False,
            credential=consent.id,
        )
        reading = self._parser(held, consent, self._clock.now)
        at, params = (
            self._clock.now(),
            held.integration.params | params_from_metadata(held.spec, consent.facts),
        )
        news = await self._single_use.spend(
            use,
            order,
            send=lambda check: send_code_exchange(
                self._sender, held, endpoints, code, verifier, redirect_uri, params, at, before_send=check
            ),
            ending=self._outcome_handler(order, held, consent, reading, provisional=held.provisional),
        )
        metrics.count_code_exchange(held.spec.name, news.failure)
        return news.model_copy(update={"used_previous_definition": reading.used_previous_definition})

    def _parser(
        self, held: ProviderContext, consent: Consent, came_at: Callable[[], datetime]
    ) -> ResponseParser:
        return ResponseParser(held, lambda by, reply: self._read_tokens(by, reply, consent, came_at()))

    def _read_tokens(
        self, held: ProviderContext, reply: RawReply, consent: Consent, came_at: datetime
    ) -> TokenSet:
        """Pure. Raises as `read_tokens`, and as `require_nonce`: what isn't ours is not installed."""
        tokens = read_first_tokens(held, reply, consent.scopes, came_at)
        require_nonce(tokens.id_token, consent.nonce_hash)
        return tokens

    async def replay(self, use: SingleUseAttempt, answer: JournaledReply) -> GrantResult:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = ExchangeCode.model_validate(answer.request)
        consent = await self._load_consent(order)
        held = await self._contexts.load(order.tenant, order.connection_id)
        reading = self._parser(held, consent, lambda: answer.came_at)
        provisional = held.provisional or answer.provisional  # it may have been rolled back since
        ending = self._outcome_handler(order, held, consent, reading, provisional=provisional)
        return await self._single_use.conclude(use, answer.reply, ending)

    def _outcome_handler(
        self,
        order: ExchangeCode,
        held: ProviderContext,
        consent: Consent,
        reading: ResponseParser,
        *,
        provisional: bool,
    ) -> OutcomeHandler[GrantResult]:
        return OutcomeHandler(
            judge=reading.tokens,
            commit=partial(self._install_tokens, order, held, consent),
            fail=partial(self._record_failure, order, held, consent, provisional),
            provisional=provisional,
        )

    async def _install_tokens(
        self,
        order: ExchangeCode | RequestFirstTokens,
        held: ProviderContext,
        consent: Consent,
        use: SingleUseAttempt,
        tokens: TokenSet,
    ) -> GrantResult:
        attempt, tokens = use.row, merge_callback(tokens, consent)
        since = obtained_at(self._clock, attempt, tokens)

        async def install(tx: Transaction) -> GrantResult | None:
            now = self._clock.now()
            current = await load_connection(tx, order)
            ended = await tx.attempts.get(attempt.tenant, attempt.id)
            if ended is None or ended.outcome not in (None, AttemptOutcome.UNREAD):
                installed = ended is not None and ended.outcome is AttemptOutcome.INSTALLED
                return await self._keep_or_record_late(
                    tx, order, held, current, use, tokens, installed=installed
                )
            if current.state.is_final:
                return None
            was_unread = ended.outcome is AttemptOutcome.UNREAD
            if was_unread and _is_overtaken(current, attempt):
                await tx.attempts.close(ended, AttemptOutcome.SUPERSEDED, now)
                return await self._keep_or_record_late(tx, order, held, current, use, tokens, installed=False)
            # a consent by which scopes were added or given up says what the next one asks for
            granted = current.granted(now, order.generation)
            looking = FollowUp.LOOKING_UP if held.spec.post_auth and current.flow.is_bearer else None
            after = granted.model_copy(
                update={
                    "requested_scopes": consent.scopes,
                    "chain_scopes": current.chain_scopes | consent.chain_scopes,
                    "follow_up": looking,
                }
            )
            grant = Grant.from_tokens(
                tokens,
                generation=after.generation,
                requested=consent.scopes,
                at=since,
                renewable=held.renewable or held.issues_short_lived_token,
                interim=held.issues_short_lived_token,
            )
            saved = await tx.grants.install(
                after, tokens, grant, origin=Origin.NEW, expected=current.revision
            )
            await install_further_slots(tx, self._store.ring, order, saved, tokens, since, now)
            # not `closed`: who takes over in this moment makes this a conflict, and its row says so then
            await tx.attempts.close(ended, AttemptOutcome.INSTALLED, now)
            await record_recovery(tx, order, current, now)
            await self._close_consent(tx, consent, ConsentStatus.DONE)
            await append_audit(
                tx,
                order,
                AuditAction.GRANT_INSTALLED,
                now,
                generation=grant.generation,
                scopes=list(grant.scopes),
                consent=consent.id,
            )
            if was_unread:  # its workflow has given the consent up
                await signal_late_tokens(tx, order, attempt, now)
            return held.grant_result(saved, grant)

        news = await commit_with_retries(self._store, install, use.keys)
        if news is not None:
            return news
        return await revoke_orphaned_tokens(self._store, self._clock, self._sender, order, held, use, tokens)

    async def _keep_or_record_late(
        self,
        tx: Transaction,
        order: ExchangeCode | RequestFirstTokens,
        held: ProviderContext,
        current: Connection,
        use: SingleUseAttempt,
        tokens: TokenSet,
        *,
        installed: bool,
    ) -> GrantResult | None:
        """The attempt is over: a neighbour replayed it, or took over and was refused. None: nobody wants
        what came, and the provider is told."""
        grant = await tx.grants.get(order.tenant, order.connection_id)
        if installed and grant is not None:
            return held.grant_result(current, grant)  # perhaps by us, and nobody heard of the commit
        if current.state is LifecycleState.REVOKING or current.state.is_final:
            return None
        attempt, now = use.row, self._clock.now()
        if current.generation == attempt.from_generation and current.state in STATES_WITHOUT_GRANT:
            await keep_late_tokens(tx, order, use, tokens, now)  # after a refused use it is verified first
        else:  # another grant is at work, which a revocation of these might end
            said = {"attempt": attempt.id, "state": current.state, "revoked": False}
            await append_audit(tx, order, AuditAction.LATE_TOKENS_RECEIVED, now, **said)
        return GrantResult(attempt_id=attempt.id, failure=ErrorCode.OUTCOME_UNKNOWN)

    async def _record_failure(
        self,
        order: ExchangeCode,
        held: ProviderContext,
        consent: Consent,
        provisional: bool,
        use: SingleUseAttempt,
        failure: Failure,
        outcome: AttemptOutcome | None,
    ) -> GrantResult:
        """The code is done with, and the subject opens the link again; but for a refused secret
        when there is another one, for what may be a staged definition's fault, and for a code that
        we were too late to send: it is still good."""
        # a yes that nobody can read may hold its tokens: a second use would end them (RFC 6749 4.1.2)
        said_yes = outcome in (None, AttemptOutcome.UNREAD) and failure.code is ErrorCode.REPLY_UNREADABLE
        again = may_be_definition_fault(failure, provisional=provisional) and not said_yes
        unsent = outcome is AttemptOutcome.NOT_SENT and failure.code in RETRIED_BY_TEMPORAL
        code = failure.code
        if code is ErrorCode.GRANT_REJECTED and use.row.sends > 1:
            code = ErrorCode.OUTCOME_UNKNOWN  # an earlier send spent it, and its answer is lost

        async def settle(tx: Transaction) -> GrantResult:
            now = self._clock.now()
            if again and outcome is None:
                return GrantResult(attempt_id=use.row.id, failure=failure.code)  # and stays open
            await close_attempt(tx, use.row, outcome or AttemptOutcome.REFUSED, now)
            if unsent or again:
                return GrantResult(attempt_id=use.row.id, failure=failure.code)
            if is_client_refused(failure) and held.other_client is not None:
                return GrantResult(attempt_id=use.row.id, failure=failure.code, client_refused=True)
            await self._close_consent(tx, consent, ConsentStatus.FAILED, code)
            await append_audit(tx, order, AuditAction.CONSENT_FAILED, now, reason=code, consent=consent.id)
            return GrantResult(attempt_id=use.row.id, failure=code, consent_over=True)

        news = await commit_with_retries(self._store, settle)
        if unsent:
            raise failure
        return news

    async def _close_consent(
        self, tx: Transaction, consent: Consent, status: ConsentStatus, failure: ErrorCode | None = None
    ) -> None:
        current = await tx.consents.get(consent.tenant, consent.id)
        if current is not None and current.status is not ConsentStatus.DONE:  # what is done stays done
            await end_consent(tx, current, status, failure)

    async def _require_no_open_attempt(self, tx: Transaction, connection: Connection) -> None:
        """Raises Failure REFRESH_PENDING while what is under way may still bring the tokens: they came in
        time, and with their connection ended nobody could have them."""
        attempt = await open_attempt(tx, connection)
        if attempt is not None and self._single_use.may_be_answered(attempt):
            look_again = self._single_use.limits.poll_interval.total_seconds()
            raise Failure(ErrorCode.REFRESH_PENDING, "a token is still on its way", retry_after=look_again)

    @activity.defn(name=ActivityName.END_CONSENT)
    async def end_consent(self, order: EndConsent) -> GrantResult | None:
        """Write that nobody consented, unless something else was true first: then say what.

        Raises Failure REFRESH_PENDING while that isn't known yet: Temporal asks again.
        """

        async def end(tx: Transaction) -> GrantResult | None:
            now = self._clock.now()
            current = await load_connection(tx, order)
            if current.state is not LifecycleState.PENDING_CONSENT:
                return await _stored_result(tx, current, self._contexts.announce_days)
            received = await tx.consents.received_consent(order.tenant, order.connection_id)
            brought = received is not None and (
                received.kind is ConsentKind.CODE or received.came_from_browser
            )
            if received is not None and brought:  # its message comes later
                return GrantResult(state=current.state, consent_id=received.id)
            await self._require_no_open_attempt(tx, current)
            after = current.consent_denied(now) if order.denied else current.consent_expired(now)
            await tx.connections.replace(after, expected=current.revision)
            if received is not None:  # nothing came of it until now: its secrets don't stay behind
                await end_consent(tx, received, ConsentStatus.FAILED, ErrorCode.CONSENT_EXPIRED)
            action = AuditAction.CONSENT_DENIED if order.denied else AuditAction.CONSENT_EXPIRED
            await append_audit(tx, order, action, now)
            return None

        news = await commit_with_retries(self._store, end)
        if news is None:
            await self._revoke_late_tokens(order)
        return news

    async def _revoke_late_tokens(self, order: EndConsent) -> None:
        """An answer that came late isn't verified any more."""
        async with self._store.read() as tx:
            kept = await tx.late_tokens.of_connection(order.tenant, order.connection_id)
        try:
            if kept:
                held = await self._contexts.load(order.tenant, order.connection_id)
                await revoke_late_tokens(self._store, self._clock, self._sender, order, held, kept)
        except Failure as failure:
            if is_temporary_outage(failure):
                raise  # Temporal asks again
            # without its definition nobody can be told: they stay sealed


def _is_overtaken(current: Connection, attempt: Attempt) -> bool:
    """Since its tokens were set aside another grant came, or the provider ended all that it had given."""
    ended = current.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE and current.changed_at > attempt.opened_at
    return ended or current.generation != attempt.from_generation


async def _stored_result(
    tx: Transaction, current: Connection, announce_days: tuple[int, ...] | None
) -> GrantResult | None:
    """What the store says of a connection whose consent is over for its workflow; None: the same."""
    if current.state.is_final:
        return None
    grant = await tx.grants.get(current.tenant, current.id)
    integration = await tx.integrations.get(current.tenant, current.integration_id)
    if current.state is LifecycleState.REVOKING or grant is None or integration is None:
        return GrantResult(state=current.state)
    return grant_result_of(current, grant, integration.refresh, announce_days)
