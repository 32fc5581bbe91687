"""The two client secrets of an integration during a rotation: the provider may know either."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.store import Store, Transaction

T = TypeVar("T")

_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")  # RFC 6749 section 5.2


def by_client_secret(context: ProviderContext) -> list[ProviderContext]:
    """The secret that comes first, the other one, and the first again: the provider may have changed
    over between the two tries."""
    if context.other_client is None:
        return [context]
    return [context, with_other_secret(context), replace(context, other_client=None)]


def is_client_refused(failure: Failure) -> bool:
    """True when the provider refused the client, rather than the request."""
    context = failure.context
    refused = context.get("provider_error") in _CLIENT_ERRORS or context.get("provider_status") == "401"
    return failure.code is ErrorCode.CLIENT_REJECTED and refused


async def try_each_secret(
    context: ProviderContext, ask: Callable[[ProviderContext], Awaitable[T]]
) -> tuple[T, bool]:
    """The provider's answer to the secret it accepts, and whether that was the other one.

    For requests that spend no credential. See `activities.grants.spend` for the others.
    """
    try:
        return await ask(context), False
    except Failure as failure:
        if context.other_client is None or not is_client_refused(failure):
            raise
    return await ask(with_other_secret(context)), True


def with_other_secret(context: ProviderContext) -> ProviderContext:
    """The context with the other client secret alone."""
    assert context.other_client is not None
    return replace(context, client=context.other_client, other_client=None)


async def record_accepted_secret(
    store: Store, clock: Clock, request: ConnectionCall, context: ProviderContext
) -> None:
    """Put the other secret of `context` first from here on: the provider accepted it."""
    before = context.integration

    async def swap(tx: Transaction) -> None:
        now = clock.now()
        current = await tx.integrations.get(before.tenant, before.id)
        if current is None or current.previous_secret_until is None:
            return  # rotated or rolled back meanwhile: these are other secrets
        if (current.secret_refused_at is None) is not (before.secret_refused_at is None):
            return  # another connection's try has recorded it
        refused_at = now if current.secret_refused_at is None else None
        after = current.__replace__(secret_refused_at=refused_at)  # its client works: that is no change
        await tx.integrations.replace(after, expected=current.revision)
        action = AuditAction.SECRET_REFUSED if refused_at else AuditAction.SECRET_ACCEPTED
        await append_audit(tx, request, action, now, integration=current.name, integration_id=current.id)

    await commit_with_retries(store, swap)
