"""What a new grant replaces: kept sealed, and revoked by whether old and new are of one account.

What isn't revoked at once is revoked together with its connection.
"""

from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.connections.replaced import ReplacedGrant, continues, may_revoke
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConsentId, ReplacedGrantId, derived_id, new_id
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.outbox import revoke_replaced_message
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction

_UNREADABLE = (ErrorCode.SEAL_BROKEN, ErrorCode.KEY_UNAVAILABLE)


async def install_new_grant(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    current: Connection,
    after: Connection,
    tokens: TokenSet,
    grant: Grant,
    *,
    imported: bool = False,
    verified: AttemptId | None = None,
) -> Connection:
    """Install the grant of a consent, or one that was `imported`, and keep the tokens that it replaces.

    An import may be of the grant that the connection has, from another place: what it replaces is
    revoked with the connection only. So are late tokens that were waiting to be verified, but for those
    that `grant` was made from. Raises as `Grants.install`, and AUTHORITY_BROKEN for a pin that no worker
    wrote.
    """
    late = await _late_tokens(tx, current, verified)
    account = await tx.account_identifiers.own_account(current)
    old = await revocable_tokens(tx, current, after.changed_at)
    hosts = context.hosts_to_pin(grant.metadata)
    older = None if after.integration_id == current.integration_id else current.integration_id
    saved = await tx.grants.install(
        after, tokens, grant, origin=Origin.NEW, expected=current.revision, hosts=hosts, older=older
    )
    context = replace(context, connection=saved)
    if isinstance(old, ErrorCode):  # a new consent is the way out for a grant that can't be opened
        detail = {"generation": current.generation, "old_revoked": False, "reason": old}
        await append_audit(tx, call, AuditAction.GRANT_REPLACED, after.changed_at, **detail)
    elif old is not None and not continues(old, tokens):
        about = {"generation": current.generation, "account_hash": account}
        replaced = _replaced(current, after.changed_at, **about)
        await _keep(tx, call, context, replaced, old, wanted=not imported)
    for unverified in late:
        await keep_late_tokens_to_revoke(tx, call, context, current, unverified, after.changed_at)
    return saved


async def keep_late_tokens_to_revoke(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    current: Connection,
    tokens: TokenSet,
    now: datetime,
) -> None:
    """Keep tokens that came too late for a connection with a grant, until it is revoked.

    They may be of that very grant: of the same code, or the same refresh token.
    """
    if current.flow.may_be_revoked:
        await _keep(tx, call, context, _replaced(current, now), tokens, wanted=False)


async def keep_unwanted_tokens(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    current: Connection,
    tokens: TokenSet,
    account_hash: str | None,
    now: datetime,
    attempt: Attempt | None = None,
    *,
    wanted: bool = True,
) -> None:
    """Keep tokens that are never installed, to revoke them: of an account that the connection isn't for, of
    a reply that isn't believed, or that came too late.

    `account_hash`: of their account, None when the provider names none. Those of an `attempt` are kept once,
    however often its reply is judged. Not `wanted`: they may be of the grant in use, and wait for its end.
    """
    replaced = _replaced(context.client_of(current), now, account_hash=account_hash)
    if attempt is not None:
        id = ReplacedGrantId(derived_id("rpl", attempt.tenant, attempt.id))
        if await tx.replaced_grants.get(attempt.tenant, id) is not None:
            return
        replaced = replaced.__replace__(id=id)
    await _keep(tx, call, context, replaced, tokens, wanted=wanted)


def _replaced(current: Connection, now: datetime, **about: object) -> ReplacedGrant:
    values = {
        "tenant": current.tenant,
        "id": ReplacedGrantId(new_id("rpl")),
        "connection_id": current.id,
        "integration_id": current.integration_id,
        "pending": False,
        "replaced_at": now,
    }
    return ReplacedGrant.model_validate(values | about)


async def revocable_tokens(
    tx: Transaction, current: Connection, now: datetime
) -> TokenSet | ErrorCode | None:
    """The tokens of the connection's grant that may live on, or why they can't be opened."""
    if not current.flow.may_be_revoked:
        return None
    grant = await tx.grants.get(current.tenant, current.id)
    if grant is None:
        return None
    try:
        refresh_token = await tx.grants.refresh_token(current)
        if refresh_token is None and not grant.is_valid(now):
            return None
        access_token = await tx.grants.access_token(current)
    except Failure as failure:
        if failure.code not in _UNREADABLE:
            raise
        return failure.code
    return TokenSet(access_token=access_token, refresh_token=refresh_token, metadata=grant.metadata)


async def _late_tokens(tx: Transaction, current: Connection, verified: AttemptId | None) -> list[TokenSet]:
    """The late tokens that can be opened, without those of the attempt that was `verified`."""
    opened: list[TokenSet] = []
    for late in await tx.late_tokens.of_connection(current.tenant, current.id):
        if late.attempt_id != verified:
            with suppress(Failure):
                opened.append(await tx.late_tokens.tokens(late))
    return opened


async def _keep(
    tx: Transaction,
    call: ConnectionCall,
    context: ProviderContext,
    replaced: ReplacedGrant,
    tokens: TokenSet,
    *,
    wanted: bool,
) -> None:
    pending = wanted and await is_revocable(tx, context, replaced)
    replaced = replaced.__replace__(pending=pending)
    await tx.replaced_grants.add(replaced, tokens)
    at = replaced.replaced_at
    if pending:
        await tx.outbox.add(
            revoke_replaced_message(replaced.tenant, replaced.connection_id, call.context, at)
        )
    detail = {} if pending else {"old_revoked": False}
    await append_audit(
        tx,
        call,
        AuditAction.GRANT_REPLACED,
        at,
        generation=replaced.generation,
        same_account=await _is_of_same_account(tx, context.connection, replaced),
        reach=context.spec.revocation_reach,
        **detail,
    )


async def is_revocable(
    tx: Transaction, context: ProviderContext, replaced: ReplacedGrant, *, with_connection: bool = False
) -> bool:
    """True when the provider can revoke its tokens, and no grant in use ends with them.

    `with_connection`: the connection's own grant isn't in use any more.
    """
    if context.endpoints.revocation_endpoint is None:
        return False
    accounts, integration = tx.account_identifiers, (replaced.tenant, replaced.integration_id)
    if replaced.account_hash is not None:
        shared = await accounts.is_shared(*integration, replaced.account_hash, replaced.connection_id)
    else:  # it may be any other connection's; its own grant's at the latest when that ends
        shared = not with_connection and await accounts.any_other_has_a_grant(
            *integration, replaced.connection_id
        )
    same_account = await _is_of_same_account(tx, context.connection, replaced)
    reach = context.spec.revocation_reach
    return may_revoke(reach, same_account, shared=shared, with_connection=with_connection)


async def _is_of_same_account(
    tx: Transaction, connection: Connection, replaced: ReplacedGrant
) -> bool | None:
    """Whether they are of the account of the connection's grant as it is now; None: not known.

    A later consent may have come back to that account. What another client has got is of no account of this
    one's: it ends nothing of it.
    """
    if replaced.integration_id != connection.integration_id:
        return False
    if await tx.grants.get(connection.tenant, connection.id) is None:
        return False
    mine = await tx.account_identifiers.account_hash(connection)
    return None if mine is None or replaced.account_hash is None else mine == replaced.account_hash


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
    account = await _account_hash(tx, context, current, attempt, tokens)
    await keep_unwanted_tokens(tx, call, context, current, tokens, account, now, attempt, wanted=wanted)


async def _is_of_another_grant(tx: Transaction, current: Connection, tokens: TokenSet, now: datetime) -> bool:
    """False when the provider may have issued the grant in use again: its refresh token came back, or the
    reply has none to tell by."""
    in_use = await revocable_tokens(tx, current, now)
    if tokens.refresh_token is None:
        return False
    return in_use is None or (isinstance(in_use, TokenSet) and not continues(in_use, tokens))


async def _account_hash(
    tx: Transaction, context: ProviderContext, current: Connection, attempt: Attempt, tokens: TokenSet
) -> str | None:
    """Of the account that the reply names, or that the grant of before had."""
    if tokens.account is not None:
        return tx.account_identifiers.hash_of(context.client_of(current), tokens.account)
    replaced = await tx.replaced_grants.of_connection(current.tenant, current.id)
    return next(
        (grant.account_hash for grant in replaced if grant.generation == attempt.from_generation), None
    )
