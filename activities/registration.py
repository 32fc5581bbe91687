"""Registers our client at an issuer, once (RFC 7591 section 3), by the protocol for what is used once.

Keys, room, intent, send, journal, commit, drop (docs/protocol.md). An attempt's row belongs to a
connection, and there is none yet: the intent is the integration's `registration_sent_at`, and the
attempt's id follows from it, so that whoever finds the intent finds its room or its answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from activities.answers import Answer
from activities.critical import CriticalSections
from activities.records import settled
from activities.sending import Sending
from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.attempt import (
    Attempt,
    AttemptKind,
    Limits,
    answer_may_come,
    dated_ahead,
    seen_since,
)
from evergrant_server.core.clock import Clock, elapsed
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, IntegrationId, Tenant, derived_id
from evergrant_server.core.messages import Discover, Discovered, Message
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import Lane
from evergrant_server.egress import Egress
from evergrant_server.journal import Entry, Journal, Room
from evergrant_server.journal.entry import Header
from evergrant_server.store import HeldKeys, Store, Tx
from evergrant_server.store.seals import NOBODY
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event
from providers.client_metadata import auth_to_ask_for, client_metadata
from providers.flows import SendFailed
from providers.quirks import registration_of
from providers.registration import register
from providers.reply import RawReply

log = logging.getLogger("evergrant.protocol")

_PATIENCE_S = 20.0  # for an answer that lies in a journal: a sweep replays it within seconds
_LOOK_S = 0.3
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # it was sent, and no answer can come any more


class Registering(Message):
    """What the journal keeps beside the answer: replay asks nobody."""

    order: Discover
    endpoints: Endpoints
    auth: str
    sent_at: datetime


Conclude = Callable[[Registering, RawReply, HeldKeys], Awaitable[Discovered]]


class Registrations:
    """Sends registrations. What an answer means, and what becomes of it, is `conclude`'s."""

    def __init__(
        self,
        store: Store,
        egress: Egress,
        clock: Clock,
        sections: CriticalSections,
        journal: Journal,
        limits: Limits,
    ) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock
        self._sections = sections
        self._journal = journal
        self._limits = limits
        self._ahead: dict[AttemptId, float] = {}  # dated ahead of us: when it was first seen, elapsed

    async def earlier(self, integration: Integration) -> Integration:
        """The row once an earlier registration has ended, or can't be answered any more.

        Raises Failure REFRESH_PENDING when that takes too long, and NOT_FOUND.
        """
        end = elapsed() + _PATIENCE_S
        while True:
            async with self._store.read() as tx:
                now = await tx.integrations.get(integration.tenant, integration.id)
            if now is None or now.issuer != integration.issuer:
                raise Failure(Code.NOT_FOUND, "the integration was changed meanwhile")
            if now.client_id or now.registration_sent_at is None or not self._may_answer(now):
                return now
            if elapsed() > end:
                why = "an earlier registration may still be answered; discover it again in a minute"
                raise Failure(Code.REFRESH_PENDING, why, retry_after=60.0)
            await asyncio.sleep(_LOOK_S)

    async def register(
        self,
        order: Discover,
        integration: Integration,
        endpoints: Endpoints,
        redirect_uri: str,
        conclude: Conclude,
        quirks: tuple[str, ...] = (),
    ) -> Discovered:
        """One registration. Raises SendFailed, and before anything is sent CLIENT_REJECTED (the initial
        access token was used), KEY_UNAVAILABLE, JOURNAL_UNAVAILABLE, STORE_UNAVAILABLE."""
        assert endpoints.registration_endpoint is not None
        url = endpoints.registration_endpoint
        keys = await self._store.hold_keys(integration.tenant, NOBODY, (Lane.INTAKE,))
        began, sent_at = elapsed(), self._clock.now()
        attempt = self._attempt(integration, sent_at, self._journal.id)
        room = await self._journal.in_thread(self._journal.reserve, attempt)
        try:
            initial = await self._intended(integration, sent_at)
        except BaseException as error:
            room.unused(error)
            raise
        auth = auth_to_ask_for(endpoints)
        metadata = client_metadata(
            redirect_uri, auth=auth, scopes=integration.default_scopes, dpop=integration.dpop is True
        )
        metadata = registration_of(quirks, metadata)
        it = Registering(order=order, endpoints=endpoints, auth=auth, sent_at=sent_at)
        limits = self._limits
        send_by = began + limits.send.total_seconds()
        sending = Sending(room, self._clock, send_by, limits.look_again.total_seconds())

        async def section() -> Discovered:
            try:
                reply = await register(self._egress, url, metadata, initial, before_send=sending.check)
                entry = await self._journalled(room, keys, it, reply)
                concluded = await conclude(it, reply, keys)
                if entry is not None:
                    await self._journal.in_thread(entry.drop)
                return concluded
            except SendFailed as failure:
                await self.over(integration, sent_at, spent=failure.sent and initial is not None)
                raise
            finally:
                await self._journal.in_thread(room.release)

        return await self._sections.run(attempt.id, section())

    async def over(self, integration: Integration, sent_at: datetime, *, spent: bool) -> None:
        """Nobody listens any more, and no worker of another host has to wait. Another may be sent, but for
        an initial access token that was used."""
        since = _LONG_AGO if spent else None
        await settled(self._store, lambda tx: ended(tx, integration.tenant, integration.id, sent_at, since))

    async def _intended(self, integration: Integration, sent_at: datetime) -> Secret | None:
        """Commit the intent. An initial access token whose use has no known outcome is not sent again."""

        async def intend(tx: Tx) -> Secret | None:
            current = await tx.integrations.get(integration.tenant, integration.id)
            if current is None or current.issuer != integration.issuer:
                raise Failure(Code.NOT_FOUND, "the integration was changed meanwhile")
            if current.registration_sent_at == sent_at:  # its commit holds, and was not heard of
                return await tx.integrations.initial_token(current)
            if current.registration_sent_at != integration.registration_sent_at:
                raise Failure(Code.REFRESH_PENDING, "another worker registers it")
            initial = await tx.integrations.initial_token(current)
            if initial is not None and current.registration_sent_at is not None:
                why = "the answer to the registration is lost; give another initial access token"
                raise Failure(Code.CLIENT_REJECTED, why, field="initial_access_token")
            sent = current.model_copy(update={"registration_sent_at": sent_at})
            await tx.integrations.replace(sent, expected=current.revision)
            return initial

        return await settled(self._store, intend)

    async def _journalled(self, room: Room, keys: HeldKeys, it: Registering, reply: RawReply) -> Entry | None:
        """Before anything else is done with it. A disk that broke meanwhile stops no commit."""
        answer = Answer(it.model_dump(mode="json"), self._clock.now(), reply)
        try:
            return await self._journal.in_thread(room.keep, keys.current(Lane.INTAKE), answer.packed())
        except OSError as error:
            why = error.strerror or type(error).__name__
            say(log, logging.ERROR, Event.JOURNAL_FAILED, why, object=room.header.attempt_id)
            return None

    def _may_answer(self, it: Integration) -> bool:
        assert it.registration_sent_at is not None
        id = attempt_id_of(it.id, it.registration_sent_at)
        attempt = self._attempt(it, it.registration_sent_at, self._journal.owner_of(id) or "")
        fate, now = self._journal.fate(attempt), self._clock.now()
        return not fate.unsent and answer_may_come(
            self._dated(attempt, now),
            now,
            owner_alive=fate.owner_alive,
            in_flight=True if self._sections.in_flight(id) else fate.in_flight,
            answered=fate.answered,
            limits=self._limits,
        )

    def _dated(self, attempt: Attempt, now: datetime) -> Attempt:
        """Another host's clock was ahead: it is waited for from when it was first seen (ADR 0020)."""
        if not dated_ahead(attempt, now, self._limits):
            return attempt
        since = self._ahead.setdefault(attempt.id, elapsed())
        return seen_since(attempt, now - timedelta(seconds=elapsed() - since), self._limits)

    def _attempt(self, it: Integration, sent_at: datetime, journal_id: str) -> Attempt:
        return Attempt(
            tenant=it.tenant,
            id=attempt_id_of(it.id, sent_at),
            connection_id=ConnectionId(it.id),
            kind=AttemptKind.REGISTRATION,
            from_generation=0,
            journal_id=journal_id,
            opened_at=sent_at,
            send_by=sent_at + self._limits.send,
        )


def attempt_id_of(integration_id: IntegrationId, sent_at: datetime) -> AttemptId:
    """The attempt of an intent."""
    return AttemptId(derived_id("att", integration_id, sent_at.isoformat()))


async def ended(
    tx: Tx,
    tenant: Tenant,
    integration_id: IntegrationId,
    sent_at: datetime,
    since: datetime | None = None,
) -> None:
    """Take an intent back, or leave it as one of so long ago."""
    current = await tx.integrations.get(tenant, integration_id)
    if current is not None and current.registration_sent_at == sent_at:
        after = current.model_copy(update={"registration_sent_at": since})
        await tx.integrations.replace(after, expected=current.revision)


async def forget_unsent(tx: Tx, header: Header) -> None:
    """Its worker died, and certainly had sent nothing."""
    integration_id = IntegrationId(header.connection_id)
    current = await tx.integrations.get(header.tenant, integration_id)
    sent_at = current.registration_sent_at if current is not None else None
    if sent_at is not None and attempt_id_of(integration_id, sent_at) == header.attempt_id:
        await ended(tx, header.tenant, integration_id, sent_at)
