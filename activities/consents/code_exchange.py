"""Code exchange: spend an authorization code for the first tokens (RFC 6749 section 4.1.3)."""

from datetime import datetime

from temporalio import activity

from activities.consents.first_grant import (
    FirstGrantOutcome,
    is_retried_by_temporal,
    load_consent,
    may_be_sent_later,
    result_if_ended,
    result_of_replay,
)
from activities.consents.import_export import install_import, is_import_pending
from activities.grants.candidates import candidates, may_be_definition_fault
from activities.grants.client_secrets import is_client_refused
from activities.grants.consent_changes import end_consent, end_unless_done
from activities.grants.services import GrantServices
from activities.grants.token_replies import read_first_tokens, token_endpoint_for_code
from activities.grants.token_request import CodeExchangeRequest
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import SingleUseAttempt
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, commit_with_retries
from evergrant_server.core.access import Endpoints
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.id_token import require_nonce
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.activities import ExchangeCode, GrantResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.definition.templates import params_from_metadata
from providers.responses.raw_reply import RawReply


class CodeExchangeActivities:
    """Exchanges the codes of consents, and installs imports, which are consents with their tokens."""

    def __init__(self, services: GrantServices) -> None:
        self._services = services

    @activity.defn(name=ActivityName.EXCHANGE_CODE)
    async def exchange_code(self, request: ExchangeCode) -> GrantResult:
        """Spend the code of a consent, once. Returns what the store holds afterwards."""
        async with heartbeating():
            try:
                return await self._exchange(request)
            except Failure as failure:
                if is_retried_by_temporal(failure):
                    raise
                platform = failure.kind is FailureKind.PLATFORM_UNAVAILABLE
                if platform and await is_import_pending(self._services.store, request):
                    raise  # its tokens can be installed once the platform is available
                return await self._result_of_failure(request, failure)

    async def _exchange(self, request: ExchangeCode) -> GrantResult:
        """The exchange from load to commit."""
        services = self._services
        consent = await load_consent(services, request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        if consent.kind is ConsentKind.IMPORT:
            return await install_import(services.store, services.clock, request, context, consent)
        result = result_if_ended(consent, context)
        if result is not None:
            return result
        loaded_endpoints = context.endpoints
        async for candidate in candidates(services, request, context):
            context = candidate.context
            with candidate:
                token_request = await self._token_request(consent, context, loaded_endpoints)
                attempt = await services.single_use.open(
                    AttemptKind.CODE_EXCHANGE,
                    context.connection,
                    token_request.rules,
                    token_valid=False,
                    credential=consent.id,
                )
                reply = token_request.send(services.sender, attempt.check)
                outcome = CodeExchangeOutcome(services, request, context, consent)
                # in a task that nothing cuts: send, journal the reply, judge it, commit
                candidate.result = await services.single_use.spend(attempt, request, reply, outcome)
                metrics.count_code_exchange(context.spec.name, candidate.result.failure)
            result = candidate.result
        assert result is not None
        return result

    async def _token_request(
        self, consent: Consent, context: ProviderContext, loaded_endpoints: Endpoints
    ) -> CodeExchangeRequest:
        async with self._services.store.read() as tx:
            code = await tx.consents.code(consent)
            verifier = await tx.consents.verifier(consent)
        token_endpoint = token_endpoint_for_code(consent, loaded_endpoints, context.endpoints)
        if consent.redirect_uri is None or token_endpoint is None:
            raise Failure(ErrorCode.CALLBACK_INVALID, "the consent was never started")
        return CodeExchangeRequest(
            context,
            context.endpoints.model_copy(update={"token_endpoint": token_endpoint}),
            code,
            verifier,
            consent.redirect_uri,
            context.integration.params | params_from_metadata(context.spec, consent.facts),
            self._services.clock.now(),
        )

    async def _result_of_failure(self, request: ExchangeCode, failure: Failure) -> GrantResult:
        result = failed_grant_result(failure)
        replayed = await result_of_replay(self._services, request)
        if replayed is not None:
            return replayed
        await commit_with_retries(self._services.store, lambda tx: self._fail_consent(tx, request, failure))
        return result

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, ExchangeCode.model_validate(journaled.request)
        consent = await load_consent(services, request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        outcome = CodeExchangeOutcome(services, request, context, consent, provisional=journaled.provisional)
        return await services.single_use.conclude(attempt, journaled, outcome)

    async def _fail_consent(self, tx: Transaction, request: ExchangeCode, failure: Failure) -> None:
        """End a consent whose code can't be spent: the subject opens a new link.

        The tokens of an import stay until its deadline, unless their seal is broken.
        """
        consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return
        imported = consent.kind is ConsentKind.IMPORT and not consent.came_from_browser
        if imported and failure.code is not ErrorCode.SEAL_BROKEN:
            return
        await end_consent(tx, consent, ConsentStatus.FAILED, failure.code)
        now = self._services.clock.now()
        detail = {"reason": failure.code, "consent": consent.id}
        await append_audit(tx, request, AuditAction.CONSENT_FAILED, now, **detail)


class CodeExchangeOutcome(FirstGrantOutcome):
    """A failure ends the consent, and the subject opens a new link; three kinds of failures don't.

    A refused secret while there is another one, what may be a staged definition's fault, and a
    code that wasn't sent in time: that code is still good.
    """

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        """Raises as `read_first_tokens` and `require_nonce`."""
        tokens = read_first_tokens(context, reply, self.consent.scopes, came_at)
        require_nonce(tokens.id_token, self.consent.nonce_hash)
        return tokens

    async def fail(
        self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        result = await super().fail(attempt, failure, outcome)
        if _was_not_sent(failure, outcome):
            raise failure
        return result

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        # a success that can't be read may hold tokens: a second use would revoke them (RFC 6749 4.1.2)
        success = outcome in (None, AttemptOutcome.UNREAD) and failure.code is ErrorCode.REPLY_UNREADABLE
        try_again = may_be_definition_fault(failure, provisional=self.provisional) and not success
        unsuccessful = GrantResult(attempt_id=attempt.row.id, failure=failure.code)
        if try_again and outcome is None:
            return unsuccessful  # the attempt stays open
        now = self.services.clock.now()
        await close_attempt(tx, attempt.row, outcome or AttemptOutcome.REFUSED, now)
        if try_again or _was_not_sent(failure, outcome):
            return unsuccessful
        if is_client_refused(failure) and self.context.other_client is not None:
            return unsuccessful.model_copy(update={"client_refused": True})
        code = failure.code
        if code is ErrorCode.GRANT_REJECTED and attempt.row.sends > 1:
            code = ErrorCode.OUTCOME_UNKNOWN  # an earlier send spent it, and its reply is lost
        await end_unless_done(tx, self.consent, ConsentStatus.FAILED, code)
        detail = {"reason": code, "consent": self.consent.id}
        await append_audit(tx, self.call, AuditAction.CONSENT_FAILED, now, **detail)
        return GrantResult(attempt_id=attempt.row.id, failure=code, consent_over=True)


def _was_not_sent(failure: Failure, outcome: AttemptOutcome | None) -> bool:
    return outcome is AttemptOutcome.NOT_SENT and may_be_sent_later(failure)
