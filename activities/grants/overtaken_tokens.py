"""Tokens of a reply that a newer grant has overtaken: revoked, where that ends no grant in use.

The reply was under way, on another host or in a stopped process, when a consent or an import gave the
connection another grant. Its tokens are the newest of the grant of before.
"""

from datetime import datetime

from activities.grants.replaced_grants import keep_unwanted_tokens, revocable_tokens
from activities.support.provider_context import ProviderContext
from activities.support.transactions import load_connection
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.replaced import continues
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction

_CONSENTS = (AttemptKind.CODE_EXCHANGE, AttemptKind.DEVICE_CODE)
_INSTALLED = (AttemptOutcome.INSTALLED, AttemptOutcome.INSTALLED_LATE)


async def keep_overtaken_tokens(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    attempt: Attempt,
    tokens: TokenSet,
    now: datetime,
    consent: ConsentId | None = None,
) -> None:
    """Keep the tokens of this attempt's reply, to revoke them as a replaced grant's are.

    `consent`: whose code the reply answered; None: it answered a refresh. What a refresh of the same grant
    has overtaken isn't kept: another use of its token was answered.
    """
    row, current = await tx.attempts.get(attempt.tenant, attempt.id), await load_connection(tx, call)
    if not current.flow.may_be_revoked or (row is not None and row.outcome in _INSTALLED):
        return  # installed and replaced since, which has kept them
    since = await tx.attempts.installed_since(current.tenant, current.id, attempt.from_generation)
    refreshed = {installed.from_generation for installed in since if installed.kind is AttemptKind.REFRESH}
    if consent is None and refreshed.issuperset(range(attempt.from_generation, current.generation)):
        return
    consented = any(installed.kind in _CONSENTS and installed.credential != consent for installed in since)
    wanted = consented and await _is_of_another_grant(tx, current, tokens, now)
    account = await _account_hash(tx, current, attempt, tokens)
    await keep_unwanted_tokens(tx, call, context, current, tokens, account, now, attempt, wanted=wanted)


async def _is_of_another_grant(tx: Transaction, current: Connection, tokens: TokenSet, now: datetime) -> bool:
    """False when the provider may have issued the grant in use again: its refresh token came back, or the
    reply has none to tell by."""
    in_use = await revocable_tokens(tx, current, now)
    if tokens.refresh_token is None:
        return False
    return in_use is None or (isinstance(in_use, TokenSet) and not continues(in_use, tokens))


async def _account_hash(
    tx: Transaction, current: Connection, attempt: Attempt, tokens: TokenSet
) -> str | None:
    """Of the account that the reply names, or that the grant of before had."""
    if tokens.account is not None:
        return tx.account_identifiers.hash_of(current, tokens.account)
    replaced = await tx.replaced_grants.of_connection(current.tenant, current.id)
    return next(
        (grant.account_hash for grant in replaced if grant.generation == attempt.from_generation), None
    )
