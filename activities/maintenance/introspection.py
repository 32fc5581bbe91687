"""Looks whether grants still live at their providers (RFC 7662), slowly; and keeps receivers in order."""

import asyncio
from datetime import datetime, timedelta

from temporalio import activity

from activities.maintenance.receiver_keys import ReceiverKeysActivities
from activities.single_use.protocol import open_attempt
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from activities.support.transactions import commit_with_retries
from evergrant_server.audit.external_revocation import apply_external_event
from evergrant_server.core.access import Integration
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.lifecycle.schedule import jitter
from evergrant_server.core.messages.connection import RequestContext
from evergrant_server.core.messages.maintenance import (
    ACTIVITY_INTROSPECT_GRANTS,
    IntrospectGrants,
    IntrospectGrantsResult,
)
from evergrant_server.core.provider_events.external_revocation import (
    ProviderReport,
    ReportDecision,
    ReportSource,
)
from evergrant_server.core.provider_events.introspection import (
    IntrospectionAnswers,
    IntrospectionFinding,
    judge_introspection,
)
from evergrant_server.core.provider_events.receivers import FetchReceiverKeys
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import ROTATING
from evergrant_server.store import Store, Transaction
from providers.requests.sender import Sender
from providers.responses.token_response import read_introspection

_SCHEDULE_CONTEXT = RequestContext(by="schedule")
_PAUSE_S = 0.25  # between two questions about one integration
_MAX_CONNECTIONS = 1000  # of one integration in one pass; what is left comes first in the next
_CONCURRENT_INTEGRATIONS = 8  # integrations
_MAX_FAILURES = 3  # in a row, and an integration is left alone until the next pass
_PAGE_SIZE = 200
_KEYS_AGE = timedelta(hours=12)
INTEGRATION_LIMIT = timedelta(minutes=10)  # enough for `_MOST`, unless each answer takes its time
_RECEIVED_AGE = timedelta(days=60)  # twice as long as an event may be old


class IntrospectionActivities:
    """Errors condemn nobody: only a clear answer about the very token that is held."""

    def __init__(
        self,
        store: Store,
        holder: ProviderContextLoader,
        sender: Sender,
        keys: ReceiverKeysActivities,
        clock: Clock,
        interval: timedelta,
        longest_turn: timedelta = INTEGRATION_LIMIT,
    ) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._keys = keys
        self._clock = clock
        self._interval = interval
        self._longest_turn = longest_turn.total_seconds()

    @activity.defn(name=ACTIVITY_INTROSPECT_GRANTS)
    async def introspect_grants(self, order: IntrospectGrants) -> IntrospectGrantsResult:
        """One pass over the receivers, and over the integrations whose provider introspects.

        No turn is longer than `longest_turn`: a provider of one tenant's keeps nobody else waiting.
        """
        await self._refresh_receiver_keys()
        tally: dict[str, int] = {}
        turns = asyncio.Semaphore(_CONCURRENT_INTEGRATIONS)

        async def look(integration: Integration) -> None:
            async with turns:
                await self._check_integration(integration, tally)

        after: str | None = None
        while page := await self._integrations(after):
            after = page[-1].id
            await asyncio.gather(*(look(it) for it in page))
        return IntrospectGrantsResult(
            checked=sum(tally.values()),
            ended=tally.get(ReportDecision.ENDED, 0),
            asked=tally.get(ReportDecision.REFRESH_REQUESTED, 0),
            failed=tally.get("failed", 0),
        )

    async def _integrations(self, after: str | None) -> list[Integration]:
        async with self._store.read() as tx:
            return await tx.integrations.page_of_all_tenants(after, _PAGE_SIZE)

    async def _check_integration(self, it: Integration, tally: dict[str, int]) -> None:
        ends = seconds_since_boot() + self._longest_turn
        await self._schedule_new_connections(it)
        now = self._clock.now()
        async with self._store.read() as tx:
            due = await tx.introspections.due(it.tenant, it.id, now, _MAX_CONNECTIONS)
        failures = 0
        for connection in due:
            activity.heartbeat()
            outcome = await self._check_connection(connection)
            tally[outcome] = tally.get(outcome, 0) + 1
            failures = failures + 1 if outcome == "failed" else 0
            if failures == _MAX_FAILURES or seconds_since_boot() >= ends:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _schedule_new_connections(self, it: Integration) -> None:
        """Give connections that are new here a moment of their own, spread over the interval."""
        async with self._store.read() as tx:
            unknown = await tx.introspections.unscheduled(it.tenant, it.id, _MAX_CONNECTIONS)
        if not unknown or not await self._introspects(unknown[0]):
            return
        now = self._clock.now()
        for start in range(0, len(unknown), 100):
            async with self._store.write() as tx:
                for connection in unknown[start : start + 100]:
                    first = now + self._interval * jitter(connection.id, 0)
                    await tx.introspections.schedule(connection.tenant, connection.id, first)

    async def _introspects(self, connection: Connection) -> bool:
        try:
            return supports_introspection(await self._holder.load(connection.tenant, connection.id))
        except Failure:
            return False

    async def _check_connection(self, connection: Connection) -> str:
        """What came of one connection: a word for the tally, and for its row."""
        try:
            held = await self._holder.load(connection.tenant, connection.id)
            if held.provisional or not supports_introspection(held):
                return await self._schedule_next(connection, "skipped")
            finding = await self._introspect_grant(held)
        except Failure:
            return await self._schedule_next(connection, "failed")
        outcome = await commit_with_retries(
            self._store, lambda tx: self._apply_finding(tx, connection, finding)
        )
        return await self._schedule_next(connection, outcome)

    async def _introspect_grant(self, held: ProviderContext) -> IntrospectionFinding:
        """Ask about the refresh token; about the access token where that says nothing."""
        now, grant = self._clock.now(), held.grant
        async with self._store.read() as tx:
            refresh = await tx.grants.refresh_token(held.connection)
            access = await tx.grants.access_token(held.connection)
            answers = await tx.introspections.provider_recognizes_tokens(
                held.integration.tenant, held.integration.id
            )
        flow = held.connection.flow
        if flow.is_client_grant:
            refresh = None  # brought to be exchanged: often another issuer's, and no refresh token
        refresh_active = None if refresh is None else await self._is_active(held, refresh, "refresh_token")
        access_active = None
        if not refresh_active and not (refresh_active is False and answers):
            # a key that somebody brought is no token of this provider's
            valid = grant is not None and grant.is_valid(now) and not flow.is_static
            access_active = await self._is_active(held, access, "access_token") if valid else None
        seen = IntrospectionAnswers(
            refresh_active=refresh_active, access_active=access_active, refresh_answers=answers
        )
        return judge_introspection(seen)

    async def _is_active(self, held: ProviderContext, token: Secret, hint: str) -> bool:
        """Raises Failure for anything but a clear answer."""
        reply = await self._sender.introspect(held.spec, held.endpoints, held.client, token=token, hint=hint)
        return read_introspection(held.spec, reply)

    async def _apply_finding(
        self, tx: Transaction, asked_about: Connection, finding: IntrospectionFinding
    ) -> str:
        """A token that a refresh may be replacing right now is no witness, nor is one whose successor is
        kept unread."""
        weight = finding.certainty
        if weight is None:
            return finding.value
        current = await tx.connections.get(asked_about.tenant, asked_about.id)
        if current is None or current.generation != asked_about.generation:
            return ReportDecision.OUTDATED
        unread = await tx.attempts.unread_at_generation(
            current.tenant, current.id, current.generation, *ROTATING
        )
        if unread is not None or await open_attempt(tx, current) is not None:
            return "busy"
        news = ProviderReport(
            source=ReportSource.INTROSPECTION,
            kind=finding.value,
            certainty=weight,
            generation=asked_about.generation,
        )
        return await apply_external_event(tx, current, news, _SCHEDULE_CONTEXT, self._clock.now())

    async def _schedule_next(self, connection: Connection, outcome: str) -> str:
        now = self._clock.now()
        at = _next_check_at(now, self._interval, connection)

        async def plan(tx: Transaction) -> None:
            await tx.introspections.schedule(
                connection.tenant, connection.id, at, outcome=outcome, checked_at=now
            )

        await commit_with_retries(self._store, plan)
        return outcome

    async def _refresh_receiver_keys(self) -> None:
        now, ends = self._clock.now(), seconds_since_boot() + self._longest_turn
        async with self._store.write() as tx:
            await tx.receivers.delete_events_before(now - _RECEIVED_AGE)
        async with self._store.read() as tx:
            old = await tx.receivers.with_keys_older_than(now - _KEYS_AGE)
        for receiver in old:
            activity.heartbeat()
            order = FetchReceiverKeys(
                tenant=receiver.tenant, receiver_id=receiver.id, context=_SCHEDULE_CONTEXT
            )
            await self._keys.fetch_keys(order)
            if seconds_since_boot() >= ends:
                return  # those that were read aren't old any more: the others come in the next pass


def supports_introspection(held: ProviderContext) -> bool:
    """By RFC 7662: other ways to ask need the token in the URL, or an answer of their own."""
    asks = held.connection.flow.is_bearer and held.spec.introspection is None
    return asks and held.endpoints.introspection_endpoint is not None


def _next_check_at(now: datetime, interval: timedelta, connection: Connection) -> datetime:
    return now + interval * (0.9 + 0.2 * jitter(connection.id, connection.generation))
