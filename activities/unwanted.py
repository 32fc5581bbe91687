"""Tokens that come when their connection has ended: nobody can have them, so the provider is told once."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from activities.client_secrets import with_either_secret
from activities.holdings import Holdings
from activities.records import closed, connection_of, record, settled
from activities.single_use import Use
from activities.telling import ended_at_provider
from evergrant_server.core.attempt import LateAnswer, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Revocation
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.messages import Call, GrantNews
from evergrant_server.store import Store, Tx
from evergrant_server.telemetry import frames, say
from evergrant_server.telemetry_names import Event
from providers.flows import Sender

log = logging.getLogger("evergrant.activities")

_SOON_S = 10.0  # a silent provider must not keep a connection from ending


async def turned_away(
    store: Store, clock: Clock, sender: Sender, order: Call, held: Holdings, use: Use, tokens: TokenSet
) -> GrantNews:
    """Have them revoked, and write whether they were: no workflow is left to ask the provider again."""
    asked = held.believed()  # a wrong endpoint would say yes, too
    revoked = [await _revoked(sender, asked, it) for it in every_chain(tokens)]

    async def write(tx: Tx) -> GrantNews:
        now, attempt = clock.now(), use.attempt
        current = await connection_of(tx, order)
        await closed(tx, attempt, Outcome.SUPERSEDED, now)
        said = {"attempt": attempt.id, "state": current.state, "revoked": all(revoked)}
        await record(tx, order, AuditAction.ANSWER_CAME_LATE, now, **said)
        failure = current.reason or Code.CONNECTION_REVOKED
        return GrantNews(attempt_id=attempt.id, state=current.state, failure=failure, over=True)

    return await settled(store, write)


async def late_ones_turned_away(
    store: Store, clock: Clock, sender: Sender, order: Call, held: Holdings, kept: Sequence[LateAnswer]
) -> None:
    """The same for answers that came late and weren't verified when their connection ended."""
    async with store.read() as tx:
        tokens = [await tx.late_answers.tokens(it) for it in kept]
    revoked = await asyncio.gather(*(_soon_revoked(sender, held.believed(), it) for it in tokens))
    for late, done in zip(kept, revoked, strict=True):
        said = {"attempt": late.attempt_id, "state": held.connection.state, "revoked": done}

        async def write(tx: Tx, late: LateAnswer = late, said: dict[str, object] = said) -> None:
            await tx.late_answers.drop(late.tenant, late.connection_id, late.attempt_id)
            await record(tx, order, AuditAction.ANSWER_CAME_LATE, clock.now(), **said)

        await settled(store, write)


async def _soon_revoked(sender: Sender, held: Holdings, tokens: TokenSet) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(_SOON_S):
            return all([await _revoked(sender, held, it) for it in every_chain(tokens)])
    return False


def every_chain(tokens: TokenSet) -> tuple[TokenSet, ...]:
    """The main chain's tokens, and those that came beside them for others, all at one host."""
    facts = tokens.metadata
    beside = (it.model_copy(update={"metadata": {**facts, **it.metadata}}) for it in tokens.further.values())
    return tokens, *beside


def of_facts(held: Holdings, tokens: TokenSet) -> Holdings:
    """In hand for tokens that may be at a host which only their own answer named."""
    return held.knowing({**held.facts, **tokens.metadata})


async def _revoked(sender: Sender, held: Holdings, tokens: TokenSet) -> bool:
    async def ask(by: Holdings) -> Revocation:
        # what was brought to be exchanged is not ours to end
        refresh_token = None if by.connection.flow.mints else tokens.refresh_token
        return await ended_at_provider(sender, of_facts(by, tokens), refresh_token, tokens.access_token)

    if held.endpoints.revocation_endpoint is None:
        return False
    try:
        return (await with_either_secret(held, ask))[0] is Revocation.CONFIRMED
    except Failure:
        return False
    except Exception as unexpected:  # a sweep that met it again and again would ask every second
        what = f"revocation: {type(unexpected).__name__} at {frames(unexpected)[-1]}"
        say(log, logging.ERROR, Event.ACTIVITY_FAILED, what, object=held.connection.id)
        return False
