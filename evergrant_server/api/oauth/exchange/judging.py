"""The transaction in which a grant for a person is judged and its delegation added.

It is repeated once, when a worker has read the issuer's newest keys.
"""

from collections.abc import Awaitable, Callable

from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.client_credentials import require_active
from evergrant_server.api.oauth.exchange.issuing import Actor
from evergrant_server.api.oauth.workload_identity import KeysNeeded, read_keys
from evergrant_server.core.access import App
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction
from evergrant_server.telemetry.request_ids import trace_of

Add = Callable[[Transaction, RequestContext], Awaitable[tuple[Delegation, str]]]
Refused = Callable[[str, App, str | None], TokenRefused]


async def judged(
    request: ClientTokenRequest, actor: Actor, add: Add, no_key: Refused
) -> tuple[Delegation, str]:
    """What `add` returns, if the actor may act now. Its assertion, and what `add` uses up, counts once.

    `no_key` makes the refusal of a token that no key of its issuer has signed. Raises TokenRefused, Failure
    PROVIDER_UNREACHABLE.
    """
    app = actor.app
    context = trace_of(request.http).request_context(f"app:{app.name}")

    async def write(tx: Transaction) -> tuple[Delegation, str]:
        if actor.once is not None and not await tx.tokens.use_assertion(app, *actor.once):
            raise TokenRefused("invalid_client", "The assertion's jti was used before.", claimed=app.id)
        if not await tx.tenants.is_enabled(app.tenant):
            raise TokenRefused("unauthorized_client", "The tenant is disabled.", claimed=app.id)
        await require_active(tx, app, request.now)
        return await add(tx, context)

    try:
        return await run_transaction(request.api.store, write)
    except KeysNeeded as needed:
        await read_keys(request.api, needed, context)
    try:
        return await run_transaction(request.api.store, write)
    except KeysNeeded as still:
        raise no_key("The token's issuer has no such key.", app, still.recorded) from None
