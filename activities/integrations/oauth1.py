"""Requests temporary credentials of OAuth 1.0a (RFC 5849 section 2.1).

They spend no single-use credential, so after a lost reply the subject clicks again.
"""

from temporalio import activity

from activities.grants.client_secrets import try_each_secret
from activities.support.context_loader import ProviderContextLoader
from activities.support.provider_context import ProviderContext
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.consent import Consent, hash_state
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.core.messages.integrations import (
    RequestTemporaryCredentials,
    TemporaryCredentialsResult,
)
from evergrant_server.store import Store
from providers.oauth1.flow import oauth1_endpoints, read_temporary_credentials, temporary_credentials_request
from providers.requests.sender import Sender

_SUPERSEDED = "The consent was restarted, or has ended."


class OAuth1Activities:
    """Stores temporary credentials with the consent, which the callback's token identifies."""

    def __init__(self, store: Store, contexts: ProviderContextLoader, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._contexts = contexts
        self._sender = sender
        self._clock = clock

    @activity.defn(name=ActivityName.REQUEST_TEMPORARY_CREDENTIALS)
    async def request_temporary_credentials(
        self, request: RequestTemporaryCredentials
    ) -> TemporaryCredentialsResult:
        try:
            consent = await self._waiting_consent(request)
            context = await self._contexts.load(request.tenant, consent.connection_id)
            if context.connection.flow is not Flow.OAUTH1:
                raise Failure(
                    ErrorCode.INVALID_REQUEST, "This flow has no temporary credentials.", field="flow"
                )
            pair, _ = await try_each_secret(context, lambda each: self._send(each, consent))
            await self._write_temporary_credentials(request, consent, pair)
        except Failure as failure:
            return TemporaryCredentialsResult(
                failure=failure.code, detail=failure.detail, retry_after=failure.retry_after
            )
        return TemporaryCredentialsResult()

    async def _waiting_consent(self, request: RequestTemporaryCredentials) -> Consent:
        async with self._store.read() as tx:
            consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or not consent.is_current_start(request.revision):
            raise Failure(ErrorCode.CALLBACK_INVALID, _SUPERSEDED)
        return consent

    async def _send(self, context: ProviderContext, consent: Consent) -> TokenPair:
        assert consent.redirect_uri is not None
        spec, client = context.spec, context.client
        url = oauth1_endpoints(spec, context.integration).temporary
        request = temporary_credentials_request(spec, url, client, consent.redirect_uri, self._clock.now())
        return read_temporary_credentials(spec, await self._sender.send_signed(spec, client, request))

    async def _write_temporary_credentials(
        self, request: RequestTemporaryCredentials, consent: Consent, pair: TokenPair
    ) -> None:
        ready = consent.model_copy(update={"state_hash": hash_state(pair.token)})
        async with self._store.write() as tx:
            await tx.consents.replace(ready, expected=request.revision, verifier=pair.as_secret())
