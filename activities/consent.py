"""The end of a consent: its code exchanged for the first tokens, or its deadline, or a no."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from temporalio import activity

from activities.answers import Answer
from activities.chains import install_chains
from activities.client_secrets import client_refused
from activities.clocks import living_from
from activities.definitions import doubted
from activities.failures import away, grant_news
from activities.first_tokens import by_code, code_endpoint, first_tokens, with_callback
from activities.heartbeat import heartbeats
from activities.holdings import Holdings
from activities.late_answers import keep_late, tell_of_late
from activities.provider_activities import ProviderActivities
from activities.records import closed, connection_of, record, settled
from activities.renewal import Reading
from activities.single_use import Ending, Use, open_attempt
from activities.transfer import end_consent, import_waits, install_import
from activities.unwanted import late_ones_turned_away, turned_away
from activities.wellbeing import note_recovery
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.access import Endpoints
from evergrant_server.core.account import FollowUp
from evergrant_server.core.attempt import Attempt, AttemptKind, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.beginning import news_of
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.grant import Grant, Origin, TokenSet
from evergrant_server.core.id_token import require_nonce
from evergrant_server.core.late import WANTED
from evergrant_server.core.messages import ActivityName, EndConsent, ExchangeCode, GrantNews, MintGrant
from evergrant_server.core.provider import RefreshRules, Rotation
from evergrant_server.store import Tx
from providers.reply import RawReply
from providers.resolve import bound_params

ASKED_AGAIN = (Code.REFRESH_PENDING, Code.JOURNAL_UNAVAILABLE)
PATIENCE = 200  # tries, three seconds apart: longer than an answer may be waited for
CODES_ARE_SINGLE_USE = RefreshRules(rotation=Rotation.STRICT)  # RFC 6749 section 4.1.2


class ConsentActivities(ProviderActivities):
    """Exchanges codes and writes how a consent ended."""

    @activity.defn(name=ActivityName.EXCHANGE_CODE)
    async def exchange_code(self, order: ExchangeCode) -> GrantNews:
        """Spend the code of a consent, once. Says what the store holds afterwards.

        An import is a consent that came with its tokens: they are installed, and nothing is spent.
        """
        async with heartbeats():
            try:
                consent = await self._consent(order)
                held = await self._holder.take(order.tenant, order.connection_id)
                if consent.kind is ConsentKind.IMPORT:
                    return await install_import(self._store, self._clock, order, held, consent)
                return await self._ended(consent, held) or await self._either_secret.asked(
                    order, held, partial(self._by_definition, order, consent)
                )
            except Failure as failure:
                if failure.code in ASKED_AGAIN and activity.info().attempt < PATIENCE:
                    raise  # nothing was sent. Temporal asks again; nobody else would
                if failure.kind is Kind.PLATFORM_UNAVAILABLE and await import_waits(self._store, order):
                    raise  # its tokens are good when the platform is again
                news = grant_news(failure)
                if (done := await self._done_meanwhile(order)) is not None:
                    return done
                await self._give_up(order, failure)
                return news

    async def _done_meanwhile(self, order: ExchangeCode | MintGrant) -> GrantNews | None:
        """What a replay brought while this try was under way: the code that it wanted is gone since."""
        async with self._store.read() as tx:
            consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.DONE:
            return None
        return await self._ended(consent, await self._holder.take(order.tenant, order.connection_id))

    async def _give_up(self, order: ExchangeCode, failure: Failure) -> None:
        """A code that can't be spent doesn't wait for ever: the subject opens a link again.

        An import's tokens are no such code: they stay, until its deadline, unless nobody can open them.
        """

        async def give_up(tx: Tx) -> None:
            consent = await tx.consents.get(order.tenant, order.consent_id)
            waits = consent is not None and consent.status is ConsentStatus.CODE_RECEIVED
            kept = consent is not None and consent.kind is ConsentKind.IMPORT and not consent.from_browser
            if consent is None or not waits or (kept and failure.code is not Code.SEAL_BROKEN):
                return
            await end_consent(tx, consent, ConsentStatus.FAILED, failure.code)
            now = self._clock.now()
            await record(tx, order, AuditAction.CONSENT_FAILED, now, reason=failure.code, consent=consent.id)

        await settled(self._store, give_up)

    async def _consent(self, order: ExchangeCode | MintGrant) -> Consent:
        async with self._store.read() as tx:
            consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.connection_id != order.connection_id:
            raise Failure(Code.CALLBACK_INVALID, f"there is no consent {order.consent_id}")
        return consent

    async def _ended(self, consent: Consent, held: Holdings) -> GrantNews | None:
        """The answer when an earlier try of this activity had already committed."""
        if consent.status is ConsentStatus.DONE and held.grant is not None:
            return held.news(held.connection, held.grant)
        if consent.status is not ConsentStatus.CODE_RECEIVED:
            return GrantNews(failure=Code(consent.failure or Code.CALLBACK_INVALID), over=True)
        if held.connection.state is State.REVOKING or held.connection.state.final:
            raise Failure(Code.CONNECTION_REVOKED)  # an unspent code is no grant: nothing to revoke
        return None

    async def _by_definition(self, order: ExchangeCode, consent: Consent, held: Holdings) -> GrantNews:
        ask = partial(self._exchange, order, consent, held.endpoints)
        return await self._either_definition.asked(held, ask)

    async def _exchange(
        self, order: ExchangeCode, consent: Consent, first_asked: Endpoints, held: Holdings
    ) -> GrantNews:
        async with self._store.read() as tx:
            code = await tx.consents.code(consent)
            verifier = await tx.consents.verifier(consent)
        redirect_uri = consent.redirect_uri
        token_endpoint = code_endpoint(consent, first_asked, held.endpoints)
        if redirect_uri is None or token_endpoint is None:
            raise Failure(Code.CALLBACK_INVALID, "the consent was never started")
        endpoints = held.endpoints.model_copy(update={"token_endpoint": token_endpoint})
        use = await self._single_use.begin(
            AttemptKind.CODE_EXCHANGE,
            held.connection,
            CODES_ARE_SINGLE_USE,
            token_valid=False,
            credential=consent.id,
        )
        reading = self._reading(held, consent, self._clock.now)
        at, params = self._clock.now(), held.integration.params | bound_params(held.spec, consent.facts)
        news = await self._single_use.spend(
            use,
            order,
            send=lambda check: by_code(
                self._sender, held, endpoints, code, verifier, redirect_uri, params, at, before_send=check
            ),
            ending=self._ending(order, held, consent, reading, provisional=held.provisional),
        )
        metrics.code_exchanged(held.spec.name, news.failure)
        return news.model_copy(update={"read_as_before": reading.as_before})

    def _reading(self, held: Holdings, consent: Consent, came_at: Callable[[], datetime]) -> Reading:
        return Reading(held, lambda by, reply: self._read(by, reply, consent, came_at()))

    def _read(self, held: Holdings, reply: RawReply, consent: Consent, came_at: datetime) -> TokenSet:
        """Pure. Raises as `read_tokens`, and as `require_nonce`: what isn't ours is not installed."""
        tokens = first_tokens(held, reply, consent.scopes, came_at)
        require_nonce(tokens.id_token, consent.nonce_hash)
        return tokens

    async def answered(self, use: Use, answer: Answer) -> GrantNews:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = ExchangeCode.model_validate(answer.order)
        consent = await self._consent(order)
        held = await self._holder.take(order.tenant, order.connection_id)
        reading = self._reading(held, consent, lambda: answer.came_at)
        provisional = held.provisional or answer.provisional  # it may have been rolled back since
        ending = self._ending(order, held, consent, reading, provisional=provisional)
        return await self._single_use.conclude(use, answer.reply, ending)

    def _ending(
        self,
        order: ExchangeCode,
        held: Holdings,
        consent: Consent,
        reading: Reading,
        *,
        provisional: bool,
    ) -> Ending[GrantNews]:
        return Ending(
            judge=reading.tokens,
            commit=partial(self._install, order, held, consent),
            settle=partial(self._settle, order, held, consent, provisional),
            provisional=provisional,
        )

    async def _install(
        self,
        order: ExchangeCode | MintGrant,
        held: Holdings,
        consent: Consent,
        use: Use,
        tokens: TokenSet,
    ) -> GrantNews:
        attempt, tokens = use.attempt, with_callback(tokens, consent)
        since = living_from(self._clock, attempt, tokens)

        async def install(tx: Tx) -> GrantNews | None:
            now = self._clock.now()
            current = await connection_of(tx, order)
            ended = await tx.attempts.get(attempt.tenant, attempt.id)
            if ended is None or ended.outcome not in (None, Outcome.UNREAD):
                installed = ended is not None and ended.outcome is Outcome.INSTALLED
                return await self._too_late(tx, order, held, current, use, tokens, installed=installed)
            if current.state.final:
                return None
            was_unread = ended.outcome is Outcome.UNREAD
            if was_unread and _overtaken(current, attempt):
                await tx.attempts.close(ended, Outcome.SUPERSEDED, now)
                return await self._too_late(tx, order, held, current, use, tokens, installed=False)
            # a consent by which scopes were added or given up says what the next one asks for
            granted = current.granted(now, order.generation)
            looking = FollowUp.LOOKING if held.spec.post_auth and current.flow.bears else None
            after = granted.model_copy(
                update={
                    "requested_scopes": consent.scopes,
                    "chain_scopes": current.chain_scopes | consent.chain_scopes,
                    "follow_up": looking,
                }
            )
            grant = Grant.from_tokens(
                tokens,
                generation=after.generation,
                requested=consent.scopes,
                at=since,
                renewable=held.renewable or held.interim,
                interim=held.interim,
            )
            saved = await tx.grants.install(
                after, tokens, grant, origin=Origin.NEW, expected=current.revision
            )
            await install_chains(tx, self._store.ring, order, saved, tokens, since, now)
            # not `closed`: who takes over in this moment makes this a conflict, and its row says so then
            await tx.attempts.close(ended, Outcome.INSTALLED, now)
            await note_recovery(tx, order, current, now)
            await self._end(tx, consent, ConsentStatus.DONE)
            await record(
                tx,
                order,
                AuditAction.GRANT_INSTALLED,
                now,
                generation=grant.generation,
                scopes=list(grant.scopes),
                consent=consent.id,
            )
            if was_unread:  # its workflow has given the consent up
                await tell_of_late(tx, order, attempt, now)
            return held.news(saved, grant)

        news = await settled(self._store, install, use.keys)
        if news is not None:
            return news
        return await turned_away(self._store, self._clock, self._sender, order, held, use, tokens)

    async def _too_late(
        self,
        tx: Tx,
        order: ExchangeCode | MintGrant,
        held: Holdings,
        current: Connection,
        use: Use,
        tokens: TokenSet,
        *,
        installed: bool,
    ) -> GrantNews | None:
        """The attempt is over: a neighbour replayed it, or took over and was refused. None: nobody wants
        what came, and the provider is told."""
        grant = await tx.grants.get(order.tenant, order.connection_id)
        if installed and grant is not None:
            return held.news(current, grant)  # perhaps by us, and nobody heard of the commit
        if current.state is State.REVOKING or current.state.final:
            return None
        attempt, now = use.attempt, self._clock.now()
        if current.generation == attempt.from_generation and current.state in WANTED:
            await keep_late(tx, order, use, tokens, now)  # after a refused use it is verified first
        else:  # another grant is at work, which a revocation of these might end
            said = {"attempt": attempt.id, "state": current.state, "revoked": False}
            await record(tx, order, AuditAction.ANSWER_CAME_LATE, now, **said)
        return GrantNews(attempt_id=attempt.id, failure=Code.OUTCOME_UNKNOWN)

    async def _settle(
        self,
        order: ExchangeCode,
        held: Holdings,
        consent: Consent,
        provisional: bool,
        use: Use,
        failure: Failure,
        outcome: Outcome | None,
    ) -> GrantNews:
        """The code is done with, and the subject opens the link again; but for a refused secret
        when there is another one, for what may be a staged definition's fault, and for a code that
        we were too late to send: it is still good."""
        # a yes that nobody can read may hold its tokens: a second use would end them (RFC 6749 4.1.2)
        said_yes = outcome in (None, Outcome.UNREAD) and failure.code is Code.REPLY_UNREADABLE
        again = doubted(failure, provisional=provisional) and not said_yes
        unsent = outcome is Outcome.NOT_SENT and failure.code in ASKED_AGAIN
        code = failure.code
        if code is Code.GRANT_REJECTED and use.attempt.sends > 1:
            code = Code.OUTCOME_UNKNOWN  # an earlier send spent it, and its answer is lost

        async def settle(tx: Tx) -> GrantNews:
            now = self._clock.now()
            if again and outcome is None:
                return GrantNews(attempt_id=use.attempt.id, failure=failure.code)  # and stays open
            await closed(tx, use.attempt, outcome or Outcome.REFUSED, now)
            if unsent or again:
                return GrantNews(attempt_id=use.attempt.id, failure=failure.code)
            if client_refused(failure) and held.other_client is not None:
                return GrantNews(attempt_id=use.attempt.id, failure=failure.code, client_refused=True)
            await self._end(tx, consent, ConsentStatus.FAILED, code)
            await record(tx, order, AuditAction.CONSENT_FAILED, now, reason=code, consent=consent.id)
            return GrantNews(attempt_id=use.attempt.id, failure=code, over=True)

        news = await settled(self._store, settle)
        if unsent:
            raise failure
        return news

    async def _end(
        self, tx: Tx, consent: Consent, status: ConsentStatus, failure: Code | None = None
    ) -> None:
        current = await tx.consents.get(consent.tenant, consent.id)
        if current is not None and current.status is not ConsentStatus.DONE:  # what is done stays done
            await end_consent(tx, current, status, failure)

    async def _wait_for_an_answer(self, tx: Tx, connection: Connection) -> None:
        """Raises Failure REFRESH_PENDING while what is under way may still bring the tokens: they came in
        time, and with their connection ended nobody could have them."""
        attempt = await open_attempt(tx, connection)
        if attempt is not None and self._single_use.may_answer(attempt):
            look_again = self._single_use.limits.look_again.total_seconds()
            raise Failure(Code.REFRESH_PENDING, "a token is still on its way", retry_after=look_again)

    @activity.defn(name=ActivityName.END_CONSENT)
    async def end_consent(self, order: EndConsent) -> GrantNews | None:
        """Write that nobody consented, unless something else was true first: then say what.

        Raises Failure REFRESH_PENDING while that isn't known yet: Temporal asks again.
        """

        async def end(tx: Tx) -> GrantNews | None:
            now = self._clock.now()
            current = await connection_of(tx, order)
            if current.state is not State.PENDING_CONSENT:
                return await _what_is_true(tx, current, self._holder.announce_days)
            received = await tx.consents.received_for(order.tenant, order.connection_id)
            brought = received is not None and (received.kind is ConsentKind.CODE or received.from_browser)
            if received is not None and brought:  # its message comes later
                return GrantNews(state=current.state, consent_id=received.id)
            await self._wait_for_an_answer(tx, current)
            after = current.consent_denied(now) if order.denied else current.consent_expired(now)
            await tx.connections.replace(after, expected=current.revision)
            if received is not None:  # nothing came of it until now: its secrets don't stay behind
                await end_consent(tx, received, ConsentStatus.FAILED, Code.CONSENT_EXPIRED)
            action = AuditAction.CONSENT_DENIED if order.denied else AuditAction.CONSENT_EXPIRED
            await record(tx, order, action, now)
            return None

        news = await settled(self._store, end)
        if news is None:
            await self._turn_late_ones_away(order)
        return news

    async def _turn_late_ones_away(self, order: EndConsent) -> None:
        """An answer that came late isn't verified any more."""
        async with self._store.read() as tx:
            kept = await tx.late_answers.of(order.tenant, order.connection_id)
        try:
            if kept:
                held = await self._holder.take(order.tenant, order.connection_id)
                await late_ones_turned_away(self._store, self._clock, self._sender, order, held, kept)
        except Failure as failure:
            if away(failure):
                raise  # Temporal asks again
            # without its definition nobody can be told: they stay sealed


def _overtaken(current: Connection, attempt: Attempt) -> bool:
    """Since its tokens were set aside another grant came, or the provider ended all that it had given."""
    ended = current.reason is Code.GRANT_REVOKED_ELSEWHERE and current.changed_at > attempt.opened_at
    return ended or current.generation != attempt.from_generation


async def _what_is_true(
    tx: Tx, current: Connection, announce_days: tuple[int, ...] | None
) -> GrantNews | None:
    """What the store says of a connection whose consent is over for its workflow; None: the same."""
    if current.state.final:
        return None
    grant = await tx.grants.get(current.tenant, current.id)
    integration = await tx.integrations.get(current.tenant, current.integration_id)
    if current.state is State.REVOKING or grant is None or integration is None:
        return GrantNews(state=current.state)
    return news_of(current, grant, integration.refresh, announce_days)
