"""The device flow: get a code for the subject, then poll whether they approved it (RFC 8628).

Only the poll that brings tokens spends the code; since no poll is known to be that one before
its reply, each is an attempt of the protocol.
"""

from datetime import datetime

from temporalio import activity

from activities.consents.first_grant import (
    FirstGrantOutcome,
    is_retried_by_temporal,
    load_consent,
    record_ended_consent,
    record_failed_try,
    require_no_open_attempt,
    result_if_ended,
    result_of_replay,
)
from activities.grants.candidates import candidates, may_be_definition_fault
from activities.grants.client_secrets import is_client_refused
from activities.grants.services import GrantServices
from activities.grants.token_request import CODE_RULES, PreparedTokenRequest
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import SingleUseAttempt
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import close_attempt, commit_with_retries
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.device_code import DeviceCode, DevicePoll
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.activities import GrantResult, RequestFirstTokens
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from providers.requests.device import (
    DevicePending,
    device_authorization_request,
    device_token_request,
    read_device_authorization,
    read_device_token,
)
from providers.responses.raw_reply import RawReply


class DeviceActivities:
    """Makes one request a call: for a code, or the poll of one."""

    def __init__(self, services: GrantServices) -> None:
        self._services = services

    @activity.defn(name=ActivityName.POLL_DEVICE_TOKEN)
    async def poll_device(self, request: RequestFirstTokens) -> GrantResult:
        """Get a code or poll once. `device_poll` in the result asks for another call."""
        async with heartbeating():
            try:
                return await self._poll(request)
            except Failure as failure:
                if is_retried_by_temporal(failure):
                    raise
                return await self._result_of_failure(request, failure)

    async def _poll(self, request: RequestFirstTokens) -> GrantResult:
        """The request from load to commit."""
        services = self._services
        consent = await load_consent(services, request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        result = result_if_ended(consent, context)
        if result is not None:
            return result
        async for candidate in candidates(services, request, context):
            context = candidate.context
            with candidate:
                device_code = await self._device_code(consent, context)
                if device_code is None:
                    candidate.result = await self._request_device_code(consent, context)
                else:
                    token_request = _device_token_request(context, device_code)
                    attempt = await services.single_use.open(
                        AttemptKind.DEVICE_CODE,
                        context.connection,
                        token_request.rules,
                        token_valid=False,
                        credential=consent.id,
                    )
                    reply = token_request.send(services.sender, attempt.check)
                    outcome = DeviceOutcome(services, request, context, consent)
                    # in a task that nothing cuts: send, journal the reply, judge it, commit
                    candidate.result = await services.single_use.spend(attempt, request, reply, outcome)
            result = candidate.result
        assert result is not None
        return result

    async def _device_code(self, consent: Consent, context: ProviderContext) -> DeviceCode | None:
        """The code to poll with; None before there is one. Raises Failure CONSENT_EXPIRED after its end."""
        async with self._services.store.read() as tx:
            device_code = await tx.consents.device_code(consent)
            if device_code is not None and self._services.clock.now() >= device_code.expires_at:
                # the subject may have approved it in time: the reply of the last poll says so
                await require_no_open_attempt(self._services, tx, context.connection)
                raise Failure(ErrorCode.CONSENT_EXPIRED)
        return device_code

    async def _request_device_code(self, consent: Consent, context: ProviderContext) -> GrantResult:
        """Get a code. One whose reply is lost expires by itself, and another is requested."""
        services = self._services
        prepared = device_authorization_request(
            context.spec, context.endpoints, context.client, consent.scopes, context.integration.params
        )
        try:
            reply = await services.sender.send_prepared(context.spec, context.client, prepared)
            device_code = read_device_authorization(context.spec, reply, services.clock.now())
        except Failure as failure:
            if is_client_refused(failure) and context.other_client is not None:
                return GrantResult(failure=failure.code, client_refused=True)
            raise

        async def store(tx: Transaction) -> None:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is not None and current.status is ConsentStatus.CODE_RECEIVED:
                await tx.consents.store_device_code(current, device_code, expected=current.revision)

        await commit_with_retries(services.store, store)
        return GrantResult(device_poll=DevicePoll.STARTED, interval_s=device_code.interval_s)

    async def _result_of_failure(self, request: RequestFirstTokens, failure: Failure) -> GrantResult:
        result = failed_grant_result(failure)
        replayed = await result_of_replay(self._services, request)
        if replayed is not None:
            return replayed
        over = await commit_with_retries(
            self._services.store, lambda tx: self._end_if_unusable(tx, request, failure)
        )
        return result.model_copy(update={"consent_over": over})

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, RequestFirstTokens.model_validate(journaled.request)
        consent = await load_consent(services, request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        outcome = DeviceOutcome(services, request, context, consent, provisional=journaled.provisional)
        return await services.single_use.conclude(attempt, journaled, outcome)

    async def _end_if_unusable(self, tx: Transaction, request: RequestFirstTokens, failure: Failure) -> bool:
        """True when the consent is over: a code that can't be polled is of no use, while one that was
        never received can still be requested."""
        now = self._services.clock.now()
        consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return True
        if not await _has_device_code(tx, consent) and failure.kind is not FailureKind.RECONNECT_NEEDED:
            await record_failed_try(tx, request, failure, now)
            return False
        await record_ended_consent(tx, request, failure, now)
        return True


class DeviceOutcome(FirstGrantOutcome):
    """Poll again, or end the consent. A poll without a reply may have spent the code."""

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        return read_device_token(context.spec, reply, requested_scopes=self.consent.scopes, now=came_at)

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        now, row = self.services.clock.now(), attempt.row
        pending = failure.poll if isinstance(failure, DevicePending) else None
        # the previous definition polls with the same code, unless the reply brought unreadable tokens
        if outcome is not AttemptOutcome.UNREAD and self._may_be_definition_fault(failure):
            if outcome is not None:
                await close_attempt(tx, row, outcome, now)
            code = failure.code if pending is None else ErrorCode.PROVIDER_ERROR
            return GrantResult(attempt_id=row.id, failure=code)
        if pending is not None:
            await close_attempt(tx, row, AttemptOutcome.NOT_SENT, now)
            return GrantResult(device_poll=pending)
        if failure.kind is FailureKind.PROVIDER_UNAVAILABLE:
            if outcome is not None:
                await close_attempt(tx, row, outcome, now)
            return GrantResult(device_poll=DevicePoll.NO_ANSWER)
        await close_attempt(tx, row, outcome or AttemptOutcome.REFUSED, now)
        if is_client_refused(failure) and self.context.other_client is not None:
            return GrantResult(attempt_id=row.id, failure=failure.code, client_refused=True)
        if failure.code is ErrorCode.GRANT_REJECTED and row.sends > 1:
            failure = Failure(ErrorCode.OUTCOME_UNKNOWN)  # an earlier poll spent it, and its reply is lost
        await record_ended_consent(tx, self._request, failure, now)
        return GrantResult(attempt_id=row.id, failure=failure.code, consent_over=True)

    def _may_be_definition_fault(self, failure: Failure) -> bool:
        """Also for an endpoint that doesn't answer "not yet": a staged definition may have named it."""
        if isinstance(failure, DevicePending):
            return self.provisional and failure.poll is DevicePoll.NO_ANSWER
        return may_be_definition_fault(failure, provisional=self.provisional)


def _device_token_request(context: ProviderContext, device_code: DeviceCode) -> PreparedTokenRequest:
    prepared = device_token_request(
        context.spec, context.endpoints, context.client, device_code.device_code, context.integration.params
    )
    return PreparedTokenRequest(context, prepared, CODE_RULES)


async def _has_device_code(tx: Transaction, consent: Consent) -> bool:
    """True also for a code whose seal is broken."""
    try:
        return await tx.consents.device_code(consent) is not None
    except Failure as failure:
        if failure.code is not ErrorCode.SEAL_BROKEN:
            raise
        return True
