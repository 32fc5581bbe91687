"""Walks one consent in the user's browser: the authorization request, and the callback that ends it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.templates import (
    assertion_audience,
    client_auth_of,
    integration_endpoints,
    params_from_metadata,
)
from providers.requests.authorization_url import (
    build_authorization_url,
    new_random_value,
    requested_scopes,
    sends_nonce,
)
from providers.requests.callback import Callback, read_callback
from providers.requests.callback_parameters import Query, check_callback_signature, error_param
from providers.requests.par import par_authorization_url, par_fields, par_request, read_par_reply, uses_par
from providers.requests.request_format import OAuthClient, ProviderAccess
from providers.requests.sender import Sender


@dataclass(frozen=True)
class TrialSetup:
    """What a trial needs to know: the definition, and the user's client at the provider."""

    spec: ProviderSpec
    integration: Integration
    client_secret: Secret | None
    redirect_uri: str
    flow: Flow
    named_scopes: tuple[str, ...]  # by the user

    @property
    def scopes(self) -> tuple[str, ...]:
        """As requested: those named, else the default ones, and the offline scope. Raises Failure."""
        if self.flow is Flow.CLIENT_CREDENTIALS:
            return self.named_scopes
        return requested_scopes(self.spec, self.integration, self.named_scopes)

    def access(self, facts: dict[str, Any] | None = None, *, secret: Secret | None = None) -> ProviderAccess:
        """The provider as our client sees it; `facts` are from the callback, `secret` replaces the client's.

        Raises Failure INVALID_REQUEST for a missing template parameter.
        """
        endpoints = integration_endpoints(self.spec, self.integration, facts)
        client = OAuthClient(
            self.integration.client_id,
            secret or self.client_secret,
            client_auth_of(self.spec, self.integration),
            audience=assertion_audience(self.spec, endpoints),
        )
        params = self.integration.params | params_from_metadata(self.spec, facts or {})
        return ProviderAccess(self.spec, endpoints, client, params)


@dataclass(frozen=True)
class WalkedConsent:
    """A consent that the user gave, with all that its code exchange needs."""

    code: Secret = field(repr=False)
    verifier: Secret = field(repr=False)
    nonce_hash: str | None
    facts: dict[str, Any]  # from the callback
    scopes: tuple[str, ...] | None  # granted, where the callback says so


class CallbackReceiver(Protocol):
    """Where the user's browser comes back to."""

    async def receive(self, url: str, state: Secret) -> Query:
        """Send the user to `url`, and return the query of the callback that has this state.

        Raises Failure CONSENT_EXPIRED.
        """
        ...


async def walk_consent(
    setup: TrialSetup, sender: Sender, receiver: CallbackReceiver, clock: Clock, learn: Callable[..., None]
) -> WalkedConsent:
    """Ask for the user's consent. `learn` is called with each secret before it can appear anywhere.

    Raises Failure CONSENT_DENIED, CONSENT_EXPIRED, CALLBACK_INVALID, CLIENT_REJECTED (an error of the
    authorization endpoint, by name), and as `build_authorization_url` and `read_par_reply`.
    """
    spec, integration = setup.spec, setup.integration
    state, verifier, nonce = new_random_value(), new_random_value(), new_random_value()
    learn(state, verifier, nonce)
    with_nonce = sends_nonce(spec, integration, setup.scopes)
    access = setup.access()
    url = build_authorization_url(
        spec,
        integration,
        redirect_uri=setup.redirect_uri,
        state=state,
        verifier=verifier,
        scopes=setup.scopes,
        nonce=nonce if with_nonce else None,
    )
    if uses_par(spec, access.endpoints):
        url = await _pushed_url(setup, access, sender, url, clock.now())
    query = await receiver.receive(url, state)
    learn(*(value for name, value in query if name in (spec.callback_code_param, "code", "id_token")))
    check_callback_signature(spec, query, [setup.client_secret] if setup.client_secret else [])
    callback = _read(setup, access, query)
    if callback.denied:
        raise Failure(ErrorCode.CONSENT_DENIED, "the consent was denied", provider=spec.name)
    if callback.code is None:
        detail = f"{spec.name} refused the authorization request with the error {callback.error}"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name)
    learn(callback.code)
    nonce_hash = hash_of_nonce(nonce.reveal()) if with_nonce else None
    return WalkedConsent(callback.code, verifier, nonce_hash, dict(callback.metadata), callback.scopes)


async def _pushed_url(
    setup: TrialSetup, access: ProviderAccess, sender: Sender, url: str, sent_at: datetime
) -> str:
    """The URL that names the request, which is pushed to the provider (RFC 9126)."""
    endpoint = access.endpoints.authorization_endpoint or ""
    reply = await sender.send(access, par_request(access, par_fields(url, endpoint)))
    pushed = read_par_reply(setup.spec, reply, sent_at)
    return par_authorization_url(setup.spec, setup.integration, endpoint, str(pushed.request_uri))


def _read(setup: TrialSetup, access: ProviderAccess, query: Query) -> Callback:
    """As `read_callback`. Its failure tells the error of a callback that lacks `iss` as well."""
    try:
        return read_callback(
            query,
            expected_issuer=access.endpoints.issuer,
            iss_required=access.endpoints.iss_in_callback,
            spec=setup.spec,
            params=setup.integration.params,
            requested=setup.scopes,
        )
    except Failure as failure:
        error = error_param(dict(query), setup.spec.callback_error_params)
        if error is None:
            raise
        raise Failure(failure.code, f"{failure.detail} Its error is {error}.") from None
