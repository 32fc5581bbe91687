"""Client grants: first tokens asked for with what the integration holds (RFC 6749 section 4.4, RFC 7523)."""

from datetime import datetime

from temporalio import activity

from activities.consents.first_grant import (
    FirstGrantOutcome,
    is_retried_by_temporal,
    load_consent,
    record_failed_try,
    result_if_ended,
    result_of_replay,
)
from activities.consents.import_export import install_import
from activities.grants.candidates import candidates, may_be_definition_fault
from activities.grants.client_secrets import is_client_refused
from activities.grants.services import GrantServices
from activities.grants.subject_tokens import load_subject_token
from activities.grants.token_replies import read_client_grant_tokens
from activities.grants.token_request import client_grant_token_request
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import SingleUseAttempt
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import close_attempt, commit_with_retries
from evergrant_server.core.connections.consent import ConsentKind
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure
from evergrant_server.core.messages.activities import GrantResult, RequestFirstTokens
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from providers.responses.raw_reply import RawReply


class ClientGrantActivities:
    """Requests first tokens that no subject has to consent to."""

    def __init__(self, services: GrantServices) -> None:
        self._services = services

    @activity.defn(name=ActivityName.REQUEST_CLIENT_GRANT)
    async def request_client_grant(self, request: RequestFirstTokens) -> GrantResult:
        """Get the first tokens. After a failure that can be repaired the consent waits for the next try."""
        async with heartbeating():
            try:
                return await self._request(request)
            except Failure as failure:
                if is_retried_by_temporal(failure):
                    raise
                return await self._result_of_failure(request, failure)

    async def _request(self, request: RequestFirstTokens) -> GrantResult:
        """The request from load to commit."""
        services = self._services
        consent = await load_consent(services, request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        if consent.kind is ConsentKind.IMPORT:  # a static credential
            return await install_import(services.store, services.clock, request, context, consent)
        result = result_if_ended(consent, context)
        if result is not None:
            return result
        async for candidate in candidates(services, request, context):
            context = candidate.context
            with candidate:
                subject_token = await load_subject_token(services, request.context, context, consent)
                now = services.clock.now()
                token_request = client_grant_token_request(context, consent.scopes, now, subject_token)
                attempt = await services.single_use.open(
                    AttemptKind.CLIENT_GRANT,
                    context.connection,
                    token_request.rules,
                    token_valid=False,
                    credential=consent.id,
                )
                reply = token_request.send(services.sender, attempt.check)
                outcome = ClientGrantOutcome(services, request, context, consent)
                # in a task that nothing cuts: send, journal the reply, judge it, commit
                candidate.result = await services.single_use.spend(attempt, request, reply, outcome)
            result = candidate.result
        assert result is not None
        return result

    async def _result_of_failure(self, request: RequestFirstTokens, failure: Failure) -> GrantResult:
        result = failed_grant_result(failure)
        replayed = await result_of_replay(self._services, request)
        if replayed is not None:
            return replayed
        now = self._services.clock.now()
        await commit_with_retries(
            self._services.store, lambda tx: record_failed_try(tx, request, failure, now)
        )
        return result

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, RequestFirstTokens.model_validate(journaled.request)
        consent = await load_consent(services, request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        outcome = ClientGrantOutcome(services, request, context, consent, provisional=journaled.provisional)
        return await services.single_use.conclude(attempt, journaled, outcome)


class ClientGrantOutcome(FirstGrantOutcome):
    """A lost reply holds a token that nothing uses: the next try asks for another."""

    spends_credential = False

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        return read_client_grant_tokens(context, reply, self.consent.scopes, came_at)

    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> GrantResult:
        """An imported subject token is kept as a refresh token is: the next token is made from it too."""
        connection = self.context.connection
        if connection.flow is Flow.TOKEN_EXCHANGE and connection.source is None:
            async with self.services.store.read() as tx:
                imported = (await tx.consents.imported_tokens(self.consent)).access_token
            tokens = tokens.model_copy(update={"refresh_token": imported})
        return await super().commit(attempt, tokens)

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        now, row = self.services.clock.now(), attempt.row
        await close_attempt(tx, row, outcome or AttemptOutcome.REFUSED, now)
        if is_client_refused(failure) and self.context.other_client is not None:
            return GrantResult(attempt_id=row.id, failure=failure.code, client_refused=True)
        if may_be_definition_fault(failure, provisional=self.provisional):
            return GrantResult(attempt_id=row.id, failure=failure.code)
        await record_failed_try(tx, self._request, failure, now)
        return GrantResult(attempt_id=row.id, failure=failure.code, retry_after=failure.retry_after)
