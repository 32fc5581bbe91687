"""Tokens that come when their connection has ended: nobody can have them, so the provider is told once."""

from activities.client_secrets import with_either_secret
from activities.holdings import Holdings
from activities.records import closed, connection_of, record, settled
from activities.single_use import Use
from evergrant_server.core.attempt import Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.messages import Call, GrantNews
from evergrant_server.store import Store, Tx
from providers.flows import Sender
from providers.replies import read_revocation, revokes_no_such_token


async def turned_away(
    store: Store, clock: Clock, sender: Sender, order: Call, held: Holdings, use: Use, tokens: TokenSet
) -> GrantNews:
    """Have them revoked, and write whether they were: no workflow is left to ask the provider again."""
    asked = held.believed()  # a wrong endpoint would say yes, too
    revoked = [await _revoked(sender, asked, it) for it in (tokens, *tokens.further.values())]

    async def write(tx: Tx) -> GrantNews:
        now, attempt = clock.now(), use.attempt
        current = await connection_of(tx, order)
        await closed(tx, attempt, Outcome.SUPERSEDED, now)
        said = {"attempt": attempt.id, "state": current.state, "revoked": all(revoked)}
        await record(tx, order, AuditAction.ANSWER_CAME_LATE, now, **said)
        failure = current.reason or Code.CONNECTION_REVOKED
        return GrantNews(attempt_id=attempt.id, state=current.state, failure=failure, over=True)

    return await settled(store, write)


async def _revoked(sender: Sender, held: Holdings, tokens: TokenSet) -> bool:
    async def ask(by: Holdings) -> bool:
        by = by.knowing({**by.facts, **tokens.metadata})
        # what was brought to be exchanged is not ours to end
        refresh_token = None if by.connection.flow.mints else tokens.refresh_token
        first, second = (refresh_token, "refresh_token"), (tokens.access_token, "access_token")
        if by.spec.revocation is not None and by.spec.revocation.token != "refresh_token":
            first, second = second, first
        for token, hint in (first, second):
            if token is None:
                continue
            reply = await sender.revoke(by.spec, by.endpoints, by.client, token=token, hint=hint)
            if not revokes_no_such_token(by.spec, reply):
                read_revocation(by.spec, reply)
                return True
        return False

    try:
        return (await with_either_secret(held, ask))[0]
    except Failure:
        return False
