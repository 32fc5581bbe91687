"""Dynamic client registration, sent once (RFC 7591 section 3) by the protocol for single-use credentials.

Keys, reservation, intent, send, journal, commit, drop (docs/protocol.md). An attempt's row belongs
to a connection, and there is none yet: the intent is the integration's `registration_sent_at`. The
attempt's id is derived from it, so that a worker that reads the intent finds the journal entry.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from activities.single_use.attempt import JournaledReply, SendFence, write_reply_to_journal
from activities.single_use.intent import AttemptTracker, CriticalSections, end_intent, registration_attempt_id
from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import Endpoints, Integration, RegistrationMethod
from evergrant_server.core.messages.base import Message
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import (
    Attempt,
    AttemptKind,
    TimeLimits,
    answer_may_come,
)
from evergrant_server.crypto import KeyPurpose
from evergrant_server.egress import Egress
from evergrant_server.journal import Journal
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from evergrant_server.store.keys import NO_CONNECTION
from providers.quirks import registration_request
from providers.registration.client_metadata import (
    auth_method_to_request,
    client_metadata,
    scopes_to_register,
)
from providers.registration.discovery import send_registration
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply

_WAIT_FOR_REPLAY_S = 20.0  # for a journaled reply: a sweep replays it within seconds
_POLL_INTERVAL_S = 0.3
_SENT_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # it was sent, and no reply can arrive any more


class RegistrationAttempt(Message):
    """What the journal keeps beside the reply, so that a replay sends nothing."""

    request: DiscoverEndpoints
    endpoints: Endpoints
    auth: str
    sent_at: datetime


CommitRegistration = Callable[[RegistrationAttempt, RawReply, UnwrappedKeys], Awaitable[DiscoveryResult]]


def must_register(integration: Integration, endpoints: Endpoints, redirect_uri: str) -> bool:
    """Whether a registration is configured and missing. Raises Failure CLIENT_REJECTED."""
    method = integration.registration
    dynamic = method in (RegistrationMethod.DYNAMIC, RegistrationMethod.AUTOMATIC)
    needed = dynamic and not integration.client_id
    lacks = None
    if method is RegistrationMethod.METADATA_DOCUMENT and not endpoints.takes_metadata_documents:
        lacks = "doesn't support client metadata documents"
    elif needed and endpoints.registration_endpoint is None:
        lacks = "has no registration endpoint"
        if method is RegistrationMethod.AUTOMATIC:
            lacks += ", nor does it read a metadata document at an https URL of ours. Register a client"
            lacks += f" at {endpoints.issuer} with the redirect URI {redirect_uri}, then put its client id"
    if lacks is not None:
        why = f"the server can't register the client: it {lacks}"
        raise Failure(ErrorCode.CLIENT_REJECTED, why, field="registration")
    return needed


class ClientRegistrations:
    """Sends registrations. `conclude` judges and commits the reply."""

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
        self._tracker = AttemptTracker(clock, sections, journal, limits)

    async def await_earlier(self, integration: Integration) -> Integration:
        """The row once an earlier registration has ended, or can't be answered any more.

        Raises Failure REFRESH_PENDING after 20 seconds, and NOT_FOUND.
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
        request: DiscoverEndpoints,
        integration: Integration,
        endpoints: Endpoints,
        redirect_uri: str,
        conclude: CommitRegistration,
        quirks: tuple[str, ...] = (),
    ) -> DiscoveryResult:
        """Send one registration.

        Raises SendFailed, and before anything is sent CLIENT_REJECTED (the initial access token was
        used), KEY_UNAVAILABLE, JOURNAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        keys = await self._store.unwrap_keys(integration.tenant, NO_CONNECTION, (KeyPurpose.INTAKE,))
        began_at, sent_at = seconds_since_boot(), self._clock.now()
        attempt = self._attempt(integration, sent_at, self._journal.id)
        reservation = await self._journal.in_thread(self._journal.reserve, attempt)
        try:
            initial, keys = await self._commit_intent(integration, sent_at, keys)
        except BaseException as error:
            reservation.abandon(error)
            raise
        auth = auth_method_to_request(endpoints)
        registration = RegistrationAttempt(request=request, endpoints=endpoints, auth=auth, sent_at=sent_at)
        metadata = _metadata(integration, endpoints, auth, redirect_uri, quirks)
        fence = SendFence(reservation, self._clock, began_at, self._limits)

        section = self._section(integration, registration, metadata, initial, fence, keys, conclude)
        return await self._sections.run(attempt.id, asyncio.create_task(section))

    async def _section(
        self,
        integration: Integration,
        registration: RegistrationAttempt,
        metadata: dict[str, Any],
        initial: Secret | None,
        fence: SendFence,
        keys: UnwrappedKeys,
        conclude: CommitRegistration,
    ) -> DiscoveryResult:
        """Send, journal and conclude: a task of the process."""
        url, reservation = registration.endpoints.registration_endpoint, fence.reservation
        assert url is not None
        try:
            reply = await send_registration(self._egress, url, metadata, initial, before_send=fence.check)
            journaled = JournaledReply.for_request(registration, reply, self._clock.now())
            key = keys.current(KeyPurpose.INTAKE)
            entry = await write_reply_to_journal(self._journal, reservation, key, journaled)
            concluded = await conclude(registration, reply, keys)
            if entry is not None:
                await self._journal.in_thread(entry.drop)
            return concluded
        except SendFailed as failure:
            await self.close_intent(
                integration, registration.sent_at, spent=failure.sent and initial is not None
            )
            raise
        finally:
            await self._journal.in_thread(reservation.release)

    async def close_intent(self, integration: Integration, sent_at: datetime, *, spent: bool) -> None:
        """Withdraw the intent: no reply can arrive any more. After an initial access token was `spent`,
        the integration stays marked, so that the token is not sent twice."""
        since = _SENT_LONG_AGO if spent else None
        await commit_with_retries(
            self._store, lambda tx: end_intent(tx, integration.tenant, integration.id, sent_at, since)
        )

    async def _commit_intent(
        self, integration: Integration, sent_at: datetime, held: UnwrappedKeys
    ) -> tuple[Secret | None, UnwrappedKeys]:
        """Commit the intent. An initial access token of unknown outcome is not sent again."""

        async def intend(tx: Transaction) -> tuple[Secret | None, UnwrappedKeys]:
            keys = await tx.sealer.current_keys(integration.tenant, held)
            current = await tx.integrations.get(integration.tenant, integration.id)
            if current is None or current.issuer != integration.issuer:
                raise Failure(ErrorCode.NOT_FOUND, "the integration was changed meanwhile")
            if current.registration_sent_at == sent_at:  # committed by a try whose answer was lost
                return await tx.integrations.initial_access_token(current), keys
            if current.registration_sent_at != integration.registration_sent_at:
                raise Failure(ErrorCode.REFRESH_PENDING, "another worker registers it")
            initial = await tx.integrations.initial_access_token(current)
            if initial is not None and current.registration_sent_at is not None:
                why = "the reply to the registration is lost; give another initial access token"
                raise Failure(ErrorCode.CLIENT_REJECTED, why, field="initial_access_token")
            sent = current.__replace__(registration_sent_at=sent_at)
            await tx.integrations.replace(sent, expected=current.revision)
            return initial, keys

        return await commit_with_retries(self._store, intend)

    def _may_be_answered(self, integration: Integration) -> bool:
        sent_at = integration.registration_sent_at
        assert sent_at is not None
        attempt_id = registration_attempt_id(integration.id, sent_at)
        attempt = self._attempt(integration, sent_at, self._journal.owner_of(attempt_id) or "")
        status = self._journal.status_of(attempt)
        if self._sections.in_flight(attempt_id):
            status = replace(status, in_flight=True)
        attempt = self._tracker.without_clock_skew(attempt)
        return not status.unsent and answer_may_come(attempt, self._tracker.now(), status, self._limits)

    def _attempt(self, integration: Integration, sent_at: datetime, journal_id: str) -> Attempt:
        return Attempt(
            tenant=integration.tenant,
            id=registration_attempt_id(integration.id, sent_at),
            connection_id=ConnectionId(integration.id),
            kind=AttemptKind.REGISTRATION,
            from_generation=0,
            journal_id=journal_id,
            opened_at=sent_at,
            send_by=sent_at + self._limits.send,
        )


def _metadata(
    integration: Integration, endpoints: Endpoints, auth: str, redirect_uri: str, quirks: tuple[str, ...]
) -> dict[str, Any]:
    """What is registered (RFC 7591 section 2)."""
    scopes, dpop = scopes_to_register(integration, endpoints), integration.dpop is True
    return registration_request(quirks, client_metadata(redirect_uri, auth=auth, scopes=scopes, dpop=dpop))
