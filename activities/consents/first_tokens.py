"""First tokens without an authorization code: client grants (RFC 6749 section 4.4, RFC 7523) and devices.

The device flow gets a code for the subject, then polls whether they approved it (RFC 8628). Only the
poll whose reply has tokens spends the code; since no poll is known to be that one before its reply,
each is an attempt of the protocol.
"""

from dataclasses import replace
from datetime import datetime

from temporalio import activity

from activities.consents.first_grant import FirstGrantActivities, FirstGrantSpend
from activities.grants.account_check import keep_refused_tokens, with_checked_account
from activities.grants.client_grants import client_grant_token_request, read_client_grant_tokens
from activities.grants.client_secrets import is_client_refused
from activities.grants.spend import may_be_definition_fault
from activities.grants.token_request import CODE_RULES, PreparedTokenRequest
from activities.single_use.attempt import SingleUseAttempt, SpendRequest
from activities.support.provider_context import ProviderContext
from activities.support.transactions import close_attempt, commit_with_retries, record_consent_failure
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ConsentCall, GrantResult, RequestFirstTokens
from evergrant_server.core.provider_words import with_code
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


class ClientGrantSpend(FirstGrantSpend):
    """Installs the tokens of a client grant. A token in a lost reply stays unused."""

    kind = AttemptKind.CLIENT_GRANT

    async def request(self) -> SpendRequest:
        return await client_grant_token_request(self.services, self.call.context, self.context, self.consent)

    @property
    def spends_credential(self) -> bool:
        return False

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        return read_client_grant_tokens(context, reply, self.consent.scopes, came_at)

    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> GrantResult:
        """An imported subject token is kept as a refresh token is: the next token is made from it too."""
        connection = self.context.connection
        if connection.flow is Flow.TOKEN_EXCHANGE and connection.source is None:
            async with self.services.store.read() as tx:
                imported = (await tx.consents.imported_tokens(self.consent)).access_token
            tokens = tokens.__replace__(refresh_token=imported)
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
        await record_consent_failure(tx, self.call, failure, now, over=False)
        return GrantResult(attempt_id=row.id, failure=failure.code, retry_after=failure.retry_after)


class ClientGrantActivities(FirstGrantActivities):
    """Requests first tokens that no subject has to consent to."""

    spend_type = ClientGrantSpend

    @activity.defn(name=jobs.REQUEST_CLIENT_GRANT.name)
    async def request_client_grant(self, request: RequestFirstTokens) -> GrantResult:
        """Get the first tokens. After a failure that can be repaired the consent waits for the next try."""
        return await self._get_first_grant(request)


class DeviceSpend(FirstGrantSpend):
    """Poll again, or end the consent. A poll without a reply may have spent the code."""

    kind = AttemptKind.DEVICE_CODE

    async def request(self) -> SpendRequest | GrantResult:
        """The poll, or the result of getting a code. Raises Failure CONSENT_EXPIRED after the code's end."""
        services, context, consent = self.services, self.context, self.consent
        async with services.store.read() as tx:
            device_code = await tx.consents.device_code(consent)
            if device_code is not None and services.clock.now() >= device_code.expires_at:
                # the subject may have approved it in time: the reply of the last poll says so
                await services.single_use.tracker.require_no_open_attempt(tx, context.connection)
                raise Failure(ErrorCode.CONSENT_EXPIRED)
        if device_code is None:
            return await self._request_device_code()
        provider = replace(context, params=context.integration.params)
        poll = device_token_request(provider, device_code.device_code)
        return PreparedTokenRequest(context, CODE_RULES, poll)

    async def _request_device_code(self) -> GrantResult:
        """Get a code. One whose reply is lost expires by itself, and another is requested."""
        services, context, consent = self.services, self.context, self.consent
        self.provider_was_asked = True
        provider = replace(context, params=context.integration.params)
        prepared = device_authorization_request(provider, consent.scopes)
        try:
            reply = await services.sender.send(context, prepared)
            device_code = read_device_authorization(context.spec, reply, services.clock.now())
        except Failure as failure:
            if is_client_refused(failure) and context.other_client is not None:
                return GrantResult(failure=failure.code, client_refused=True)
            raise

        async def store(tx: Transaction) -> None:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is None or current.status is not ConsentStatus.CODE_RECEIVED:
                return
            if not await _has_device_code(tx, current):  # else the subject was shown another try's
                await tx.consents.store_device_code(current, device_code, expected=current.revision)

        await commit_with_retries(services.store, store)
        return GrantResult(device_poll=DevicePoll.STARTED, interval_s=device_code.interval_s)

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        scopes = self.consent.scopes
        tokens = read_device_token(context.spec, reply, requested_scopes=scopes, now=came_at)
        return with_checked_account(context, tokens, self.consent)

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        now, row = self.services.clock.now(), attempt.row
        pending = failure.poll if isinstance(failure, DevicePending) else None
        # the previous definition polls with the same code, unless the reply had unreadable tokens
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
            # an earlier poll spent it, and its reply is lost
            failure = with_code(failure, ErrorCode.OUTCOME_UNKNOWN)
        await keep_refused_tokens(tx, self.call, self.context, row, failure, now)
        await record_consent_failure(tx, self.call, failure, now, over=True)
        return GrantResult(attempt_id=row.id, failure=failure.code, consent_over=True)

    def _may_be_definition_fault(self, failure: Failure) -> bool:
        """Also for an endpoint that doesn't answer "not yet": a staged definition may have named it."""
        if isinstance(failure, DevicePending):
            return self.provisional and failure.poll is DevicePoll.NO_ANSWER
        return may_be_definition_fault(failure, provisional=self.provisional)


class DeviceActivities(FirstGrantActivities):
    """Makes one request a call: for a code, or the poll of one."""

    spend_type = DeviceSpend

    @activity.defn(name=jobs.POLL_DEVICE_TOKEN.name)
    async def poll_device(self, request: RequestFirstTokens) -> GrantResult:
        """Get a code or poll once. `device_poll` in the result asks for another call."""
        return await self._get_first_grant(request)

    async def _record_failed_activity(self, tx: Transaction, request: ConsentCall, failure: Failure) -> bool:
        """True when the consent is over: a code that can't be polled is of no use, while one that was
        never received can still be requested."""
        now = self._services.clock.now()
        consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return True
        over = await _has_device_code(tx, consent) or failure.kind is FailureKind.RECONNECT_NEEDED
        await record_consent_failure(tx, request, failure, now, over=over)
        return over


async def _has_device_code(tx: Transaction, consent: Consent) -> bool:
    """True also for a code whose seal is broken."""
    try:
        return await tx.consents.device_code(consent) is not None
    except Failure as failure:
        if failure.code is not ErrorCode.SEAL_BROKEN:
            raise
        return True
