"""Whose token may be exchanged for a connection's own (RFC 8693): that of one which the app may lease."""

from evergrant_server.api.authentication import Caller
from evergrant_server.api.establishing import refuse_scopes
from evergrant_server.api.guards import visible_connection
from evergrant_server.api.parts import Parts
from evergrant_server.core.access import Action
from evergrant_server.core.errors import Code, Failure
from evergrant_server.policy import above, decide
from evergrant_server.store import Tx


async def require_source(tx: Tx, parts: Parts, caller: Caller, source_id: str) -> None:
    """Whoever may have its token, with all that it can do, may have it exchanged.

    Raises Failure NOT_FOUND, NOT_PERMITTED, SCOPE_NOT_PERMITTED as a lease of it would, and
    INVALID_REQUEST for one whose requests are signed.
    """
    source = await visible_connection(tx, caller, source_id, Action.TOKEN)
    if not source.flow.bears:
        detail = "Its requests are signed: it has no token to exchange."
        raise Failure(Code.INVALID_REQUEST, detail, field="source")
    grant = await tx.grants.get(source.tenant, source.id)
    offline = parts.registry.offline_scope(source.provider)
    scopes = [it for it in (grant.scopes if grant else source.requested_scopes) if it != offline]
    verdict = decide(
        caller.permits,
        integration=source.integration,
        subject=source.subject,
        action=Action.TOKEN,
        scopes=scopes,
    )
    if not verdict.allowed:
        refuse_scopes(above(scopes, verdict.ceiling))
