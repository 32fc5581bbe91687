"""Client grants: first tokens for the integration's own credentials (RFC 6749 section 4.4, RFC 7523)."""

from datetime import datetime

from temporalio import activity

from activities.consents.first_grant import FirstGrantActivities
from activities.consents.first_grant_outcome import FirstGrantOutcome, record_failed_try
from activities.grants.candidates import may_be_definition_fault
from activities.grants.client_secrets import is_client_refused
from activities.grants.subject_tokens import load_subject_token
from activities.grants.token_replies import read_client_grant_tokens
from activities.grants.token_request import TokenRequest, client_grant_token_request
from activities.single_use.attempt import SingleUseAttempt
from activities.support.provider_context import ProviderContext
from activities.support.transactions import close_attempt
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.activities import GrantResult, RequestFirstTokens
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from providers.responses.raw_reply import RawReply


class ClientGrantOutcome(FirstGrantOutcome):
    """Installs the tokens of a client grant. A token in a lost reply stays unused."""

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


class ClientGrantActivities(FirstGrantActivities[RequestFirstTokens]):
    """Requests first tokens that no subject has to consent to."""

    kind = AttemptKind.CLIENT_GRANT
    request_type = RequestFirstTokens
    outcome_type = ClientGrantOutcome

    @activity.defn(name=ActivityName.REQUEST_CLIENT_GRANT)
    async def request_client_grant(self, request: RequestFirstTokens) -> GrantResult:
        """Get the first tokens. After a failure that can be repaired the consent waits for the next try."""
        return await self._get_first_grant(request)

    async def _token_request(
        self, consent: Consent, context: ProviderContext, request: RequestFirstTokens, loaded: Endpoints
    ) -> TokenRequest:
        subject_token = await load_subject_token(self._services, request.context, context, consent)
        now = self._services.clock.now()
        return client_grant_token_request(context, consent.scopes, now, subject_token)

    async def _record_failed_activity(
        self, tx: Transaction, request: RequestFirstTokens, failure: Failure
    ) -> bool:
        await record_failed_try(tx, request, failure, self._services.clock.now())
        return False
