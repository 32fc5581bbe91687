"""While a version of a definition is staged, what it fails is asked again the way it was asked before."""

from collections.abc import Awaitable, Callable

from activities.single_use.protocol import open_attempt
from activities.support.failures import failed_grant_result
from activities.support.provider_context import ProviderContext
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import GrantResult
from evergrant_server.store import Store

# An answer, or the certainty that nothing was sent: the version may be what was wrong. What is
# open stays with the protocol for single-use credentials, which refuses the second send.
DEFINITION_FAULTS = frozenset(
    {
        ErrorCode.GRANT_REJECTED,
        ErrorCode.CLIENT_REJECTED,
        ErrorCode.REPLY_UNREADABLE,
        ErrorCode.DISCOVERY_FAILED,
        ErrorCode.EGRESS_REFUSED,
        ErrorCode.PROVIDER_UNREACHABLE,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.INVALID_REQUEST,
    }
)


def may_be_definition_fault(failure: Failure, *, provisional: bool) -> bool:
    """True when a staged version may be what failed: nothing is ended or condemned because of it."""
    return provisional and failure.code in DEFINITION_FAULTS


class StagedDefinitionFallback:
    """Asks by the staged version, and by the one before when that fails. Counts which worked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(
        self, held: ProviderContext, ask: Callable[[ProviderContext], Awaitable[GrantResult]]
    ) -> GrantResult:
        """Raises what `ask` raises; REFRESH_PENDING when the first send's outcome is not known yet.

        `ask` ends nothing for a failure that may be a staged version's fault.
        """
        held = await self._unless_attempt_open(held)
        if held.skipped_definition is not None:
            return await self._count_result(held, held.skipped_definition, await ask(held), good=False)
        if held.definition is None or not held.provisional:
            return await ask(held)
        try:
            news = await ask(held)
        except Failure as failure:  # nothing was sent: it is left alone, or doesn't speak this flow
            if failure.code not in DEFINITION_FAULTS:
                raise
            news = failed_grant_result(failure)
        if news.failure is None:
            return await self._count_result(
                held, held.definition, news, good=not news.used_previous_definition
            )
        if news.failure not in DEFINITION_FAULTS or news.consent_over:
            return news
        return await self._count_result(
            held, held.definition, await ask(held.with_previous_definition()), good=False
        )

    async def _unless_attempt_open(self, held: ProviderContext) -> ProviderContext:
        """What a staged version has left open is asked about the way it was asked before."""
        if not held.provisional:
            return held
        async with self._store.read() as tx:
            left_open = await open_attempt(tx, held.connection)
        return held if left_open is None else held.skipping_staged_definition()

    async def _count_result(
        self, held: ProviderContext, definition: Definition, news: GrantResult, *, good: bool
    ) -> GrantResult:
        """Only what brought a newer grant tells anything about the version."""
        if news.failure is None and (news.generation or 0) > held.connection.generation:
            async with self._store.write() as tx:
                await tx.definitions.count_refresh(definition, good=good)
        return news
