"""Asks the provider for what the subject's browser waits for before a consent (ADR 0008, ADR 0016).

A pushed authorization request (RFC 9126), or temporary credentials of OAuth 1.0a (RFC 5849 section
2.1). Neither spends a single-use credential: after a lost reply the subject clicks again.
"""

from typing import Any

from temporalio import activity

from activities.grants.client_secrets import try_each_secret
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries, log_words
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.consent import Consent, PushedAuthorization, hash_state
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import (
    PushAuthorizationRequest,
    PushResult,
    RequestTemporaryCredentials,
    TemporaryCredentialsResult,
)
from evergrant_server.store import Store, Transaction
from providers.oauth1.flow import oauth1_endpoints, read_temporary_credentials, temporary_credentials_request
from providers.requests.par import par_request, read_par_reply
from providers.requests.sender import Sender


class ConsentStartActivities:
    def __init__(self, store: Store, contexts: ProviderContextLoader, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._contexts = contexts
        self._sender = sender
        self._clock = clock

    @activity.defn(name=jobs.PUSH_AUTHORIZATION_REQUEST.name)
    async def push_authorization_request(self, request: PushAuthorizationRequest) -> PushResult:
        """Write the reference, or the failure, to the consent that waits for it."""
        async with heartbeating():
            async with self._store.read() as tx:
                consent = await _waiting_consent(tx, request)
                if consent is None:
                    return PushResult(superseded=True)
                pushed = await tx.consents.pushed_request(consent)

            async def push(context: ProviderContext) -> PushedAuthorization:
                sent = par_request(context, pushed.fields)
                sent_at = self._clock.now()  # `expires_in` counts from before the request
                reply = await self._sender.send(context, sent)
                return read_par_reply(context.spec, reply, sent_at)

            words: dict[str, Any] = {}
            try:
                context = await self._contexts.load(
                    request.tenant, request.connection_id, consent.integration_id
                )
                context = context.without_staged_definition().for_new_grant()
                outcome, _ = await try_each_secret(context, push)
            except Failure as failure:
                if failure.kind is FailureKind.PLATFORM_UNAVAILABLE:
                    raise  # Temporal retries
                outcome = PushedAuthorization.failed(failure)
                words = log_words(failure, request.connection_id)
            return await self._write_outcome(request, outcome, words)

    async def _write_outcome(
        self, request: PushAuthorizationRequest, outcome: PushedAuthorization, words: dict[str, Any]
    ) -> PushResult:
        failure = outcome.failure

        async def write(tx: Transaction) -> PushResult:
            current = await _waiting_consent(tx, request)
            if current is None:
                return PushResult(superseded=True)
            await tx.consents.replace(current, expected=request.revision, request=outcome)
            if failure is not None:
                entry = AuditEntry(
                    tenant=request.tenant,
                    at=self._clock.now(),
                    action=AuditAction.CONSENT_FAILED,
                    object=request.connection_id,
                    context=request.context,
                    detail={"reason": failure.code, "consent": request.consent_id, "pushed": False, **words},
                )
                await audit.append(tx, entry)
            return PushResult(failure=failure.code if failure else None)

        return await commit_with_retries(self._store, write)

    @activity.defn(name=jobs.REQUEST_TEMPORARY_CREDENTIALS.name)
    async def request_temporary_credentials(
        self, request: RequestTemporaryCredentials
    ) -> TemporaryCredentialsResult:
        """Store temporary credentials with the consent, which the callback's token identifies."""
        consent: Consent | None = None
        try:
            async with self._store.read() as tx:
                consent = await _waiting_consent(tx, request)
            if consent is None or consent.redirect_uri is None:
                raise Failure(ErrorCode.CALLBACK_INVALID, "The consent was restarted, or has ended.")
            callback = consent.redirect_uri
            context = await self._contexts.load(request.tenant, consent.connection_id, consent.integration_id)
            if context.connection.flow is not Flow.OAUTH1:
                detail = "This flow has no temporary credentials."
                raise Failure(ErrorCode.INVALID_REQUEST, detail, field="flow")

            async def ask(each: ProviderContext) -> TokenPair:
                url = oauth1_endpoints(each.spec, each.integration).temporary
                now = self._clock.now()
                signed = temporary_credentials_request(each, url, callback, now)
                reply = await self._sender.send(each, signed)
                return read_temporary_credentials(each.spec, reply)

            pair, _ = await try_each_secret(context.for_new_grant(), ask)
            ready = consent.__replace__(state_hash=hash_state(pair.token))
            async with self._store.write() as tx:
                await tx.consents.replace(ready, expected=request.revision, verifier=pair.as_secret())
        except Failure as failure:
            if consent is not None:
                log_words(failure, consent.connection_id)
            return TemporaryCredentialsResult(
                failure=failure.code, detail=failure.detail, retry_after=failure.retry_after
            )
        return TemporaryCredentialsResult()


async def _waiting_consent(
    tx: Transaction, request: PushAuthorizationRequest | RequestTemporaryCredentials
) -> Consent | None:
    """The consent, unless the subject has clicked again since the request."""
    consent = await tx.consents.get(request.tenant, request.consent_id)
    return consent if consent is not None and consent.is_current_start(request.revision) else None
