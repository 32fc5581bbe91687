"""Narrower access tokens: what a refresh that requested fewer scopes (RFC 6749 section 6) came to."""

from datetime import datetime, timedelta
from typing import Any

from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import Grant, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.store import Transaction

_REFUSED_FOR = timedelta(hours=1)  # a provider that refused to narrow is not asked again before


def refreshed_detail(request: RefreshGrant, tokens: TokenSet, grant: Grant) -> dict[str, Any]:
    """A refresh's audit detail, with the scopes that were requested and those that came: a reply that names
    none doesn't say that it has narrowed."""
    if not request.scopes:
        return {"generation": grant.generation}
    came = grant.scopes if tokens.scopes is None else tokens.scopes
    requested, granted = list(request.scopes), list(came)
    return {"generation": grant.generation, "requested_scopes": requested, "scopes": granted}


def tokens_of_chain(request: RefreshGrant, tokens: TokenSet) -> TokenSet:
    """The tokens for a later refresh: their refresh token is good for the scopes of the chain (RFC 6749
    section 6), whichever this request named."""
    return tokens.__replace__(scopes=None) if request.scopes else tokens


def is_narrowing_refused(failure: Failure) -> bool:
    """True when the provider refused the scopes, and neither the client nor the grant (RFC 6749 section
    5.2)."""
    return (
        failure.code is ErrorCode.CLIENT_REJECTED and failure.context.get("provider_error") == "invalid_scope"
    )


async def record_narrowing_refusal(
    tx: Transaction,
    request: RefreshGrant,
    context: ProviderContext,
    row: Attempt,
    failure: Failure,
    now: datetime,
) -> GrantResult:
    """Record that the provider doesn't narrow to these scopes, so that it isn't asked for every lease. The
    grant is what it was: no scope that it has is in doubt."""
    await close_attempt(tx, row, AttemptOutcome.NOT_SENT, now)
    current = await load_connection(tx, request)
    if current.state is LifecycleState.REVOKING:
        return GrantResult(state=LifecycleState.REVOKING)
    if current.generation == row.from_generation and context.grant is not None:
        refused = context.grant.narrowed(request.scopes, context.spec.offline_scope)
        await tx.narrowed_tokens.put(
            current,
            refused.__replace__(obtained_at=now, expires_at=now + _REFUSED_FOR, access_generation=None),
            None,
            now,
        )
    detail = {"reason": failure.code, "requested_scopes": list(request.scopes), **words_in(failure)}
    await append_audit(tx, request, AuditAction.REFRESH_FAILED, now, **detail)
    return GrantResult(unchanged=True)
