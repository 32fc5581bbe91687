"""The device flow: a code for the subject, then asking whether they approved it (RFC 8628).

Each request but the one that brings tokens spends nothing; that one looks like all the others
when it is sent, so each is an attempt of the protocol.
"""

from datetime import datetime
from functools import partial

from temporalio import activity

from activities.grants.client_grants import ClientGrantActivities
from activities.grants.client_secrets import is_client_refused
from activities.grants.code_exchange import CODE_RULES, MAX_TRIES, RETRIED_BY_TEMPORAL
from activities.grants.import_export import end_consent
from activities.grants.token_request import ResponseParser
from activities.integrations.staged_definitions import may_be_definition_fault
from activities.single_use.protocol import OutcomeHandler, SingleUseAttempt
from activities.support.failures import failed_grant_result
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.device_code import DeviceCode, DevicePoll
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.connection import ActivityName, GrantResult, RequestFirstTokens
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


class DeviceActivities(ClientGrantActivities):
    """Gets a code, asks about it once per call, and installs what comes as a consent's end does."""

    @activity.defn(name=ActivityName.POLL_DEVICE_TOKEN)
    async def poll_device(self, order: RequestFirstTokens) -> GrantResult:
        """One request. `poll` in the news says that it has to be asked again."""
        async with heartbeating():
            try:
                consent = await self._load_consent(order)
                held = await self._contexts.load(order.tenant, order.connection_id)
                ask = partial(self._authorize_or_poll, order, consent)
                return await self._result_if_ended(consent, held) or await self._client_secrets.try_each(
                    order, held, lambda by: self._definitions.run(by, ask)
                )
            except Failure as failure:
                if failure.code in RETRIED_BY_TEMPORAL and activity.info().attempt < MAX_TRIES:
                    raise  # nothing was sent, and Temporal asks again
                news = failed_grant_result(failure)
                if (done := await self._result_of_replay(order)) is not None:
                    return done
                over = await commit_with_retries(self._store, partial(self._end_if_unusable, order, failure))
                return news.model_copy(update={"consent_over": over})

    async def _authorize_or_poll(
        self, order: RequestFirstTokens, consent: Consent, held: ProviderContext
    ) -> GrantResult:
        async with self._store.read() as tx:
            device = await tx.consents.device_code(consent)
            expired = device is not None and self._clock.now() >= device.expires_at
            if expired:  # the subject may have approved, and the last poll's answer says so
                await self._require_no_open_attempt(tx, held.connection)
        if device is None:
            return await self._request_device_code(consent, held)
        if expired:
            raise Failure(ErrorCode.CONSENT_EXPIRED)
        return await self._poll_token_endpoint(order, consent, device, held)

    async def _request_device_code(self, consent: Consent, held: ProviderContext) -> GrantResult:
        """Get a code. One whose answer is lost expires by itself, and another is asked for."""
        params = held.integration.params
        request = device_authorization_request(held.spec, held.endpoints, held.client, consent.scopes, params)
        try:
            reply = await self._sender.send_prepared(held.spec, held.client, request)
            device = read_device_authorization(held.spec, reply, self._clock.now())
        except Failure as failure:
            if is_client_refused(failure) and held.other_client is not None:
                return GrantResult(failure=failure.code, client_refused=True)
            raise

        async def keep(tx: Transaction) -> GrantResult:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is not None and current.status is ConsentStatus.CODE_RECEIVED:
                await tx.consents.store_device_code(current, device, expected=current.revision)
            return GrantResult(device_poll=DevicePoll.STARTED, interval_s=device.interval_s)

        return await commit_with_retries(self._store, keep)

    async def _poll_token_endpoint(
        self, order: RequestFirstTokens, consent: Consent, device: DeviceCode, held: ProviderContext
    ) -> GrantResult:
        code, params = device.device_code, held.integration.params
        request = device_token_request(held.spec, held.endpoints, held.client, code, params)
        use = await self._single_use.open(
            AttemptKind.DEVICE_CODE,
            held.connection,
            CODE_RULES,
            token_valid=False,
            credential=consent.id,
        )
        reading = self._parser(held, consent, self._clock.now)
        news = await self._single_use.spend(
            use,
            order,
            send=lambda check: self._sender.send_prepared(held.spec, held.client, request, before_send=check),
            ending=self._client_grant_handler(order, held, consent, reading, provisional=held.provisional),
        )
        return news.model_copy(update={"used_previous_definition": reading.used_previous_definition})

    def _read_tokens(
        self, held: ProviderContext, reply: RawReply, consent: Consent, came_at: datetime
    ) -> TokenSet:
        return read_device_token(held.spec, reply, requested_scopes=consent.scopes, now=came_at)

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
            commit=partial(self._install_tokens, order, held, consent),
            fail=partial(self._record_poll_failure, order, held, provisional),
            provisional=provisional,
        )

    async def _record_poll_failure(
        self,
        order: RequestFirstTokens,
        held: ProviderContext,
        provisional: bool,
        use: SingleUseAttempt,
        failure: Failure,
        outcome: AttemptOutcome | None,
    ) -> GrantResult:
        """Ask again, or the code is done with. What was not heard may have brought the tokens."""

        async def settle(tx: Transaction) -> GrantResult:
            now = self._clock.now()
            # the definition before asks about the same code, unless it brought what neither can read
            if outcome is not AttemptOutcome.UNREAD and _may_be_definition_fault(failure, provisional):
                if outcome is not None:
                    await close_attempt(tx, use.row, outcome, now)
                code = ErrorCode.PROVIDER_ERROR if isinstance(failure, DevicePending) else failure.code
                return GrantResult(attempt_id=use.row.id, failure=code)
            if isinstance(failure, DevicePending):
                await close_attempt(tx, use.row, AttemptOutcome.NOT_SENT, now)
                return GrantResult(device_poll=failure.poll)
            if failure.kind is FailureKind.PROVIDER_UNAVAILABLE:
                if outcome is not None:
                    await close_attempt(tx, use.row, outcome, now)
                return GrantResult(device_poll=DevicePoll.NO_ANSWER)
            await close_attempt(tx, use.row, outcome or AttemptOutcome.REFUSED, now)
            if is_client_refused(failure) and held.other_client is not None:
                return GrantResult(attempt_id=use.row.id, failure=failure.code, client_refused=True)
            lost = failure.code is ErrorCode.GRANT_REJECTED and use.row.sends > 1
            said = Failure(ErrorCode.OUTCOME_UNKNOWN) if lost else failure
            await self._end_consent(tx, order, said)
            return GrantResult(attempt_id=use.row.id, failure=said.code, consent_over=True)

        return await commit_with_retries(self._store, settle)

    async def _end_if_unusable(self, order: RequestFirstTokens, failure: Failure, tx: Transaction) -> bool:
        """Is the consent over? A code that was never got may still be asked for; one in hand that
        can't be asked about is done with."""
        consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return True
        if not await _has_device_code(tx, consent) and failure.kind is not FailureKind.RECONNECT_NEEDED:
            await self._write_failed_try(tx, order, failure)
            return False
        await self._end_consent(tx, order, failure)
        return True

    async def _end_consent(self, tx: Transaction, order: RequestFirstTokens, failure: Failure) -> None:
        now = self._clock.now()
        consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return
        denied = failure.code is ErrorCode.CONSENT_DENIED
        await end_consent(tx, consent, ConsentStatus.DENIED if denied else ConsentStatus.FAILED, failure.code)
        current = await load_connection(tx, order)
        if current.state is LifecycleState.PENDING_CONSENT:
            await tx.connections.replace(
                current.waiting_for_grant(failure.code, now), expected=current.revision
            )
        await append_audit(
            tx, order, AuditAction.CONSENT_FAILED, now, reason=failure.code, consent=consent.id
        )


async def _has_device_code(tx: Transaction, consent: Consent) -> bool:
    try:
        return await tx.consents.device_code(consent) is not None
    except Failure as failure:
        if failure.code is not ErrorCode.SEAL_BROKEN:
            raise
        return True  # and nobody can open it


def _may_be_definition_fault(failure: Failure, provisional: bool) -> bool:
    """What an endpoint that was named by a staged version didn't say, too: a 500 is "not yet" elsewhere."""
    if isinstance(failure, DevicePending):
        return provisional and failure.poll is DevicePoll.NO_ANSWER
    return may_be_definition_fault(failure, provisional=provisional)
