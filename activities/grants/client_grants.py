"""The first grant of a connection whose tokens nobody consents to: asked for, judged, installed."""

from datetime import datetime
from functools import partial

from temporalio import activity

from activities.grants.client_secrets import is_client_refused
from activities.grants.code_exchange import MAX_TRIES, RETRIED_BY_TEMPORAL, CodeExchangeActivities
from activities.grants.import_export import end_consent, install_import
from activities.grants.subject_tokens import load_subject_token
from activities.grants.token_request import (
    ResponseParser,
    read_client_grant_tokens,
    token_request_by_client_grant,
)
from activities.integrations.staged_definitions import may_be_definition_fault
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import OutcomeHandler, SingleUseAttempt
from activities.support.connection_health import denied_source
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure, RetryAdvice
from evergrant_server.core.messages.connection import ActivityName, GrantResult, RequestFirstTokens
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from providers.responses.raw_reply import RawReply


class ClientGrantActivities(CodeExchangeActivities):
    """Installs as a consent's end does; asks the provider with what the integration holds."""

    @activity.defn(name=ActivityName.REQUEST_CLIENT_GRANT)
    async def request_client_grant(self, order: RequestFirstTokens) -> GrantResult:
        """Make the first tokens. What can be repaired leaves the consent waiting for the next try."""
        async with heartbeating():
            try:
                consent = await self._load_consent(order)
                held = await self._contexts.load(order.tenant, order.connection_id)
                if consent.kind is ConsentKind.IMPORT:  # a credential that somebody brought
                    return await install_import(self._store, self._clock, order, held, consent)
                ask = partial(self._request_tokens, order, consent)
                return await self._result_if_ended(consent, held) or await self._client_secrets.try_each(
                    order, held, lambda by: self._definitions.run(by, ask)
                )
            except Failure as failure:
                if failure.code in RETRIED_BY_TEMPORAL and activity.info().attempt < MAX_TRIES:
                    raise  # nothing was sent, and Temporal asks again
                news = failed_grant_result(failure)
                if (done := await self._result_of_replay(order)) is not None:
                    return done
                await self._record_failed_try(order, failure)
                return news

    async def _request_tokens(
        self, order: RequestFirstTokens, consent: Consent, held: ProviderContext
    ) -> GrantResult:
        exchanged = await load_subject_token(
            self._store, self._contexts, self._clock, order.context, held, consent
        )
        renewal = token_request_by_client_grant(self._sender, self._clock, held, consent.scopes, exchanged)
        use = await self._single_use.open(
            AttemptKind.CLIENT_GRANT, held.connection, renewal.rules, token_valid=False, credential=consent.id
        )
        reading = self._parser(held, consent, self._clock.now)
        ending = self._client_grant_handler(order, held, consent, reading, provisional=held.provisional)
        news = await self._single_use.spend(use, order, send=renewal.send, ending=ending)
        return news.model_copy(update={"used_previous_definition": reading.used_previous_definition})

    async def replay(self, use: SingleUseAttempt, answer: JournaledReply) -> GrantResult:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = RequestFirstTokens.model_validate(answer.request)
        consent = await self._load_consent(order)
        held = await self._contexts.load(order.tenant, order.connection_id)
        reading = self._parser(held, consent, lambda: answer.came_at)
        provisional = held.provisional or answer.provisional  # it may have been rolled back since
        ending = self._client_grant_handler(order, held, consent, reading, provisional=provisional)
        return await self._single_use.conclude(use, answer.reply, ending)

    def _read_tokens(
        self, held: ProviderContext, reply: RawReply, consent: Consent, came_at: datetime
    ) -> TokenSet:
        return read_client_grant_tokens(held, reply, consent.scopes, came_at)

    def _client_grant_handler(
        self,
        order: RequestFirstTokens,
        held: ProviderContext,
        consent: Consent,
        reading: ResponseParser,
        *,
        provisional: bool,
    ) -> OutcomeHandler[GrantResult]:
        return OutcomeHandler(
            judge=reading.tokens,
            commit=partial(self._install_client_grant, order, held, consent),
            fail=partial(self._record_client_grant_failure, order, held, provisional),
            provisional=provisional,
            spends_credential=False,
        )

    async def _install_client_grant(
        self,
        order: RequestFirstTokens,
        held: ProviderContext,
        consent: Consent,
        use: SingleUseAttempt,
        tokens: TokenSet,
    ) -> GrantResult:
        """A token that was brought to be exchanged stays, where refresh tokens are: the next one is
        made from it too."""
        if held.connection.flow is Flow.TOKEN_EXCHANGE and held.connection.source is None:
            async with self._store.read() as tx:
                brought = (await tx.consents.imported_tokens(consent)).access_token
            tokens = tokens.model_copy(update={"refresh_token": brought})
        return await self._install_tokens(order, held, consent, use, tokens)

    async def _record_client_grant_failure(
        self,
        order: RequestFirstTokens,
        held: ProviderContext,
        provisional: bool,
        use: SingleUseAttempt,
        failure: Failure,
        outcome: AttemptOutcome | None,
    ) -> GrantResult:
        """An answer that was lost holds a token that nobody has; the next try asks for another, and
        so does the definition before a staged one."""

        async def settle(tx: Transaction) -> GrantResult:
            await close_attempt(tx, use.row, outcome or AttemptOutcome.REFUSED, self._clock.now())
            if is_client_refused(failure) and held.other_client is not None:
                return GrantResult(attempt_id=use.row.id, failure=failure.code, client_refused=True)
            if may_be_definition_fault(failure, provisional=provisional):
                return GrantResult(attempt_id=use.row.id, failure=failure.code)
            await self._write_failed_try(tx, order, failure)
            return GrantResult(attempt_id=use.row.id, failure=failure.code, retry_after=failure.retry_after)

        return await commit_with_retries(self._store, settle)

    async def _record_failed_try(self, order: RequestFirstTokens, failure: Failure) -> None:
        await commit_with_retries(self._store, lambda tx: self._write_failed_try(tx, order, failure))

    async def _write_failed_try(self, tx: Transaction, order: RequestFirstTokens, failure: Failure) -> None:
        """Say why on the row; a failure that the same request meets again ends the consent."""
        now = self._clock.now()
        consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return
        if failure.rule.retry is RetryAdvice.NEVER:
            await end_consent(tx, consent, ConsentStatus.FAILED, failure.code)
        current = await load_connection(tx, order)
        if current.state is LifecycleState.PENDING_CONSENT:
            await tx.connections.replace(
                current.waiting_for_grant(failure.code, now), expected=current.revision
            )
        said = {"reason": failure.code, "consent": consent.id, **denied_source(failure)}
        await append_audit(tx, order, AuditAction.CONSENT_FAILED, now, **said)
