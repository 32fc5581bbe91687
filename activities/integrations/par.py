"""Pushes authorization requests: what a browser waits for is asked by a worker (ADR 0008, ADR 0016)."""

from temporalio import activity

from activities.grants.client_secrets import try_each_secret
from activities.support.heartbeat import heartbeating
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.pushed_authorization import PushedAuthorization
from evergrant_server.core.errors import Failure, FailureKind
from evergrant_server.core.messages.integrations import PushAuthorizationRequest, PushResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.store import Store, Transaction
from providers.requests.par import par_request, read_par_reply
from providers.requests.sender import Sender


class ParActivities:
    """Needs a sender and our client's credentials; spends nothing, so it needs no attempt."""

    def __init__(self, store: Store, holder: ProviderContextLoader, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._clock = clock

    @activity.defn(name=ActivityName.PUSH_AUTHORIZATION_REQUEST)
    async def push_authorization_request(self, order: PushAuthorizationRequest) -> PushResult:
        """Write the reference, or why there is none, beside the consent that waits for it."""
        async with heartbeating():
            async with self._store.read() as tx:
                consent = await self._waiting_consent(tx, order)
                if consent is None:
                    return PushResult(superseded=True)
                asked = await tx.consents.pushed_request(consent)
            try:
                held = (
                    await self._holder.load(order.tenant, order.connection_id)
                ).without_staged_definition()
                outcome, _ = await try_each_secret(held, lambda it: self._send(it, asked))
            except Failure as failure:
                if failure.kind is FailureKind.PLATFORM_UNAVAILABLE:
                    raise  # Temporal asks again
                outcome = PushedAuthorization(failure=failure)
            return await self._write_outcome(order, outcome)

    async def _send(self, held: ProviderContext, asked: PushedAuthorization) -> PushedAuthorization:
        request = par_request(held.spec, held.endpoints, held.client, asked.fields)
        sent_at = self._clock.now()  # its life is counted from before it began
        reply = await self._sender.send_prepared(held.spec, held.client, request)
        return read_par_reply(held.spec, reply, sent_at)

    async def _write_outcome(
        self, order: PushAuthorizationRequest, outcome: PushedAuthorization
    ) -> PushResult:
        failure = outcome.failure

        async def write(tx: Transaction) -> PushResult:
            current = await self._waiting_consent(tx, order)
            if current is None:
                return PushResult(superseded=True)
            await tx.consents.replace(current, expected=order.revision, request=outcome)
            if failure is not None:
                entry = AuditEntry(
                    tenant=order.tenant,
                    at=self._clock.now(),
                    action=AuditAction.CONSENT_FAILED,
                    object=order.connection_id,
                    context=order.context,
                    detail={"reason": failure.code, "consent": order.consent_id, "pushed": False},
                )
                await audit.append(tx, entry)
            return PushResult(failure=failure.code if failure else None)

        return await commit_with_retries(self._store, write)

    @staticmethod
    async def _waiting_consent(tx: Transaction, order: PushAuthorizationRequest) -> Consent | None:
        """The consent, while the click that asked for this is the newest one."""
        consent = await tx.consents.get(order.tenant, order.consent_id)
        return consent if consent is not None and consent.is_current_start(order.revision) else None
