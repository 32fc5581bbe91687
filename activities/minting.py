"""The first grant of a connection whose tokens nobody consents to: asked for, judged, installed."""

from datetime import datetime
from functools import partial

from temporalio import activity

from activities.answers import Answer
from activities.client_secrets import client_refused
from activities.consent import ASKED_AGAIN, PATIENCE, ConsentActivities
from activities.definitions import doubted
from activities.failures import grant_news
from activities.heartbeat import heartbeats
from activities.holdings import Holdings
from activities.records import closed, connection_of, record, settled
from activities.renewal import Reading, by_minting, minted
from activities.single_use import Ending, Use
from activities.subject_tokens import subject_token_of
from activities.transfer import end_consent, install_import
from activities.wellbeing import refused_in_whose_name
from evergrant_server.core.attempt import AttemptKind, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import State
from evergrant_server.core.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.errors import Failure, Retry
from evergrant_server.core.flow import Flow
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.messages import ActivityName, GrantNews, MintGrant
from evergrant_server.store import Tx
from providers.reply import RawReply


class MintActivities(ConsentActivities):
    """Installs as a consent's end does; asks the provider with what the integration holds."""

    @activity.defn(name=ActivityName.MINT_GRANT)
    async def mint_grant(self, order: MintGrant) -> GrantNews:
        """Make the first tokens. What can be repaired leaves the consent waiting for the next try."""
        async with heartbeats():
            try:
                consent = await self._consent(order)
                held = await self._holder.take(order.tenant, order.connection_id)
                if consent.kind is ConsentKind.IMPORT:  # a credential that somebody brought
                    return await install_import(self._store, self._clock, order, held, consent)
                ask = partial(self._mint, order, consent)
                return await self._ended(consent, held) or await self._either_secret.asked(
                    order, held, lambda by: self._either_definition.asked(by, ask)
                )
            except Failure as failure:
                if failure.code in ASKED_AGAIN and activity.info().attempt < PATIENCE:
                    raise  # nothing was sent, and Temporal asks again
                news = grant_news(failure)
                if (done := await self._done_meanwhile(order)) is not None:
                    return done
                await self._note(order, failure)
                return news

    async def _mint(self, order: MintGrant, consent: Consent, held: Holdings) -> GrantNews:
        exchanged = await subject_token_of(self._store, self._holder, self._clock, order.asked, held, consent)
        renewal = by_minting(self._sender, self._clock, held, consent.scopes, exchanged)
        use = await self._single_use.begin(
            AttemptKind.MINT, held.connection, renewal.rules, token_valid=False, credential=consent.id
        )
        reading = self._reading(held, consent, self._clock.now)
        ending = self._ending_of(order, held, consent, reading, provisional=held.provisional)
        news = await self._single_use.spend(use, order, send=renewal.send, ending=ending)
        return news.model_copy(update={"read_as_before": reading.as_before})

    async def answered(self, use: Use, answer: Answer) -> GrantNews:
        """An answer from a journal, through the same judge and commit as one that has just come."""
        order = MintGrant.model_validate(answer.order)
        consent = await self._consent(order)
        held = await self._holder.take(order.tenant, order.connection_id)
        reading = self._reading(held, consent, lambda: answer.came_at)
        provisional = held.provisional or answer.provisional  # it may have been rolled back since
        ending = self._ending_of(order, held, consent, reading, provisional=provisional)
        return await self._single_use.conclude(use, answer.reply, ending)

    def _read(self, held: Holdings, reply: RawReply, consent: Consent, came_at: datetime) -> TokenSet:
        return minted(held, reply, consent.scopes, came_at)

    def _ending_of(
        self, order: MintGrant, held: Holdings, consent: Consent, reading: Reading, *, provisional: bool
    ) -> Ending[GrantNews]:
        return Ending(
            judge=reading.tokens,
            commit=partial(self._install_minted, order, held, consent),
            settle=partial(self._settle_mint, order, held, provisional),
            provisional=provisional,
            spends=False,
        )

    async def _install_minted(
        self, order: MintGrant, held: Holdings, consent: Consent, use: Use, tokens: TokenSet
    ) -> GrantNews:
        """A token that was brought to be exchanged stays, where refresh tokens are: the next one is
        made from it too."""
        if held.connection.flow is Flow.TOKEN_EXCHANGE and held.connection.source is None:
            async with self._store.read() as tx:
                brought = (await tx.consents.tokens(consent)).access_token
            tokens = tokens.model_copy(update={"refresh_token": brought})
        return await self._install(order, held, consent, use, tokens)

    async def _settle_mint(
        self,
        order: MintGrant,
        held: Holdings,
        provisional: bool,
        use: Use,
        failure: Failure,
        outcome: Outcome | None,
    ) -> GrantNews:
        """An answer that was lost holds a token that nobody has; the next try asks for another, and
        so does the definition before a staged one."""

        async def settle(tx: Tx) -> GrantNews:
            await closed(tx, use.attempt, outcome or Outcome.REFUSED, self._clock.now())
            if client_refused(failure) and held.other_client is not None:
                return GrantNews(attempt_id=use.attempt.id, failure=failure.code, client_refused=True)
            if doubted(failure, provisional=provisional):
                return GrantNews(attempt_id=use.attempt.id, failure=failure.code)
            await self._noted(tx, order, failure)
            return GrantNews(attempt_id=use.attempt.id, failure=failure.code, retry_after=failure.retry_after)

        return await settled(self._store, settle)

    async def _note(self, order: MintGrant, failure: Failure) -> None:
        await settled(self._store, lambda tx: self._noted(tx, order, failure))

    async def _noted(self, tx: Tx, order: MintGrant, failure: Failure) -> None:
        """Say why on the row; a failure that the same request meets again ends the consent."""
        now = self._clock.now()
        consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return
        if failure.rule.retry is Retry.NEVER:
            await end_consent(tx, consent, ConsentStatus.FAILED, failure.code)
        current = await connection_of(tx, order)
        if current.state is State.PENDING_CONSENT:
            await tx.connections.replace(current.waits_because(failure.code, now), expected=current.revision)
        said = {"reason": failure.code, "consent": consent.id, **refused_in_whose_name(failure)}
        await record(tx, order, AuditAction.CONSENT_FAILED, now, **said)
