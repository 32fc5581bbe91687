"""While a version of a definition is staged, what it fails is asked again the way it was asked before."""

from collections.abc import Awaitable, Callable

from activities.failures import grant_news
from activities.holdings import Holdings
from activities.single_use import open_attempt
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import GrantNews
from evergrant_server.store import Store

# An answer, or the certainty that nothing was sent: the version may be what was wrong. What is
# open stays with the protocol for single-use credentials, which refuses the second send.
MAY_BE_ITS_FAULT = frozenset(
    {
        Code.GRANT_REJECTED,
        Code.CLIENT_REJECTED,
        Code.REPLY_UNREADABLE,
        Code.DISCOVERY_FAILED,
        Code.EGRESS_REFUSED,
        Code.PROVIDER_UNREACHABLE,
        Code.PROVIDER_ERROR,
        Code.INVALID_REQUEST,
    }
)


def doubted(failure: Failure, *, provisional: bool) -> bool:
    """True when a staged version may be what failed: nothing is ended or condemned because of it."""
    return provisional and failure.code in MAY_BE_ITS_FAULT


class EitherDefinition:
    """Asks by the staged version, and by the one before when that fails. Counts which worked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def asked(self, held: Holdings, ask: Callable[[Holdings], Awaitable[GrantNews]]) -> GrantNews:
        """Raises what `ask` raises; REFRESH_PENDING when the first send's outcome is not known yet.

        `ask` ends nothing for a failure that may be a staged version's fault.
        """
        held = await self._unless_left_open(held)
        if held.passed_over is not None:
            return await self._counted(held, held.passed_over, await ask(held), good=False)
        if held.definition is None or not held.provisional:
            return await ask(held)
        try:
            news = await ask(held)
        except Failure as failure:  # nothing was sent: it is left alone, or doesn't speak this flow
            if failure.code not in MAY_BE_ITS_FAULT:
                raise
            news = grant_news(failure)
        if news.failure is None:
            return await self._counted(held, held.definition, news, good=not news.read_as_before)
        if news.failure not in MAY_BE_ITS_FAULT or news.over:
            return news
        return await self._counted(held, held.definition, await ask(held.as_before()), good=False)

    async def _unless_left_open(self, held: Holdings) -> Holdings:
        """What a staged version has left open is asked about the way it was asked before."""
        if not held.provisional:
            return held
        async with self._store.read() as tx:
            left_open = await open_attempt(tx, held.connection)
        return held if left_open is None else held.passing_over()

    async def _counted(
        self, held: Holdings, definition: Definition, news: GrantNews, *, good: bool
    ) -> GrantNews:
        """Only what brought a newer grant tells anything about the version."""
        if news.failure is None and (news.generation or 0) > held.connection.generation:
            async with self._store.write() as tx:
                await tx.definitions.count(definition, good=good)
        return news
