"""Verifies late tokens with a refresh: another use may have invalidated them, and a success is the proof."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from temporalio import activity

from activities.grants import GrantServices
from activities.grants.account_check import (
    is_meant_account,
    record_sharing,
    refuse_account,
    require_own_account,
    with_believed_account,
)
from activities.grants.client_secrets import is_client_refused
from activities.grants.replaced_grants import install_new_grant, keep_overtaken_tokens, keep_unwanted_tokens
from activities.grants.spend import GrantSpend, spend
from activities.grants.token_request import RefreshTokenRequest
from activities.grants.token_slots import install_further_slots
from activities.single_use.attempt import JournaledReply, SingleUseAttempt
from activities.support.provider_context import ProviderContext
from activities.support.temporal import failed_grant_result, heartbeating, internal_after_last_try
from activities.support.transactions import (
    append_audit,
    close_attempt,
    commit_with_retries,
    load_connection,
    record_grant,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet, granted_scopes
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult, VerifyLateTokens
from evergrant_server.core.messages.connection import LateTokensReceived, ProviderChanged, Rotate
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome, LateTokens
from evergrant_server.store import Transaction
from providers.responses.raw_reply import RawReply
from providers.responses.reply_error import UnknownRefusal
from providers.responses.token_response import read_tokens


async def keep_late_tokens(
    tx: Transaction, call: ConnectionCall, attempt: Attempt, tokens: TokenSet, at: datetime
) -> None:
    """Store the tokens sealed and signal the workflow, in the transaction that finds them late."""
    late = LateTokens(
        tenant=attempt.tenant,
        attempt_id=attempt.id,
        connection_id=attempt.connection_id,
        from_generation=attempt.from_generation,
        requested_at=attempt.first_opened_at,
        received_at=at,
    )
    if not await tx.late_tokens.add(late, tokens):
        return  # a replay: they are stored already
    await append_audit(
        tx,
        call,
        AuditAction.LATE_TOKENS_RECEIVED,
        at,
        attempt=attempt.id,
        from_generation=attempt.from_generation,
        sends=attempt.sends,
        sent_by=attempt.send_by.isoformat(),
    )
    await signal_late_tokens(tx, call, attempt, at)


async def keep_for_last_try(
    tx: Transaction, context: ProviderContext, refused: Attempt, at: datetime
) -> None:
    """Keep the tokens of a grant that is only probably over: the workflow tries them a day later."""
    grant = context.grant
    assert grant is not None
    late = LateTokens(
        tenant=refused.tenant,
        attempt_id=refused.id,
        connection_id=refused.connection_id,
        from_generation=refused.from_generation,
        requested_at=refused.first_opened_at,
        received_at=at,
    )
    tokens = TokenSet(
        access_token=context.tokens.access_token(),
        refresh_token=context.tokens.refresh_token(),
        scopes=grant.scopes,
    )
    await tx.late_tokens.add(late, tokens)


async def signal_late_tokens(tx: Transaction, call: ConnectionCall, attempt: Attempt, at: datetime) -> None:
    """Have the workflow verify them, or read the store if they are installed already."""
    received = LateTokensReceived(attempt_id=attempt.id, context=call.context)
    message = signal_message(
        attempt.tenant, attempt.connection_id, SignalName.LATE_TOKENS_RECEIVED, received, at
    )
    await tx.outbox.add(message)


async def signal_rotate(tx: Transaction, request: ConnectionCall, row: Attempt, now: datetime) -> None:
    """Have the workflow refresh now: a second use of the token may have invalidated its successor.

    The first signal tells a workflow that doesn't know the successor yet.
    """
    reason = "a second use of the previous token may have invalidated this grant"
    for seen in (row.from_generation, row.from_generation + 1):
        rotate = Rotate(reason=reason, context=request.context, seen_generation=seen)
        message = signal_message(request.tenant, request.connection_id, SignalName.ROTATE, rotate, now)
        await tx.outbox.add(message)


async def signal_changed(tx: Transaction, request: ConnectionCall, saved: Connection, now: datetime) -> None:
    """Have the workflow read the store now: it may be waiting for hours."""
    changed = ProviderChanged(version=saved.revision, context=request.context)
    message = signal_message(request.tenant, request.connection_id, SignalName.PROVIDER_CHANGED, changed, now)
    await tx.outbox.add(message)


def awaits_verification(connection: Connection, late: LateTokens) -> bool:
    """True while the tokens may still bring the connection back."""
    return connection.state in STATES_WITHOUT_GRANT and connection.generation == late.from_generation


@dataclass(frozen=True)
class LateReply:
    """The tokens of a late reply, and the consent that it answered."""

    asked_at: datetime
    tokens: TokenSet
    consent: Consent | None  # whose code or device code was spent; None: a refresh token was
    is_last_try: bool = False  # they are the grant's own, which is probably over

    def scopes(self, context: ProviderContext) -> tuple[str, ...]:
        """The granted scopes: a refresh may not ask for more (RFC 6749 section 6)."""
        requested = context.grant.scopes if context.grant is not None else context.connection.requested_scopes
        return granted_scopes(self.tokens.scopes, requested if self.consent is None else self.consent.scopes)

    def metadata(self, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """A consent replaces the metadata of the grant before; a refresh adds to it."""
        return self.tokens.metadata if self.consent else {**before, **self.tokens.metadata}

    def merged_with(self, tokens: TokenSet, since: datetime) -> TokenSet:
        """The tokens of the verifying refresh, with what only the late reply said."""
        late = self.tokens
        refresh_expires_in = tokens.refresh_expires_in
        if refresh_expires_in is None and late.refresh_expires_in is not None:
            refresh_expires_in = late.refresh_expires_in - (since - self.asked_at).total_seconds()
        # no refresh token in the reply: keep the one that was just used (RFC 6749 section 6)
        return tokens.__replace__(
            refresh_token=tokens.refresh_token or late.refresh_token,
            refresh_expires_in=refresh_expires_in,
            id_token=tokens.id_token or late.id_token,
            account=late.account or tokens.account,
            scopes=tokens.scopes or late.scopes,
            metadata=late.metadata | tokens.metadata,
            further=late.further,
        )


class LateTokenActivities:
    """Spends the late refresh token by the same protocol as any other."""

    def __init__(self, services: GrantServices) -> None:
        self._services = services
        self._store = services.store

    @activity.defn(name=jobs.VERIFY_LATE_TOKENS.name)
    async def verify_late_tokens(self, request: VerifyLateTokens) -> GrantResult:
        """Return what the store holds. A failure of kind ReconnectNeeded: the tokens are invalid."""
        async with heartbeating():
            try:
                with internal_after_last_try():
                    result = await self._verify(request)
                return result if _is_undecided(result) else await self._with_next(request, result)
            except Failure as failure:
                if failure.code is ErrorCode.OUTCOME_UNKNOWN:
                    return await self._with_next(request, await self._drop(request, failure.code))
                return failed_grant_result(failure)

    async def _verify(self, request: VerifyLateTokens) -> GrantResult:
        """The verification from load to commit."""
        services = self._services
        context = await services.contexts.load(request.tenant, request.connection_id)
        context = context.without_staged_definition()
        async with self._store.read() as tx:
            late = await tx.late_tokens.get(request.tenant, request.attempt_id)
        if late is None or not awaits_verification(context.connection, late):
            return await self._already_decided(request)
        late_reply = await self._load_reply(late)
        refresh_token, flow = late_reply.tokens.refresh_token, context.connection.flow
        if refresh_token is None or flow.is_client_grant or not context.spec.refresh_supported:
            return await self._drop(request, ErrorCode.CONSENT_REQUIRED)  # nothing to verify them with
        if late_reply.consent is not None:
            await require_own_account(self._store, context.connection)
        facts = late_reply.metadata(context.facts)

        def spend_with(candidate: ProviderContext) -> LateTokensSpend:
            # these tokens aren't installed yet
            own_context = candidate.with_facts(facts).for_new_grant()
            return LateTokensSpend(services, request, own_context, late_reply)

        _, result = await spend(context, spend_with)
        return result

    async def _with_next(self, request: VerifyLateTokens, result: GrantResult) -> GrantResult:
        """Name the next late tokens to verify: the workflow knows of one at a time."""
        async with self._store.read() as tx:
            connection = await load_connection(tx, request)
            stored = await tx.late_tokens.of_connection(request.tenant, request.connection_id)
        others = (
            late.attempt_id
            for late in stored
            if late.attempt_id != request.attempt_id and awaits_verification(connection, late)
        )
        return result.__replace__(next_late_attempt=next(others, None))

    async def replay(self, attempt: SingleUseAttempt, journaled: JournaledReply) -> GrantResult:
        """Judge and commit a reply that a journal holds, as one that has just arrived."""
        services, request = self._services, VerifyLateTokens.model_validate(journaled.request)
        context = await services.contexts.load(request.tenant, request.connection_id)
        async with self._store.read() as tx:
            late = await tx.late_tokens.get(request.tenant, request.attempt_id)
        if late is None:
            return await self._already_decided(request)
        trusted, late_reply = context.without_staged_definition(), await self._load_reply(late)
        replayed = LateTokensSpend(services, request, trusted, late_reply)
        return await services.single_use.conclude(attempt, journaled, replayed)

    async def _load_reply(self, late: LateTokens) -> LateReply:
        async with self._store.read() as tx:
            tokens = await tx.late_tokens.tokens(late)
            row = await tx.attempts.get(late.tenant, late.attempt_id)
            consent_id = row.credential if row is not None else ""
            consent = await tx.consents.get(late.tenant, ConsentId(consent_id)) if consent_id else None
        last_try = row is not None and row.outcome is AttemptOutcome.REFUSED
        return LateReply(late.requested_at, tokens, consent, last_try)

    async def _drop(self, request: VerifyLateTokens, reason: ErrorCode) -> GrantResult:
        """Give up tokens that can't be verified, and may be valid: they are kept only to be revoked."""
        context, now = (
            await self._services.contexts.load(request.tenant, request.connection_id),
            self._services.clock.now(),
        )

        async def drop(tx: Transaction) -> GrantResult:
            current = await load_connection(tx, request, locked=True)
            late = await tx.late_tokens.get(request.tenant, request.attempt_id)
            if late is not None and current.flow.may_be_revoked:
                tokens = await tx.late_tokens.tokens(late)
                account = tokens.account and tx.account_identifiers.hash_of(current, tokens.account)
                await keep_unwanted_tokens(tx, request, context, current, tokens, account, now)
            return await _drop_refused(tx, request, reason, now)

        return await commit_with_retries(self._store, drop)

    async def _already_decided(self, request: VerifyLateTokens) -> GrantResult:
        """Verified by an earlier try, or overtaken by another grant or a revocation."""
        context = await self._services.contexts.load(request.tenant, request.connection_id)
        result = context.stored_result(context.connection, context.grant)
        return result.__replace__(consent_over=result.failure is not None)


@dataclass
class LateTokensSpend(GrantSpend[VerifyLateTokens]):
    """Brings the connection back with what the verifying refresh returned, or drops the late tokens."""

    late_reply: LateReply

    kind = AttemptKind.LATE_TOKENS

    @property
    def credential(self) -> str:
        return self.call.attempt_id

    async def request(self) -> RefreshTokenRequest:
        token = self.late_reply.tokens.refresh_token
        assert token is not None
        return RefreshTokenRequest(self.context, self.context.integration.refresh, token)

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        scopes = self.late_reply.scopes(context)
        return read_tokens(context.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at)

    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        request, context, consent = self.call, self.context, self.late_reply.consent
        now = self.services.clock.now()
        tokens = self.late_reply.merged_with(with_believed_account(context, tokens), since)
        current = await load_connection(tx, request, locked=True)
        if current.state.is_final:
            return None
        if current.generation != attempt.row.from_generation:
            await close_attempt(tx, attempt.row, AttemptOutcome.SUPERSEDED, now)
            consent_id = None if consent is None else consent.id
            await keep_overtaken_tokens(tx, request, context, attempt.row, tokens, now, consent_id)
            return context.stored_result(current, await tx.grants.get(current.tenant, current.id))
        if consent is not None and not await is_meant_account(tx, context, current, tokens):
            await close_attempt(tx, attempt.row, AttemptOutcome.REFUSED, now)
            await _drop_refused(tx, request, ErrorCode.ACCOUNT_MISMATCH, now)
            return await refuse_account(tx, request, context, current, consent, tokens, now)
        pin = await tx.account_identifiers.account_hash(current)
        after = current.granted(now)
        if consent is not None:
            after = context.after_consent(after, consent)
        saved, grant = await self._install_grant(tx, current, after, tokens, since)
        # the reply to the code is valid, and so are the tokens for further slots that came with it
        ring = self.services.store.ring
        further = self.late_reply.tokens
        await install_further_slots(tx, ring, request, context, saved, further, since, now, consent)
        await close_attempt(tx, attempt.row, AttemptOutcome.INSTALLED, now)
        await record_sharing(tx, request, saved, tokens, pin, now)
        if consent is not None:  # it was written off when its code was refused a second time
            detail = {"late_attempt": request.attempt_id}
            await record_grant(tx, request, current, consent, grant, now, tokens.account, **detail)
        elif current.state is not LifecycleState.REVOKING:
            detail = {"generation": grant.generation, "late_attempt": request.attempt_id}
            await append_audit(tx, request, AuditAction.CONNECTION_RECOVERED, now, **detail)
        return context.grant_result(saved, grant)

    async def _install_grant(
        self, tx: Transaction, current: Connection, after: Connection, tokens: TokenSet, since: datetime
    ) -> tuple[Connection, Grant]:
        """A consent's tokens are a new grant; a refresh's continue the one before."""
        request, context, consent = self.call, self.context, self.late_reply.consent
        stored = await tx.grants.get(request.tenant, request.connection_id)  # its account may be chosen
        grant = Grant.from_tokens(
            tokens,
            generation=after.generation,
            requested=after.requested_scopes,
            at=since,
            before=stored if consent is None else None,
        )
        if consent is None:
            hosts = context.hosts_to_pin(grant.metadata)
            saved = await tx.grants.install(
                after, tokens, grant, origin=Origin.REFRESH, expected=current.revision, hosts=hosts
            )
        else:
            saved = await install_new_grant(
                tx, request, context, current, after, tokens, grant, verified=request.attempt_id
            )
        return saved, grant

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        now = self.services.clock.now()
        if outcome is not None:
            await close_attempt(tx, attempt.row, outcome, now)
        if failure.kind is FailureKind.RECONNECT_NEEDED:
            return await _drop_refused(tx, self.call, failure.code, now, **words_in(failure))
        refused = outcome is AttemptOutcome.REFUSED and isinstance(failure, UnknownRefusal)
        if refused and self.late_reply.is_last_try:
            reason = ErrorCode.GRANT_PROBABLY_OVER
            return await _drop_refused(tx, self.call, reason, now, last_try=True, **words_in(failure))
        return GrantResult(
            attempt_id=attempt.row.id,
            failure=failure.code,
            retry_after=failure.retry_after,
            client_refused=is_client_refused(failure),
        )


async def _drop_refused(
    tx: Transaction, request: VerifyLateTokens, reason: ErrorCode, now: datetime, **words: object
) -> GrantResult:
    """Delete these late tokens and no others; the connection stays as it is."""
    await tx.late_tokens.delete(request.tenant, request.connection_id, request.attempt_id)
    detail = {"attempt": request.attempt_id, "verified": False, "reason": reason, **words}
    await append_audit(tx, request, AuditAction.LATE_TOKENS_RECEIVED, now, **detail)
    return GrantResult(failure=reason)


def _is_undecided(result: GrantResult) -> bool:
    """True when a grant came, or nothing that says whether the tokens are valid."""
    if result.failure is None:
        return True
    return not result.consent_over and FAILURES[result.failure].kind is not FailureKind.RECONNECT_NEEDED
