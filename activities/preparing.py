"""Temporary credentials (RFC 5849 section 2.1): what a browser must bring along to the provider's page.

Nothing single-use is spent, so a lost answer costs another click.
"""

from temporalio import activity

from activities.client_secrets import with_either_secret
from activities.holdings import Holder, Holdings
from evergrant_server.core.clock import Clock
from evergrant_server.core.consent import Consent, hash_of_state
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.preparing import ACTIVITY_PREPARE, PrepareConsent, Prepared
from evergrant_server.core.token_pair import TokenPair
from evergrant_server.store import Store
from providers.flows import Sender
from providers.oauth1 import endpoints_of, read_temporary, temporary_request

_MOVED_ON = "The consent was begun anew, or is over."


class PreparingActivities:
    """Asks for them and keeps them with the consent, which is found by the token when it comes back."""

    def __init__(self, store: Store, holder: Holder, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._clock = clock

    @activity.defn(name=ACTIVITY_PREPARE)
    async def prepare_consent(self, order: PrepareConsent) -> Prepared:
        try:
            consent = await self._consent(order)
            held = await self._holder.take(order.tenant, consent.connection_id)
            if held.connection.flow is not Flow.OAUTH1:
                raise Failure(Code.INVALID_REQUEST, "This flow needs no preparation.", field="flow")
            pair, _ = await with_either_secret(held, lambda it: self._temporary(it, consent))
            await self._keep(order, consent, pair)
        except Failure as failure:
            return Prepared(failure=failure.code, detail=failure.detail, retry_after=failure.retry_after)
        return Prepared()

    async def _consent(self, order: PrepareConsent) -> Consent:
        async with self._store.read() as tx:
            consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or not consent.is_begun(order.revision):
            raise Failure(Code.CALLBACK_INVALID, _MOVED_ON)
        return consent

    async def _temporary(self, held: Holdings, consent: Consent) -> TokenPair:
        assert consent.redirect_uri is not None
        client = held.client
        url = endpoints_of(held.spec, held.integration).temporary
        request = temporary_request(held.spec, url, client, consent.redirect_uri, self._clock.now())
        return read_temporary(held.spec, await self._sender.signed(held.spec, client, request))

    async def _keep(self, order: PrepareConsent, consent: Consent, pair: TokenPair) -> None:
        ready = consent.model_copy(update={"state_hash": hash_of_state(pair.token)})
        async with self._store.write() as tx:
            await tx.consents.replace(ready, expected=order.revision, verifier=pair.as_secret())
