"""Pushes authorization requests (RFC 9126), for which the subject's browser waits (ADR 0008, ADR 0016)."""

from temporalio import activity

from activities.grants.client_secrets import try_each_secret
from activities.support.context_loader import ProviderContextLoader
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.consent import Consent, PushedAuthorization
from evergrant_server.core.errors import Failure, FailureKind
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.core.messages.integrations import PushAuthorizationRequest, PushResult
from evergrant_server.store import Store, Transaction
from providers.requests.par import par_request, read_par_reply
from providers.requests.sender import Sender


class ParActivities:
    """A pushed request spends no single-use credential, so it needs no attempt."""

    def __init__(self, store: Store, contexts: ProviderContextLoader, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._contexts = contexts
        self._sender = sender
        self._clock = clock

    @activity.defn(name=ActivityName.PUSH_AUTHORIZATION_REQUEST)
    async def push_authorization_request(self, request: PushAuthorizationRequest) -> PushResult:
        """Write the reference, or the failure, to the consent that waits for it."""
        async with heartbeating():
            async with self._store.read() as tx:
                consent = await self._waiting_consent(tx, request)
                if consent is None:
                    return PushResult(superseded=True)
                pushed = await tx.consents.pushed_request(consent)
            try:
                context = await self._contexts.load(request.tenant, request.connection_id)
                context = context.without_staged_definition()
                outcome, _ = await try_each_secret(context, lambda each: self._send(each, pushed))
            except Failure as failure:
                if failure.kind is FailureKind.PLATFORM_UNAVAILABLE:
                    raise  # Temporal retries
                outcome = PushedAuthorization.failed(failure)
            return await self._write_outcome(request, outcome)

    async def _send(self, context: ProviderContext, pushed: PushedAuthorization) -> PushedAuthorization:
        request = par_request(context.spec, context.endpoints, context.client, pushed.fields)
        sent_at = self._clock.now()  # `expires_in` counts from before the request
        reply = await self._sender.send_prepared(context.spec, context.client, request)
        return read_par_reply(context.spec, reply, sent_at)

    async def _write_outcome(
        self, request: PushAuthorizationRequest, outcome: PushedAuthorization
    ) -> PushResult:
        failure = outcome.failure

        async def write(tx: Transaction) -> PushResult:
            current = await self._waiting_consent(tx, request)
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
                    detail={"reason": failure.code, "consent": request.consent_id, "pushed": False},
                )
                await audit.append(tx, entry)
            return PushResult(failure=failure.code if failure else None)

        return await commit_with_retries(self._store, write)

    @staticmethod
    async def _waiting_consent(tx: Transaction, request: PushAuthorizationRequest) -> Consent | None:
        """The consent, unless the subject has clicked again since the request."""
        consent = await tx.consents.get(request.tenant, request.consent_id)
        return consent if consent is not None and consent.is_current_start(request.revision) else None
