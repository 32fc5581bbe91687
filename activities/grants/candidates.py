"""The client secrets and definitions to try a request with: usually one of each.

During a rotation the provider may know either client secret. A client is authenticated before
anything else (RFC 6749 section 3.2.1), so a refused secret has spent no refresh token and no
code. While a version of a definition is staged, what may be its fault is tried again with the
version before it. Each try is an attempt of its own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from activities.grants import GrantServices
from activities.single_use.attempt_tracker import open_attempt
from activities.support.provider_context import ProviderContext
from activities.support.temporal import failed_grant_result
from activities.support.transactions import append_audit, commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult
from evergrant_server.store import Store, Transaction

T = TypeVar("T")

_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")  # RFC 6749 section 5.2
# Replies, and failures to send. The protocol for single-use credentials refuses a second send
# where the outcome of the first is unknown.
_DEFINITION_FAULTS = frozenset(
    {
        ErrorCode.GRANT_REJECTED,
        ErrorCode.CLIENT_REJECTED,
        ErrorCode.REPLY_UNREADABLE,
        ErrorCode.DISCOVERY_FAILED,
        ErrorCode.EGRESS_REFUSED,
        ErrorCode.HOST_NOT_ACCEPTED,
        ErrorCode.PROVIDER_UNREACHABLE,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.INVALID_REQUEST,
    }
)


def may_be_definition_fault(failure: Failure, *, provisional: bool) -> bool:
    """True when a staged version may be at fault: then nothing is ended or condemned."""
    return provisional and failure.code in _DEFINITION_FAULTS


@dataclass
class Candidate:
    """One try: the context to use, and its result."""

    context: ProviderContext
    result: GrantResult = field(default_factory=GrantResult)
    used_previous_definition: bool = False  # the staged one couldn't read the reply, the one before could

    def __enter__(self) -> None:
        """Try it: a Failure that may be the staged definition's fault becomes the result."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Failure):
            return False
        if not may_be_definition_fault(error, provisional=self.context.provisional):
            return False
        self.result = failed_grant_result(error)
        return True

    @property
    def definition_may_be_at_fault(self) -> bool:
        result = self.result
        return self.context.provisional and result.failure in _DEFINITION_FAULTS and not result.consent_over


async def candidates(
    services: GrantServices, request: ConnectionCall, context: ProviderContext
) -> AsyncIterator[Candidate]:
    """Yield the candidates until one is not refused. The caller sets the result of each."""
    for number, with_secret in enumerate(_by_client_secret(context)):
        candidate = Candidate(await _skip_undecided_definition(services.store, with_secret))
        yield candidate
        if candidate.definition_may_be_at_fault:
            candidate = Candidate(candidate.context.skipping_staged_definition())
            yield candidate
        await _count_for_rollout(services.store, candidate)
        if not candidate.result.client_refused:
            if number == 1 and _accepts_client(candidate.result):
                await record_accepted_secret(services.store, services.clock, request, context)
            return


def _by_client_secret(context: ProviderContext) -> list[ProviderContext]:
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

    For requests that spend no credential. See `candidates` for the others.
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
        after = current.__replace__(secret_refused_at=refused_at, changed_at=now)
        await tx.integrations.replace(after, expected=current.revision)
        action = AuditAction.SECRET_REFUSED if refused_at else AuditAction.SECRET_ACCEPTED
        await append_audit(tx, request, action, now, integration=current.name, integration_id=current.id)

    await commit_with_retries(store, swap)


async def _skip_undecided_definition(store: Store, context: ProviderContext) -> ProviderContext:
    """The version before a staged one continues what the staged one has left open."""
    if not context.provisional:
        return context
    async with store.read() as tx:
        left_open = await open_attempt(tx, context.connection)
    return context if left_open is None else context.skipping_staged_definition()


async def _count_for_rollout(store: Store, candidate: Candidate) -> None:
    """Count a new grant for or against the staged version; other results say nothing about it."""
    context, result = candidate.context, candidate.result
    staged = context.skipped_definition or (context.definition if context.provisional else None)
    installed = result.failure is None and (result.generation or 0) > context.connection.generation
    if staged is not None and installed:
        good = context.skipped_definition is None and not candidate.used_previous_definition
        async with store.write() as tx:
            await tx.definitions.count_refresh(staged, good=good)


def _accepts_client(result: GrantResult) -> bool:
    """True when the result shows that the provider took the client secret; no outage does."""
    return result.failure is None or FAILURES[result.failure].kind is FailureKind.RECONNECT_NEEDED
