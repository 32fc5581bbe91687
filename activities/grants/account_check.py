"""The account that a consent was given with, read from its reply and compared with the one that was meant.

`core.connections.account` decides.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from activities.grants import GrantServices
from activities.grants.provider_revocation import all_slots, revoke_orphaned_tokens
from activities.grants.replaced_grants import keep_unwanted_tokens
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, end_consent, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import Account, ConsentAccount
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.id_token import checked_claims, require_nonce
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult
from evergrant_server.core.single_use.attempt import Attempt
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.alarms import report_broken_authority

MISMATCH = GrantResult(failure=ErrorCode.ACCOUNT_MISMATCH, consent_over=True)


def with_account(
    context: ProviderContext, tokens: TokenSet, facts: Mapping[str, Any] | None = None
) -> TokenSet:
    """The tokens with the account that their reply names, or the callback's `facts`. Pure.

    Raises Failure ID_TOKEN_REFUSED for an id token of another issuer or client, CLIENT_REJECTED for one of
    none.
    """
    account: Account | None = None
    if tokens.id_token is not None:
        issuer, client_id = context.endpoints.issuer, context.client.client_id
        claims = checked_claims(tokens.id_token, issuer=issuer, client_id=client_id)
        account = Account.of_id_token(claims) if claims else None
    name = context.spec.account_id
    if account is None and name is not None:
        account = Account.of_fact(name, {**tokens.metadata, **(facts or {})}.get(name))
    return tokens.__replace__(account=account)


class IdTokenRefused(Failure):
    """An id token that isn't for this consent. The tokens that came with it are kept only to be revoked."""

    def __init__(self, why: Failure, tokens: TokenSet) -> None:
        super().__init__(why.code, why.detail)
        self.context, self.repair = why.context, why.repair
        self.tokens = tokens


def with_checked_account(
    context: ProviderContext, tokens: TokenSet, consent: Consent, facts: Mapping[str, Any] | None = None
) -> TokenSet:
    """As `with_account`, for the reply to a consent. Raises IdTokenRefused, also when the id token is of
    another request: the account that it names is then known all the same."""
    try:
        tokens = with_account(context, tokens, facts)
        require_nonce(tokens.id_token, consent.nonce_hash)
    except Failure as failure:
        raise IdTokenRefused(failure, tokens) from None
    return tokens


def with_believed_account(context: ProviderContext, tokens: TokenSet) -> TokenSet:
    """As `with_account`, for a refresh: it is good without an id token that is not to be believed."""
    try:
        return with_account(context, tokens)
    except Failure:
        return tokens.__replace__(id_token=None)


async def is_meant_account(
    tx: Transaction, context: ProviderContext, current: Connection, tokens: TokenSet
) -> bool:
    """Whether the tokens of a consent are of the account that was meant. Raises Failure AUTHORITY_BROKEN
    when the stored expectation or pin wasn't written by Evergrant."""
    meant = await tx.connections.get_authentic(current.tenant, current.id)
    rule = context.integration.on_reconnect
    return await tx.account_identifiers.is_expected(meant or current, tokens.account, rule)


async def require_own_account(store: Store, connection: Connection) -> None:
    """Raise Failure AUTHORITY_BROKEN, before a code is spent, unless a worker wrote the connection's pin."""
    try:
        async with store.read() as tx:
            await tx.account_identifiers.own_account(connection)
    except Failure as failure:
        report_broken_authority(failure)
        raise


async def require_replaceable(store: Store, connection: Connection, consent: Consent) -> None:
    """Raise Failure MADE_BY_ANOTHER_APP, before a code is spent, for a consent that was requested before
    another app's brought the connection's grant."""
    if not connection.generation:
        return
    async with store.read() as tx:
        maker = await tx.consents.maker_of(connection)
    if not consent.may_replace_grant(maker):
        raise Failure(ErrorCode.MADE_BY_ANOTHER_APP, connection_id=connection.id)


async def refuse_account(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    current: Connection,
    consent: Consent,
    tokens: TokenSet,
    now: datetime,
) -> GrantResult:
    """Record that the consent was given with another account; the grant of before stays.

    The tokens are kept only to be revoked, as far as that ends no other grant.
    """
    came, identifiers = tokens.account, tx.account_identifiers
    account_hash = None if came is None else identifiers.hash_of(current, came)
    stored = await tx.consents.get(consent.tenant, consent.id)
    if stored is not None and stored.status is not ConsentStatus.DONE:
        shown = ConsentAccount(came=came.name) if came is not None and consent.came_from_browser else None
        await end_consent(tx, stored, ConsentStatus.FAILED, ErrorCode.ACCOUNT_MISMATCH, shown)
    if current.state is LifecycleState.PENDING_CONSENT:
        waiting = current.waiting_for_grant(ErrorCode.ACCOUNT_MISMATCH, now)
        await tx.connections.replace(waiting, expected=current.revision)
    detail = {
        "reason": ErrorCode.ACCOUNT_MISMATCH,
        "consent": consent.id,
        "account": account_hash,
        "pinned": await identifiers.account_hash(current),
        "expected": sorted(current.expected_account or {}),
    }
    await append_audit(tx, call, AuditAction.ACCOUNT_MISMATCH, now, **detail)
    if current.flow.may_be_revoked:
        came_by = None if came is None else identifiers.hash_of(context.client_of(current), came)
        for slot_tokens in all_slots(tokens):
            await keep_unwanted_tokens(tx, call, context, current, slot_tokens, came_by, now)
    return MISMATCH


async def keep_refused_tokens(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    attempt: Attempt,
    failure: Failure,
    now: datetime,
) -> None:
    """Keep the tokens of a reply with an id token that was refused, to revoke them as unwanted ones are.

    Those of a connection that has ended are revoked at once, see `revoked_if_ended`.
    """
    if not isinstance(failure, IdTokenRefused):
        return
    current = await load_connection(tx, call, locked=True)
    if current.state.is_final or not current.flow.may_be_revoked:
        return
    came = failure.tokens.account
    owner = context.client_of(current)
    account_hash = None if came is None else tx.account_identifiers.hash_of(owner, came)
    await keep_unwanted_tokens(tx, call, context, current, failure.tokens, account_hash, now, attempt)


async def revoked_if_ended(
    services: GrantServices, call: ConnectionCall, context: ProviderContext, attempt: Attempt, why: Failure
) -> GrantResult | None:
    """Revoke the tokens of a refused id token whose connection has ended; None: there are none."""
    if not isinstance(why, IdTokenRefused):
        return None
    async with services.store.read() as tx:
        current = await load_connection(tx, call)
    if not current.state.is_final:
        return None
    return await revoke_orphaned_tokens(services, call, context, attempt, why.tokens)


async def record_sharing(
    tx: Transaction,
    call: ConnectionCall,
    owner: Connection,
    tokens: TokenSet,
    pin: str | None,
    now: datetime,
) -> None:
    """Record that the account is connected for other subjects too; `pin` is the one of before.

    A consent link that another person finished leaves this trace. So does an account that is meant to
    be shared.
    """
    if tokens.account is None or await tx.account_identifiers.account_hash(owner) == pin:
        return
    others = await tx.account_identifiers.of_other_subjects(owner, tokens.account)
    if others:
        await append_audit(tx, call, AuditAction.ACCOUNT_SHARED, now, connections=others)
