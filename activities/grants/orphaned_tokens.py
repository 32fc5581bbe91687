"""Tokens that come when their connection has ended: nobody can have them, so the provider is told once."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from activities.grants.client_secrets import try_each_secret
from activities.grants.provider_revocation import revoke_at_provider
from activities.single_use.protocol import SingleUseAttempt
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import ConnectionCall, GrantResult
from evergrant_server.core.single_use.attempt import AttemptOutcome, LateTokens
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event, stack_frames
from providers.requests.sender import Sender

log = logging.getLogger("evergrant.activities")

_REVOKE_TIMEOUT_S = 10.0  # a silent provider must not keep a connection from ending


async def revoke_orphaned_tokens(
    store: Store,
    clock: Clock,
    sender: Sender,
    order: ConnectionCall,
    held: ProviderContext,
    use: SingleUseAttempt,
    tokens: TokenSet,
) -> GrantResult:
    """Have them revoked, and write whether they were: no workflow is left to ask the provider again."""
    asked = held.without_staged_definition()  # a wrong endpoint would say yes, too
    revoked = [await _revoked(sender, asked, it) for it in all_slots(tokens)]

    async def write(tx: Transaction) -> GrantResult:
        now, attempt = clock.now(), use.row
        current = await load_connection(tx, order)
        await close_attempt(tx, attempt, AttemptOutcome.SUPERSEDED, now)
        said = {"attempt": attempt.id, "state": current.state, "revoked": all(revoked)}
        await append_audit(tx, order, AuditAction.LATE_TOKENS_RECEIVED, now, **said)
        failure = current.reason or ErrorCode.CONNECTION_REVOKED
        return GrantResult(attempt_id=attempt.id, state=current.state, failure=failure, consent_over=True)

    return await commit_with_retries(store, write)


async def revoke_late_tokens(
    store: Store,
    clock: Clock,
    sender: Sender,
    order: ConnectionCall,
    held: ProviderContext,
    kept: Sequence[LateTokens],
) -> None:
    """The same for answers that came late and weren't verified when their connection ended."""
    async with store.read() as tx:
        tokens = [await tx.late_tokens.tokens(it) for it in kept]
    revoked = await asyncio.gather(
        *(_revoked_in_time(sender, held.without_staged_definition(), it) for it in tokens)
    )
    for late, done in zip(kept, revoked, strict=True):
        said = {"attempt": late.attempt_id, "state": held.connection.state, "revoked": done}

        async def write(tx: Transaction, late: LateTokens = late, said: dict[str, object] = said) -> None:
            await tx.late_tokens.delete(late.tenant, late.connection_id, late.attempt_id)
            await append_audit(tx, order, AuditAction.LATE_TOKENS_RECEIVED, clock.now(), **said)

        await commit_with_retries(store, write)


async def _revoked_in_time(sender: Sender, held: ProviderContext, tokens: TokenSet) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(_REVOKE_TIMEOUT_S):
            return all([await _revoked(sender, held, it) for it in all_slots(tokens)])
    return False


def all_slots(tokens: TokenSet) -> tuple[TokenSet, ...]:
    """The main chain's tokens, and those that came beside them for others, all at one host."""
    facts = tokens.metadata
    beside = (it.model_copy(update={"metadata": {**facts, **it.metadata}}) for it in tokens.further.values())
    return tokens, *beside


def context_for_tokens(held: ProviderContext, tokens: TokenSet) -> ProviderContext:
    """In hand for tokens that may be at a host which only their own answer named."""
    return held.with_facts({**held.facts, **tokens.metadata})


async def _revoked(sender: Sender, held: ProviderContext, tokens: TokenSet) -> bool:
    async def ask(by: ProviderContext) -> RevocationOutcome:
        # what was brought to be exchanged is not ours to end
        refresh_token = None if by.connection.flow.is_client_grant else tokens.refresh_token
        return await revoke_at_provider(
            sender, context_for_tokens(by, tokens), refresh_token, tokens.access_token
        )

    if held.endpoints.revocation_endpoint is None:
        return False
    try:
        return (await try_each_secret(held, ask))[0] is RevocationOutcome.CONFIRMED
    except Failure:
        return False
    except Exception as unexpected:  # a sweep that met it again and again would ask every second
        what = f"revocation: {type(unexpected).__name__} at {stack_frames(unexpected)[-1]}"
        log_event(log, logging.ERROR, LogEvent.ACTIVITY_FAILED, what, object=held.connection.id)
        return False
