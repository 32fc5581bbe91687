"""The caller of an open stream, as the store says now."""

from dataclasses import replace

from starlette.requests import Request

from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import CredentialId

# an access token of a client is read anew each time, until its end (RFC 8707)
_ASKED_EACH_TIME = (AuthenticationMethod.API_KEY, AuthenticationMethod.RESOURCE_TOKEN)


async def current_caller(api: ApiContext, request: Request, began_as: Caller) -> Caller:
    """The app and its permits. Raises Failure when its key, credential, app or tenant doesn't count any more.

    An access token of an app is for ten minutes, and a stream that began with it may go on while the
    credential is there: only its age is overlooked. A delegation's stream ends with it.
    """
    try:
        return await api.authenticator.authenticate(request)
    except Failure:
        credential = began_as.credential
        if began_as.delegated is not None:
            raise
        if credential.method in _ASKED_EACH_TIME or api.clock.now() < credential.valid_until:
            raise
    async with api.store.read() as tx:
        await tx.tenants.require_enabled(began_as.tenant)
        app = await tx.access.app(began_as.tenant, began_as.app.id)
        there = await tx.credentials.get(began_as.tenant, CredentialId(credential.id))
        if app is None or app.disabled or there is None:
            raise Failure(ErrorCode.UNAUTHENTICATED)
        permits = await tx.access.permits_of(app)
        if app.is_agent:
            await tx.agents.require_active(app, api.clock.now())
    return replace(began_as, app=app, permits=tuple(permits))
