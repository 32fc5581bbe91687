"""While a version of a definition is staged, what it fails is asked again the way it was asked before."""

from collections.abc import Awaitable, Callable

from activities.holdings import Holdings
from evergrant_server.core.errors import Code
from evergrant_server.core.messages import GrantNews
from evergrant_server.store import Store

# An answer, or the certainty that nothing was sent: the version may be what was wrong. What is
# open stays with the protocol for single-use credentials, which refuses the second send.
_MAY_BE_ITS_FAULT = frozenset(
    {
        Code.GRANT_REJECTED,
        Code.CLIENT_REJECTED,
        Code.REPLY_UNREADABLE,
        Code.DISCOVERY_FAILED,
        Code.EGRESS_REFUSED,
        Code.PROVIDER_UNREACHABLE,
        Code.PROVIDER_ERROR,
    }
)


class EitherDefinition:
    """Asks by the staged version, and by the one before when that fails. Counts which worked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def asked(self, held: Holdings, ask: Callable[[Holdings], Awaitable[GrantNews]]) -> GrantNews:
        """Raises what `ask` raises; REFRESH_PENDING when the first send's outcome is not known yet."""
        news = await ask(held)
        if not held.provisional:
            return news
        if news.failure is None:
            await self._count(held, good=True)
            return news
        if news.failure not in _MAY_BE_ITS_FAULT:
            return news
        again = await ask(held.as_before())
        if again.failure is None:
            await self._count(held, good=False)
        return again

    async def _count(self, held: Holdings, *, good: bool) -> None:
        assert held.definition is not None
        async with self._store.write() as tx:
            await tx.definitions.count(held.definition, good=good)
