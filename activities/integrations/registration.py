"""Registers our client at an issuer, once (RFC 7591 section 3), by the protocol for what is used once.

Keys, room, intent, send, journal, commit, drop (docs/protocol.md). An attempt's row belongs to a
connection, and there is none yet: the intent is the integration's `registration_sent_at`, and the
attempt's id follows from it, so that whoever finds the intent finds its room or its answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from activities.single_use.critical_section import CriticalSections
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.send_fence import SendFence
from activities.support.transactions import commit_with_retries
from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, IntegrationId, Tenant, derived_id
from evergrant_server.core.messages.connection import DiscoverEndpoints, DiscoveryResult, Message
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import (
    Attempt,
    AttemptKind,
    TimeLimits,
    answer_may_come,
    is_dated_ahead,
    redated,
)
from evergrant_server.crypto import KeyPurpose
from evergrant_server.egress import Egress
from evergrant_server.journal import Journal, JournalEntry, JournalReservation
from evergrant_server.journal.entry import EntryHeader
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from evergrant_server.store.sealing import NO_CONNECTION
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event
from providers.quirks import registration_request
from providers.registration.client_metadata import auth_method_to_request, client_metadata
from providers.registration.dynamic_registration import send_registration
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply

log = logging.getLogger("evergrant.protocol")

_WAIT_FOR_REPLAY_S = 20.0  # for an answer that lies in a journal: a sweep replays it within seconds
_POLL_INTERVAL_S = 0.3
_SENT_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # it was sent, and no answer can come any more


class RegistrationAttempt(Message):
    """What the journal keeps beside the answer: replay asks nobody."""

    request: DiscoverEndpoints
    endpoints: Endpoints
    auth: str
    sent_at: datetime


CommitRegistration = Callable[[RegistrationAttempt, RawReply, UnwrappedKeys], Awaitable[DiscoveryResult]]


class ClientRegistrations:
    """Sends registrations. What an answer means, and what becomes of it, is `conclude`'s."""

    def __init__(
        self,
        store: Store,
        egress: Egress,
        clock: Clock,
        sections: CriticalSections,
        journal: Journal,
        limits: TimeLimits,
    ) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock
        self._sections = sections
        self._journal = journal
        self._limits = limits
        self._first_seen: dict[AttemptId, float] = {}  # dated ahead of us: when it was first seen, elapsed

    async def await_earlier(self, integration: Integration) -> Integration:
        """The row once an earlier registration has ended, or can't be answered any more.

        Raises Failure REFRESH_PENDING when that takes too long, and NOT_FOUND.
        """
        end = seconds_since_boot() + _WAIT_FOR_REPLAY_S
        while True:
            async with self._store.read() as tx:
                now = await tx.integrations.get(integration.tenant, integration.id)
            if now is None or now.issuer != integration.issuer:
                raise Failure(ErrorCode.NOT_FOUND, "the integration was changed meanwhile")
            if now.client_id or now.registration_sent_at is None or not self._may_be_answered(now):
                return now
            if seconds_since_boot() > end:
                why = "an earlier registration may still be answered; discover it again in a minute"
                raise Failure(ErrorCode.REFRESH_PENDING, why, retry_after=60.0)
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def register(
        self,
        order: DiscoverEndpoints,
        integration: Integration,
        endpoints: Endpoints,
        redirect_uri: str,
        conclude: CommitRegistration,
        quirks: tuple[str, ...] = (),
    ) -> DiscoveryResult:
        """One registration. Raises SendFailed, and before anything is sent CLIENT_REJECTED (the initial
        access token was used), KEY_UNAVAILABLE, JOURNAL_UNAVAILABLE, STORE_UNAVAILABLE."""
        assert endpoints.registration_endpoint is not None
        url = endpoints.registration_endpoint
        keys = await self._store.unwrap_keys(integration.tenant, NO_CONNECTION, (KeyPurpose.INTAKE,))
        began, sent_at = seconds_since_boot(), self._clock.now()
        attempt = self._attempt(integration, sent_at, self._journal.id)
        room = await self._journal.in_thread(self._journal.reserve, attempt)
        try:
            initial = await self._commit_intent(integration, sent_at)
        except BaseException as error:
            room.abandon(error)
            raise
        auth = auth_method_to_request(endpoints)
        metadata = client_metadata(
            redirect_uri, auth=auth, scopes=integration.default_scopes, dpop=integration.dpop is True
        )
        metadata = registration_request(quirks, metadata)
        it = RegistrationAttempt(request=order, endpoints=endpoints, auth=auth, sent_at=sent_at)
        limits = self._limits
        send_by = began + limits.send.total_seconds()
        sending = SendFence(room, self._clock, send_by, limits.poll_interval.total_seconds())

        async def section() -> DiscoveryResult:
            try:
                reply = await send_registration(
                    self._egress, url, metadata, initial, before_send=sending.check
                )
                entry = await self._write_entry(room, keys, it, reply)
                concluded = await conclude(it, reply, keys)
                if entry is not None:
                    await self._journal.in_thread(entry.drop)
                return concluded
            except SendFailed as failure:
                await self.close_intent(integration, sent_at, spent=failure.sent and initial is not None)
                raise
            finally:
                await self._journal.in_thread(room.release)

        return await self._sections.run(attempt.id, section())

    async def close_intent(self, integration: Integration, sent_at: datetime, *, spent: bool) -> None:
        """Nobody listens any more, and no worker of another host has to wait. Another may be sent, but for
        an initial access token that was used."""
        since = _SENT_LONG_AGO if spent else None
        await commit_with_retries(
            self._store, lambda tx: end_intent(tx, integration.tenant, integration.id, sent_at, since)
        )

    async def _commit_intent(self, integration: Integration, sent_at: datetime) -> Secret | None:
        """Commit the intent. An initial access token whose use has no known outcome is not sent again."""

        async def intend(tx: Transaction) -> Secret | None:
            current = await tx.integrations.get(integration.tenant, integration.id)
            if current is None or current.issuer != integration.issuer:
                raise Failure(ErrorCode.NOT_FOUND, "the integration was changed meanwhile")
            if current.registration_sent_at == sent_at:  # its commit holds, and was not heard of
                return await tx.integrations.initial_access_token(current)
            if current.registration_sent_at != integration.registration_sent_at:
                raise Failure(ErrorCode.REFRESH_PENDING, "another worker registers it")
            initial = await tx.integrations.initial_access_token(current)
            if initial is not None and current.registration_sent_at is not None:
                why = "the answer to the registration is lost; give another initial access token"
                raise Failure(ErrorCode.CLIENT_REJECTED, why, field="initial_access_token")
            sent = current.model_copy(update={"registration_sent_at": sent_at})
            await tx.integrations.replace(sent, expected=current.revision)
            return initial

        return await commit_with_retries(self._store, intend)

    async def _write_entry(
        self, room: JournalReservation, keys: UnwrappedKeys, it: RegistrationAttempt, reply: RawReply
    ) -> JournalEntry | None:
        """Before anything else is done with it. A disk that broke meanwhile stops no commit."""
        answer = JournaledReply(it.model_dump(mode="json"), self._clock.now(), reply)
        try:
            return await self._journal.in_thread(
                room.write_entry, keys.current(KeyPurpose.INTAKE), answer.pack()
            )
        except OSError as error:
            why = error.strerror or type(error).__name__
            log_event(log, logging.ERROR, LogEvent.JOURNAL_FAILED, why, object=room.header.attempt_id)
            return None

    def _may_be_answered(self, it: Integration) -> bool:
        assert it.registration_sent_at is not None
        id = registration_attempt_id(it.id, it.registration_sent_at)
        attempt = self._attempt(it, it.registration_sent_at, self._journal.owner_of(id) or "")
        fate, now = self._journal.status_of(attempt), self._clock.now()
        return not fate.unsent and answer_may_come(
            self._without_clock_skew(attempt, now),
            now,
            owner_alive=fate.owner_alive,
            in_flight=True if self._sections.in_flight(id) else fate.in_flight,
            answered=fate.answered,
            limits=self._limits,
        )

    def _without_clock_skew(self, attempt: Attempt, now: datetime) -> Attempt:
        """Another host's clock was ahead: it is waited for from when it was first seen (ADR 0020)."""
        if not is_dated_ahead(attempt, now, self._limits):
            return attempt
        since = self._first_seen.setdefault(attempt.id, seconds_since_boot())
        return redated(attempt, now - timedelta(seconds=seconds_since_boot() - since), self._limits)

    def _attempt(self, it: Integration, sent_at: datetime, journal_id: str) -> Attempt:
        return Attempt(
            tenant=it.tenant,
            id=registration_attempt_id(it.id, sent_at),
            connection_id=ConnectionId(it.id),
            kind=AttemptKind.REGISTRATION,
            from_generation=0,
            journal_id=journal_id,
            opened_at=sent_at,
            send_by=sent_at + self._limits.send,
        )


def registration_attempt_id(integration_id: IntegrationId, sent_at: datetime) -> AttemptId:
    """The attempt of an intent."""
    return AttemptId(derived_id("att", integration_id, sent_at.isoformat()))


async def end_intent(
    tx: Transaction,
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


async def drop_unsent_intent(tx: Transaction, header: EntryHeader) -> None:
    """Its worker died, and certainly had sent nothing."""
    integration_id = IntegrationId(header.connection_id)
    current = await tx.integrations.get(header.tenant, integration_id)
    sent_at = current.registration_sent_at if current is not None else None
    if sent_at is not None and registration_attempt_id(integration_id, sent_at) == header.attempt_id:
        await end_intent(tx, header.tenant, integration_id, sent_at)
