"""A rotation's two client secrets: what the provider refuses with one is tried with the other.

A client is authenticated before anything else is looked at (RFC 6749 section 3.2.1), so a
refused secret has spent no refresh token and no code: the second try is an attempt of its own.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.connection import ConnectionCall, GrantResult
from evergrant_server.store import Store, Transaction

T = TypeVar("T")

_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")  # RFC 6749 section 5.2


def is_client_refused(failure: Failure) -> bool:
    """True when the provider refused who we are, rather than what we asked for."""
    said = failure.context
    refused = said.get("provider_error") in _CLIENT_ERRORS or said.get("provider_status") == "401"
    return failure.code is ErrorCode.CLIENT_REJECTED and refused


async def try_each_secret(
    held: ProviderContext, ask: Callable[[ProviderContext], Awaitable[T]]
) -> tuple[T, bool]:
    """What the provider says to whichever secret it takes, and whether that was the other one.

    For what uses nothing up and needs no attempt; `EitherSecret` is for what does.
    """
    try:
        return await ask(held), False
    except Failure as failure:
        if held.other_client is None or not is_client_refused(failure):
            raise
    return await ask(with_other_secret(held)), True


class ClientSecretFallback:
    """Asks once, and with the other secret when the first was refused."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def try_each(
        self,
        order: ConnectionCall,
        held: ProviderContext,
        ask: Callable[[ProviderContext], Awaitable[GrantResult]],
    ) -> GrantResult:
        """What the provider says to whichever secret it takes; the integration notes which."""
        news = await ask(held)
        if not news.client_refused or held.other_client is None:
            return news
        again = await ask(with_other_secret(held))
        if again.client_refused:  # the provider may have changed over between the two
            return await ask(replace(held, other_client=None))
        if again.failure is None or FAILURES[again.failure].kind is FailureKind.RECONNECT_NEEDED:
            await self.record_accepted_secret(order, held)  # no outage says that the other one was taken
        return again

    async def record_accepted_secret(self, order: ConnectionCall, held: ProviderContext) -> None:
        """The provider took the other secret: it comes first from here on."""
        before = held.integration

        async def swap(tx: Transaction) -> None:
            now = self._clock.now()
            current = await tx.integrations.get(before.tenant, before.id)
            if current is None or current.previous_secret_until is None:
                return  # rotated or rolled back meanwhile: it is about other secrets
            if (current.secret_refused_at is None) is not (before.secret_refused_at is None):
                return  # another connection's try has said so
            refused_at = now if current.secret_refused_at is None else None
            after = current.model_copy(update={"secret_refused_at": refused_at, "changed_at": now})
            await tx.integrations.replace(after, expected=current.revision)
            action = AuditAction.SECRET_REFUSED if refused_at else AuditAction.SECRET_ACCEPTED
            await append_audit(tx, order, action, now, integration=current.name, integration_id=current.id)

        await commit_with_retries(self._store, swap)


def with_other_secret(held: ProviderContext) -> ProviderContext:
    """The same in hand, with the other secret."""
    assert held.other_client is not None
    return replace(held, client=held.other_client, other_client=None)
