"""The device flow: a code for the subject, then asking whether they approved it (RFC 8628).

Each request but the one that brings tokens spends nothing; that one looks like all the others
when it is sent, so each is an attempt of the protocol.
"""

from datetime import datetime
from functools import partial

from temporalio import activity

from activities.client_secrets import client_refused
from activities.consent import ASKED_AGAIN, CODES_ARE_SINGLE_USE, PATIENCE
from activities.definitions import doubted
from activities.failures import grant_news
from activities.heartbeat import heartbeats
from activities.holdings import Holdings
from activities.minting import MintActivities
from activities.records import closed, connection_of, record, settled
from activities.renewal import Reading
from activities.single_use import Ending, Use
from activities.transfer import end_consent
from evergrant_server.core.attempt import AttemptKind, Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import State
from evergrant_server.core.consent import Consent, ConsentStatus
from evergrant_server.core.device import DeviceCode, Poll
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.messages import ActivityName, GrantNews, MintGrant
from evergrant_server.store import Tx
from providers.devices import NotYet, device_request, poll_request, read_device_code, read_poll
from providers.reply import RawReply


class DeviceActivities(MintActivities):
    """Gets a code, asks about it once per call, and installs what comes as a consent's end does."""

    @activity.defn(name=ActivityName.POLL_DEVICE)
    async def poll_device(self, order: MintGrant) -> GrantNews:
        """One request. `poll` in the news says that it has to be asked again."""
        async with heartbeats():
            try:
                consent = await self._consent(order)
                held = await self._holder.take(order.tenant, order.connection_id)
                ask = partial(self._once, order, consent)
                return await self._ended(consent, held) or await self._either_secret.asked(
                    order, held, lambda by: self._either_definition.asked(by, ask)
                )
            except Failure as failure:
                if failure.code in ASKED_AGAIN and activity.info().attempt < PATIENCE:
                    raise  # nothing was sent, and Temporal asks again
                news = grant_news(failure)
                if (done := await self._done_meanwhile(order)) is not None:
                    return done
                over = await settled(self._store, partial(self._over, order, failure))
                return news.model_copy(update={"over": over})

    async def _once(self, order: MintGrant, consent: Consent, held: Holdings) -> GrantNews:
        async with self._store.read() as tx:
            device = await tx.consents.device(consent)
            expired = device is not None and self._clock.now() >= device.expires_at
            if expired:  # the subject may have approved, and the last poll's answer says so
                await self._wait_for_an_answer(tx, held.connection)
        if device is None:
            return await self._begin(consent, held)
        if expired:
            raise Failure(Code.CONSENT_EXPIRED)
        return await self._poll(order, consent, device, held)

    async def _begin(self, consent: Consent, held: Holdings) -> GrantNews:
        """Get a code. One whose answer is lost expires by itself, and another is asked for."""
        params = held.integration.params
        request = device_request(held.spec, held.endpoints, held.client, consent.scopes, params)
        try:
            reply = await self._sender.mint(held.spec, held.client, request)
            device = read_device_code(held.spec, reply, self._clock.now())
        except Failure as failure:
            if client_refused(failure) and held.other_client is not None:
                return GrantNews(failure=failure.code, client_refused=True)
            raise

        async def keep(tx: Tx) -> GrantNews:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is not None and current.status is ConsentStatus.CODE_RECEIVED:
                await tx.consents.keep_device(current, device, expected=current.revision)
            return GrantNews(poll=Poll.BEGUN, interval_s=device.interval_s)

        return await settled(self._store, keep)

    async def _poll(
        self, order: MintGrant, consent: Consent, device: DeviceCode, held: Holdings
    ) -> GrantNews:
        code, params = device.device_code, held.integration.params
        request = poll_request(held.spec, held.endpoints, held.client, code, params)
        use = await self._single_use.begin(
            AttemptKind.DEVICE_CODE,
            held.connection,
            CODES_ARE_SINGLE_USE,
            token_valid=False,
            credential=consent.id,
        )
        reading = self._reading(held, consent, self._clock.now)
        news = await self._single_use.spend(
            use,
            order,
            send=lambda check: self._sender.mint(held.spec, held.client, request, before_send=check),
            ending=self._ending_of(order, held, consent, reading, provisional=held.provisional),
        )
        return news.model_copy(update={"read_as_before": reading.as_before})

    def _read(self, held: Holdings, reply: RawReply, consent: Consent, came_at: datetime) -> TokenSet:
        return read_poll(held.spec, reply, requested_scopes=consent.scopes, now=came_at)

    def _ending_of(
        self, order: MintGrant, held: Holdings, consent: Consent, reading: Reading, *, provisional: bool
    ) -> Ending[GrantNews]:
        return Ending(
            judge=reading.tokens,
            commit=partial(self._install, order, held, consent),
            settle=partial(self._settle_poll, order, held, provisional),
            provisional=provisional,
        )

    async def _settle_poll(
        self,
        order: MintGrant,
        held: Holdings,
        provisional: bool,
        use: Use,
        failure: Failure,
        outcome: Outcome | None,
    ) -> GrantNews:
        """Ask again, or the code is done with. What was not heard may have brought the tokens."""

        async def settle(tx: Tx) -> GrantNews:
            now = self._clock.now()
            # the definition before asks about the same code, unless it brought what neither can read
            if outcome is not Outcome.UNREAD and _doubted(failure, provisional):
                if outcome is not None:
                    await closed(tx, use.attempt, outcome, now)
                code = Code.PROVIDER_ERROR if isinstance(failure, NotYet) else failure.code
                return GrantNews(attempt_id=use.attempt.id, failure=code)
            if isinstance(failure, NotYet):
                await closed(tx, use.attempt, Outcome.NOT_SENT, now)
                return GrantNews(poll=failure.poll)
            if failure.kind is Kind.PROVIDER_UNAVAILABLE:
                if outcome is not None:
                    await closed(tx, use.attempt, outcome, now)
                return GrantNews(poll=Poll.UNHEARD)
            await closed(tx, use.attempt, outcome or Outcome.REFUSED, now)
            if client_refused(failure) and held.other_client is not None:
                return GrantNews(attempt_id=use.attempt.id, failure=failure.code, client_refused=True)
            lost = failure.code is Code.GRANT_REJECTED and use.attempt.sends > 1
            said = Failure(Code.OUTCOME_UNKNOWN) if lost else failure
            await self._end_device(tx, order, said)
            return GrantNews(attempt_id=use.attempt.id, failure=said.code, over=True)

        return await settled(self._store, settle)

    async def _over(self, order: MintGrant, failure: Failure, tx: Tx) -> bool:
        """Is the consent over? A code that was never got may still be asked for; one in hand that
        can't be asked about is done with."""
        consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return True
        if not await _in_hand(tx, consent) and failure.kind is not Kind.RECONNECT_NEEDED:
            await self._noted(tx, order, failure)
            return False
        await self._end_device(tx, order, failure)
        return True

    async def _end_device(self, tx: Tx, order: MintGrant, failure: Failure) -> None:
        now = self._clock.now()
        consent = await tx.consents.get(order.tenant, order.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return
        denied = failure.code is Code.CONSENT_DENIED
        await end_consent(tx, consent, ConsentStatus.DENIED if denied else ConsentStatus.FAILED, failure.code)
        current = await connection_of(tx, order)
        if current.state is State.PENDING_CONSENT:
            await tx.connections.replace(current.waits_because(failure.code, now), expected=current.revision)
        await record(tx, order, AuditAction.CONSENT_FAILED, now, reason=failure.code, consent=consent.id)


async def _in_hand(tx: Tx, consent: Consent) -> bool:
    try:
        return await tx.consents.device(consent) is not None
    except Failure as failure:
        if failure.code is not Code.SEAL_BROKEN:
            raise
        return True  # and nobody can open it


def _doubted(failure: Failure, provisional: bool) -> bool:
    """What an endpoint that was named by a staged version didn't say, too: a 500 is "not yet" elsewhere."""
    if isinstance(failure, NotYet):
        return provisional and failure.poll is Poll.UNHEARD
    return doubted(failure, provisional=provisional)
