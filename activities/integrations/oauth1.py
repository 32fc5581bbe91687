"""Temporary credentials (RFC 5849 section 2.1): what a browser must bring along to the provider's page.

Nothing single-use is spent, so a lost answer costs another click.
"""

from temporalio import activity

from activities.grants.client_secrets import try_each_secret
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.consent import Consent, hash_state
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.token_pair import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.integrations import (
    RequestTemporaryCredentials,
    TemporaryCredentialsResult,
)
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.store import Store
from providers.oauth1.flow import oauth1_endpoints, read_temporary_credentials, temporary_credentials_request
from providers.requests.sender import Sender

_SUPERSEDED = "The consent was begun anew, or is over."


class OAuth1Activities:
    """Asks for them and keeps them with the consent, which is found by the token when it comes back."""

    def __init__(self, store: Store, holder: ProviderContextLoader, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._clock = clock

    @activity.defn(name=ActivityName.REQUEST_TEMPORARY_CREDENTIALS)
    async def fetch_temporary_credentials(
        self, order: RequestTemporaryCredentials
    ) -> TemporaryCredentialsResult:
        try:
            consent = await self._waiting_consent(order)
            held = await self._holder.load(order.tenant, consent.connection_id)
            if held.connection.flow is not Flow.OAUTH1:
                raise Failure(ErrorCode.INVALID_REQUEST, "This flow needs no preparation.", field="flow")
            pair, _ = await try_each_secret(held, lambda it: self._send(it, consent))
            await self._write_temporary_credentials(order, consent, pair)
        except Failure as failure:
            return TemporaryCredentialsResult(
                failure=failure.code, detail=failure.detail, retry_after=failure.retry_after
            )
        return TemporaryCredentialsResult()

    async def _waiting_consent(self, order: RequestTemporaryCredentials) -> Consent:
        async with self._store.read() as tx:
            consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or not consent.is_current_start(order.revision):
            raise Failure(ErrorCode.CALLBACK_INVALID, _SUPERSEDED)
        return consent

    async def _send(self, held: ProviderContext, consent: Consent) -> TokenPair:
        assert consent.redirect_uri is not None
        client = held.client
        url = oauth1_endpoints(held.spec, held.integration).temporary
        request = temporary_credentials_request(
            held.spec, url, client, consent.redirect_uri, self._clock.now()
        )
        return read_temporary_credentials(
            held.spec, await self._sender.send_signed(held.spec, client, request)
        )

    async def _write_temporary_credentials(
        self, order: RequestTemporaryCredentials, consent: Consent, pair: TokenPair
    ) -> None:
        ready = consent.model_copy(update={"state_hash": hash_state(pair.token)})
        async with self._store.write() as tx:
            await tx.consents.replace(ready, expected=order.revision, verifier=pair.as_secret())
