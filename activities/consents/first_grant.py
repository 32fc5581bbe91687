"""The first grant of a consent: what code exchange, client grants and the device flow have in common."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from temporalio import activity

from activities.consents.first_grant_outcome import FirstGrantOutcome
from activities.consents.import_export import install_import
from activities.grants.candidates import candidates
from activities.grants.services import GrantServices
from activities.grants.token_request import TokenRequest
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.journaled_reply import JournaledReply
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import commit_with_retries
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.activities import ExchangeCode, GrantResult, RequestFirstTokens
from evergrant_server.core.single_use.attempt import AttemptKind
from evergrant_server.store import Transaction

_RETRIED_BY_TEMPORAL = (ErrorCode.REFRESH_PENDING, ErrorCode.JOURNAL_UNAVAILABLE)
_MAX_TRIES = 200  # three seconds apart: longer than a reply may be waited for

R = TypeVar("R", ExchangeCode, RequestFirstTokens)


def may_be_sent_later(failure: Failure) -> bool:
    """True for a failure before anything was sent, which a later try may not meet."""
    return failure.code in _RETRIED_BY_TEMPORAL


class FirstGrantActivities(ABC, Generic[R]):
    """Gets the first tokens of a consent, once. A flow says what it asks with, and what a failure ends."""

    kind: AttemptKind
    request_type: type[R]
    outcome_type: type[FirstGrantOutcome]

    def __init__(self, services: GrantServices) -> None:
        self._services = services

    @abstractmethod
    async def _token_request(
        self, consent: Consent, context: ProviderContext, request: R, loaded: Endpoints
    ) -> TokenRequest | GrantResult:
        """What to ask for tokens with, or the result of another step. `loaded` are the endpoints of the
        definition that is tried first."""

    @abstractmethod
    async def _record_failed_activity(self, tx: Transaction, request: R, failure: Failure) -> bool:
        """Record a failure that came before or instead of a reply. Returns True if the consent is over."""

    def _count(self, context: ProviderContext, result: GrantResult) -> None:
        """Count a sent request in the metrics of its flow."""

    async def _get_first_grant(self, request: R) -> GrantResult:
        """Returns what the store holds afterwards. Raises what Temporal tries again."""
        async with heartbeating():
            try:
                return await self._send_and_install(request)
            except Failure as failure:
                if may_be_sent_later(failure) and activity.info().attempt < _MAX_TRIES:
                    raise
                return await self._result_of_failure(request, failure)

    async def _send_and_install(self, request: R) -> GrantResult:
        """The flow from load to commit. Each candidate is tried at most once, in an attempt of its own."""
        services = self._services
        consent = await self._load_consent(request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        if consent.kind is ConsentKind.IMPORT:  # it came with its tokens
            return await install_import(services.store, services.clock, request, context, consent)
        result = _result_if_ended(consent, context)
        if result is not None:
            return result
        loaded = context.endpoints
        async for candidate in candidates(services, request, context):  # one, outside rotations and rollouts
            context = candidate.context
            with candidate:
                step = await self._token_request(consent, context, request, loaded)
                if isinstance(step, GrantResult):
                    candidate.result = step
                else:
                    attempt = await services.single_use.open(
                        self.kind, context.connection, step.rules, token_valid=False, credential=consent.id
                    )
                    reply = step.send(services.sender, attempt.check)
                    outcome = self.outcome_type(services, request, context, consent)
                    # in a task that nothing cuts: send, journal the reply, judge it, commit
                    candidate.result = await services.single_use.spend(attempt, request, reply, outcome)
                    self._count(context, candidate.result)
            result = candidate.result
        assert result is not None
        return result

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, self.request_type.model_validate(journaled.request)
        consent = await self._load_consent(request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        outcome = self.outcome_type(services, request, context, consent, provisional=journaled.provisional)
        return await services.single_use.conclude(attempt, journaled, outcome)

    async def _load_consent(self, request: R) -> Consent:
        """Raises Failure CALLBACK_INVALID when the connection has no such consent."""
        async with self._services.store.read() as tx:
            consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.connection_id != request.connection_id:
            raise Failure(ErrorCode.CALLBACK_INVALID, f"there is no consent {request.consent_id}")
        return consent

    async def _result_of_failure(self, request: R, failure: Failure) -> GrantResult:
        services, result = self._services, failed_grant_result(failure)
        async with services.store.read() as tx:
            consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is not None and consent.status is ConsentStatus.DONE:  # by a replay, during this try
            context = await services.contexts.load(request.tenant, request.connection_id)
            return _result_if_ended(consent, context) or result
        over = await commit_with_retries(
            services.store, lambda tx: self._record_failed_activity(tx, request, failure)
        )
        return result.model_copy(update={"consent_over": over})


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
