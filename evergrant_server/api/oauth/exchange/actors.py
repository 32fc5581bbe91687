"""The app that acts: the authenticated client, or the one whose API key or token is the `actor_token`."""

from evergrant_server.access.authentication import require_confirmation
from evergrant_server.access.callers import Caller
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.client_credentials import proven_app
from evergrant_server.api.oauth.exchange.issuing import Actor
from evergrant_server.api.oauth.exchange.wanted import ACCESS_TOKEN
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import CredentialId


async def acting_app(request: ClientTokenRequest) -> Actor:
    """Raises TokenRefused, Failure RATE_LIMITED. With both proofs they must be of one app."""
    token, kind = (request.parameters.get(name) for name in ("actor_token", "actor_token_type"))
    if (token is None) != (kind is None):
        raise TokenRefused("invalid_request", "actor_token and actor_token_type go together.")
    if token is None or "client_assertion" in request.parameters:
        client = await proven_app(request)
        credential = client.credential
        actor = Actor(
            *(client.app, credential.id, credential.method, credential.revision),
            *(client.confirmation, client.expires_at, client.once),
        )
        if token is not None and (await _caller_of(request, token, kind)).app.id != client.app.id:
            raise TokenRefused("invalid_request", "actor_token is of another app.", claimed=client.app.id)
        return actor
    caller = await _caller_of(request, token, kind)
    await request.api.limits.count_token(request.http.scope, caller.app)
    return await _actor_of(request, caller)


async def _caller_of(request: ClientTokenRequest, token: str, kind: str | None) -> Caller:
    if kind != ACCESS_TOKEN:
        raise TokenRefused("invalid_request", f"actor_token_type must be {ACCESS_TOKEN}.")
    try:
        caller = await request.api.authenticator.caller_of(token)
        require_confirmation(request.http, caller.credential)
    except Failure as failure:
        raise TokenRefused("invalid_request", f"actor_token: {failure.detail}") from None
    if caller.delegated is not None:
        why = "actor_token must be the app's own API key or token: a delegation proves no actor."
        raise TokenRefused("invalid_request", why, claimed=caller.app.id)
    return caller


async def _actor_of(request: ClientTokenRequest, caller: Caller) -> Actor:
    """A token that is bound to a certificate ends with it, and so does what it begins."""
    presented, revision = caller.credential, None
    confirmation = None if presented.confirmation is None else dict(presented.confirmation)
    if presented.method is not AuthenticationMethod.API_KEY:
        async with request.api.store.read() as tx:
            found = await tx.credentials.get(caller.tenant, CredentialId(presented.id))
        if found is None:
            raise TokenRefused("invalid_request", "actor_token: its credential was deleted.")
        revision = found.revision
    ends = None if confirmation is None else presented.valid_until
    return Actor(caller.app, presented.id, presented.method, revision, confirmation, ends)
