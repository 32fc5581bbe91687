"""Revokes tokens at their provider (RFC 7009), also those that arrive after their connection has ended."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

from activities.grants import GrantServices
from activities.grants.client_secrets import try_each_secret
from activities.support.provider_context import ProviderContext
from activities.support.transactions import (
    append_audit,
    close_attempt,
    commit_with_retries,
    load_connection,
    log_words,
)
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.replaced import RevocationReach
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import (
    CONSENTED,
    ROTATING,
    Attempt,
    AttemptKind,
    AttemptOutcome,
    LateTokens,
)
from evergrant_server.egress import BeforeSend
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames
from providers.requests.request_format import ProviderAccess, ProviderRequest, revocation_request
from providers.requests.sender import Sender
from providers.responses.error_mapping import (
    is_token_refused,
    is_unsupported_token_type,
    read_revocation,
)
from providers.responses.raw_reply import RawReply

log = logging.getLogger("evergrant.activities")

_BEST_FIRST = (
    RevocationOutcome.NOTHING_HELD,
    RevocationOutcome.CONFIRMED,
    RevocationOutcome.UNKNOWN,
    RevocationOutcome.ACCESS_TOKEN_ONLY,
    RevocationOutcome.NOT_SUPPORTED,
)
_EVER = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_ANSWERS = 20  # of one revocation
_REVOKE_TIMEOUT_S = 10.0  # a silent provider must not keep a connection from ending


class AnswersKept(Sender):
    """Sends as another sender, and keeps what each reply to a revocation proves: host, status, and of which
    token."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.answers: list[dict[str, str | int]] = []

    async def send(
        self, access: ProviderAccess, request: ProviderRequest, *, before_send: BeforeSend | None = None
    ) -> RawReply:
        reply = await self._sender.send(access, request, before_send=before_send)
        host = urlsplit(request.url).hostname or ""
        answer: dict[str, str | int] = {"host": host, "status": reply.status}
        hint = request.fields.get("token_type_hint")
        self.answers = [*self.answers, answer | ({} if hint is None else {"token": hint})][-_MOST_ANSWERS:]
        return reply


def worst(outcomes: Iterable[RevocationOutcome]) -> RevocationOutcome:
    """The outcome of several revocations: what is true of them all."""
    return max(outcomes, key=_BEST_FIRST.index)


async def revoke_all_slots(sender: Sender, context: ProviderContext, tokens: TokenSet) -> RevocationOutcome:
    """The tokens of one reply, each slot's at the host that its own facts name. Raises as below."""
    return worst(
        [
            await revoke_at_provider(
                sender,
                context_for_tokens(context, slot_tokens),
                slot_tokens.refresh_token,
                slot_tokens.access_token,
            )
            for slot_tokens in all_slots(tokens)
        ]
    )


async def revoke_at_provider(
    sender: Sender, context: ProviderContext, refresh_token: Secret | None, access_token: Secret
) -> RevocationOutcome:
    """What the provider has confirmed. Raises Failure when that is nothing (RFC 7009 section 2.2.1)."""
    rule = context.spec.own_revocation
    if context.connection.flow.is_client_grant:
        refresh_token = None  # an imported token that is exchanged stays valid: the subject owns it
    refresh, access = (refresh_token, "refresh_token"), (access_token, "access_token")
    if rule is not None:  # not by RFC 7009: one token revokes the whole grant
        first, second = (refresh, access) if rule.token == "refresh_token" else (access, refresh)
        ended = await _revoke_token(sender, context, *first) or await _revoke_token(sender, context, *second)
        return RevocationOutcome.CONFIRMED if ended else RevocationOutcome.NOT_SUPPORTED
    grant_ended = await _revoke_token(sender, context, *refresh)
    try:
        access_ended = await _revoke_token(sender, context, *access)
    except Failure as failure:
        # ended with its refresh token (RFC 7009 section 2.1); some refuse an unknown token
        if not (grant_ended and is_token_refused(failure, client_works=True)):
            raise
        access_ended = True
    if grant_ended or (access_ended and refresh_token is None):
        return RevocationOutcome.CONFIRMED
    return RevocationOutcome.ACCESS_TOKEN_ONLY if access_ended else RevocationOutcome.NOT_SUPPORTED


async def lost_uses(store: Store, context: ProviderContext) -> list[Attempt]:
    """The uses of the connection's credentials whose answer was lost, the newest first: what they made can't
    be revoked by itself. An answer that came late isn't lost: its tokens are kept to be revoked, or were."""
    rotates = context.integration.refresh.rotation is not Rotation.NONE
    connection, kinds = context.connection, (*CONSENTED, *(ROTATING if rotates else ()))
    mine, actions = (connection.tenant, connection.id), (AuditAction.LATE_TOKENS_RECEIVED,)
    async with store.read() as tx:
        unread = await tx.attempts.lost(*mine, kinds)
        records = await audit.newest_records(tx, *mine, actions, _EVER) if unread else []
        late = [await tx.attempts.get(connection.tenant, record.detail["attempt"]) for record in records]
    read = {_credential_of(use) for use in late if use is not None}
    return [use for use in unread if _credential_of(use) not in read]


def _credential_of(use: Attempt) -> tuple[AttemptKind, int, str]:
    return use.kind, use.from_generation, use.credential


async def revoke_by_grant(
    sender: Sender,
    context: ProviderContext,
    refresh_token: Secret | None,
    access_token: Secret,
    *,
    other_grants: bool,
) -> bool:
    """Whether the provider has ended the grant as a whole, with the tokens that Evergrant doesn't hold.

    A live access token does that where the definition says that one token ends its grant; with `other_grants`
    only where it ends all of the account's. The refresh token, which may be spent, is sent after it. Raises
    as `revoke_at_provider`.
    """
    rule = context.spec.own_revocation
    by_account = context.spec.revocation_reach is RevocationReach.GRANT
    if not by_account and (other_grants or rule is None or rule.token != "access_token"):
        return False
    try:
        ended = await _revoke_token(sender, context, access_token, "access_token")
    except Failure as failure:
        if not is_token_refused(failure, client_works=True):
            raise
        return False  # it wasn't live
    if ended:
        with suppress(Failure):  # it ended with its grant
            await _revoke_token(sender, context, refresh_token, "refresh_token")
    return ended


async def _revoke_token(sender: Sender, context: ProviderContext, token: Secret | None, hint: str) -> bool:
    """False without a token, or when the provider revokes none of its type.

    200 means revoked, also for an unknown token; 503 means still valid (RFC 7009 section 2.2).
    """
    if token is None:
        return False
    request = revocation_request(context, token, hint)
    reply = await sender.send(context, request)
    if is_unsupported_token_type(context.spec, reply):
        return False
    read_revocation(context.spec, reply)
    return True


async def revoke_orphaned_tokens(
    services: GrantServices,
    call: ConnectionCall,
    context: ProviderContext,
    attempt: Attempt,
    tokens: TokenSet,
) -> GrantResult:
    """Revoke them once, and record whether the provider confirmed: no workflow is left to try again."""
    # a staged definition isn't relied on: the wrong endpoint may confirm, too
    trusted = context.without_staged_definition()
    revoked = [await _is_revoked(services.sender, trusted, slot_tokens) for slot_tokens in all_slots(tokens)]

    async def record(tx: Transaction) -> GrantResult:
        now = services.clock.now()
        current = await load_connection(tx, call)
        await close_attempt(tx, attempt, AttemptOutcome.SUPERSEDED, now)
        detail = {"attempt": attempt.id, "state": current.state, "revoked": all(revoked)}
        await append_audit(tx, call, AuditAction.LATE_TOKENS_RECEIVED, now, **detail)
        failure = current.reason or ErrorCode.CONNECTION_REVOKED
        return GrantResult(attempt_id=attempt.id, state=current.state, failure=failure, consent_over=True)

    return await commit_with_retries(services.store, record)


async def revoke_late_tokens(
    services: GrantServices, call: ConnectionCall, context: ProviderContext, late: Sequence[LateTokens]
) -> None:
    """Revoke late tokens that were not verified before their connection ended."""
    trusted = context.without_staged_definition()
    async with services.store.read() as tx:
        tokens = [await tx.late_tokens.tokens(row) for row in late]
    revoked = await asyncio.gather(*(_is_revoked_in_time(services.sender, trusted, kept) for kept in tokens))
    for item, confirmed in zip(late, revoked, strict=True):
        detail = {"attempt": item.attempt_id, "state": context.connection.state, "revoked": confirmed}

        async def record(
            tx: Transaction, item: LateTokens = item, detail: dict[str, object] = detail
        ) -> None:
            await tx.late_tokens.delete(item.tenant, item.connection_id, item.attempt_id)
            await append_audit(tx, call, AuditAction.LATE_TOKENS_RECEIVED, services.clock.now(), **detail)

        await commit_with_retries(services.store, record)


def all_slots(tokens: TokenSet) -> tuple[TokenSet, ...]:
    """The main slot's tokens and those of further slots, all with the main slot's metadata."""
    further = (
        slot_tokens.__replace__(metadata={**tokens.metadata, **slot_tokens.metadata})
        for slot_tokens in tokens.further.values()
    )
    return tokens, *further


def context_for_tokens(context: ProviderContext, tokens: TokenSet) -> ProviderContext:
    """The context for tokens whose own reply may have named the host they are valid at."""
    return context.with_facts({**context.facts, **tokens.metadata}).for_new_grant()


async def _is_revoked_in_time(sender: Sender, context: ProviderContext, tokens: TokenSet) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(_REVOKE_TIMEOUT_S):
            return all([await _is_revoked(sender, context, slot_tokens) for slot_tokens in all_slots(tokens)])
    return False


async def _is_revoked(sender: Sender, context: ProviderContext, tokens: TokenSet) -> bool:
    async def revoke(with_secret: ProviderContext) -> RevocationOutcome:
        own_context = context_for_tokens(with_secret, tokens)
        return await revoke_at_provider(sender, own_context, tokens.refresh_token, tokens.access_token)

    if context.endpoints.revocation_endpoint is None:
        return False
    try:
        return (await try_each_secret(context, revoke))[0] is RevocationOutcome.CONFIRMED
    except Failure as failure:
        log_words(failure, context.connection.id)
        return False
    except Exception as unexpected:  # raised from a journal sweep, it would be tried again every second
        place = f"revocation: {type(unexpected).__name__} at {stack_frames(unexpected)[-1]}"
        log_event(log, logging.ERROR, LogEvent.ACTIVITY_FAILED, place, object=context.connection.id)
        return False
