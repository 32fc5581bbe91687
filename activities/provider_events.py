"""What a worker does about events of providers: reads transmitters' keys, and introspects grants (RFC 7662).

The API sends no requests (ADR 0008). `audit.provider_reports` acts on what introspection finds.
"""

import asyncio
from collections import Counter
from datetime import timedelta

from temporalio import activity

from activities.grants.token_request import introspect_grant, supports_introspection
from activities.single_use.intent import open_attempt
from activities.support.provider_context import ProviderContextLoader
from activities.support.transactions import commit_with_retries
from activities.workloads import TrustedIssuerActivities
from evergrant_server.audit.provider_reports import apply_provider_report
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.schedule import jitter
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import FetchReceiverKeys, ReceiverKeysResult
from evergrant_server.core.messages.maintenance import IntrospectGrants, IntrospectGrantsResult
from evergrant_server.core.provider_events import (
    IntrospectionFinding,
    ProviderReport,
    ReportDecision,
    ReportSource,
)
from evergrant_server.core.single_use.attempt import ROTATING
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.events.keys import fetch_keys
from providers.requests.sender import Sender

INTEGRATION_LIMIT = timedelta(minutes=10)  # enough for _MAX_CONNECTIONS when the provider answers at once
_SCHEDULE_CONTEXT = RequestContext(by="schedule")
_PAUSE_S = 0.25  # between two requests for one integration
_MAX_CONNECTIONS = 1000  # of one integration in one pass; the next pass takes the others first
_CONCURRENT_INTEGRATIONS = 8
_MAX_FAILURES = 3  # in a row; then the integration is skipped until the next pass
_PAGE_SIZE = 200
_PLAN_BATCH = 100
_KEYS_AGE = timedelta(hours=12)
_RECEIVED_AGE = timedelta(days=60)  # twice as long as a security event is accepted


class ReceiverKeysActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=jobs.FETCH_RECEIVER_KEYS.name)
    async def fetch_keys(self, request: FetchReceiverKeys) -> ReceiverKeysResult:
        """Pin the keys in the transmitter's document. If it can't be read, the old keys stay."""
        async with self._store.read() as tx:
            receiver = await tx.receivers.find_in_any_tenant(request.receiver_id)
        if receiver is None or receiver.tenant != request.tenant or receiver.jwks_uri is None:
            return ReceiverKeysResult(problem="the receiver is gone")
        try:
            keys = await fetch_keys(self._egress, receiver.jwks_uri)
            fetched = ReceiverKeysResult(keys=len(keys))
        except Failure as failure:
            keys = None
            fetched = ReceiverKeysResult(problem=failure.detail)

        async def pin(tx: Transaction) -> None:
            current = await tx.receivers.find_in_any_tenant(request.receiver_id)
            if current is None or current.jwks_uri != receiver.jwks_uri:
                return  # changed meanwhile, which started another fetch
            after = current.__replace__(keys_problem=fetched.problem, keys_at=self._clock.now())
            if keys is not None:
                after = after.__replace__(keys=keys)
            await tx.receivers.replace(after, expected=current.revision)

        await commit_with_retries(self._store, pin)
        return fetched


class IntrospectionActivities:
    """Acts only on a clear answer about the very token that the store holds; an error means nothing."""

    def __init__(
        self,
        store: Store,
        contexts: ProviderContextLoader,
        sender: Sender,
        keys: ReceiverKeysActivities,
        issuers: TrustedIssuerActivities,
        clock: Clock,
        interval: timedelta,
        integration_limit: timedelta = INTEGRATION_LIMIT,
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._sender = sender
        self._keys = keys
        self._issuers = issuers
        self._clock = clock
        self._interval = interval
        self._integration_limit_s = integration_limit.total_seconds()

    @activity.defn(name=jobs.INTROSPECT_GRANTS.name)
    async def introspect_grants(self, request: IntrospectGrants) -> IntrospectGrantsResult:
        """Run one pass over receivers, trusted issuers, and integrations whose provider introspects.

        Each integration has a time limit, so that a slow provider doesn't delay other tenants.
        """
        await self._refresh_receiver_keys()
        await self._issuers.refresh_due(self._integration_limit_s)
        outcomes: Counter[str] = Counter()
        semaphore = asyncio.Semaphore(_CONCURRENT_INTEGRATIONS)

        async def check(integration: Integration) -> None:
            async with semaphore:
                await self._check_integration(integration, outcomes)

        after: str | None = None
        while page := await self._integrations(after):
            after = page[-1].id
            await asyncio.gather(*(check(integration) for integration in page))
        return IntrospectGrantsResult(
            checked=outcomes.total(),
            ended=outcomes[ReportDecision.ENDED],
            refresh_requested=outcomes[ReportDecision.REFRESH_REQUESTED],
            failed=outcomes["failed"],
        )

    async def _integrations(self, after: str | None) -> list[Integration]:
        async with self._store.read() as tx:
            return await tx.integrations.page_of_all_tenants(after, _PAGE_SIZE)

    async def _check_integration(self, integration: Integration, outcomes: Counter[str]) -> None:
        ends = seconds_since_boot() + self._integration_limit_s
        await self._schedule_new_connections(integration)
        now = self._clock.now()
        async with self._store.read() as tx:
            due = await tx.introspections.due(integration.tenant, integration.id, now, _MAX_CONNECTIONS)
        failures = 0
        for connection in due:
            activity.heartbeat()
            outcome = await self._check_connection(connection)
            outcomes[outcome] += 1
            failures = failures + 1 if outcome == "failed" else 0
            if failures == _MAX_FAILURES or seconds_since_boot() >= ends:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _schedule_new_connections(self, integration: Integration) -> None:
        """Give connections that were never introspected a time, spread over the interval."""
        async with self._store.read() as tx:
            new = await tx.introspections.unscheduled(integration.tenant, integration.id, _MAX_CONNECTIONS)
        if not new or not await self._can_introspect(new[0]):
            return
        now = self._clock.now()
        for start in range(0, len(new), _PLAN_BATCH):
            async with self._store.write() as tx:
                for connection in new[start : start + _PLAN_BATCH]:
                    first = now + self._interval * jitter(connection.id, 0)
                    await tx.introspections.schedule(connection.tenant, connection.id, first)

    async def _can_introspect(self, connection: Connection) -> bool:
        try:
            return supports_introspection(await self._contexts.load(connection.tenant, connection.id))
        except Failure:
            return False

    async def _check_connection(self, connection: Connection) -> str:
        """Introspect one connection's grant. Returns the outcome, which its row keeps as well."""
        try:
            context = await self._contexts.load(connection.tenant, connection.id)
            if context.provisional or not supports_introspection(context):
                return await self._schedule_next(connection, "skipped")
            finding = await introspect_grant(self._store, self._sender, context, self._clock.now())
        except Failure:
            return await self._schedule_next(connection, "failed")
        outcome = await commit_with_retries(
            self._store, lambda tx: self._apply_finding(tx, connection, finding)
        )
        return await self._schedule_next(connection, outcome)

    async def _apply_finding(
        self, tx: Transaction, checked: Connection, finding: IntrospectionFinding
    ) -> str:
        """Report the finding, unless the token has been replaced or a refresh may be replacing it now."""
        if finding.certainty is None:
            return finding.value
        current = await tx.connections.get(checked.tenant, checked.id)
        if current is None or current.generation != checked.generation:
            return ReportDecision.OUTDATED
        unread = await tx.attempts.unread_at_generation(
            current.tenant, current.id, current.generation, *ROTATING
        )
        if unread is not None or await open_attempt(tx, current) is not None:
            return "busy"
        report = ProviderReport(
            source=ReportSource.INTROSPECTION,
            kind=finding.value,
            certainty=finding.certainty,
            generation=checked.generation,
        )
        return await apply_provider_report(tx, current, report, _SCHEDULE_CONTEXT, self._clock.now())

    async def _schedule_next(self, connection: Connection, outcome: str) -> str:
        now = self._clock.now()
        at = now + self._interval * (0.9 + 0.2 * jitter(connection.id, connection.generation))

        async def schedule(tx: Transaction) -> None:
            await tx.introspections.schedule(
                connection.tenant, connection.id, at, outcome=outcome, checked_at=now
            )

        await commit_with_retries(self._store, schedule)
        return outcome

    async def _refresh_receiver_keys(self) -> None:
        """Read keys that are old, within the time limit. The next pass continues with the others."""
        now, ends = self._clock.now(), seconds_since_boot() + self._integration_limit_s
        async with self._store.write() as tx:
            await tx.receivers.delete_events_before(now - _RECEIVED_AGE)
        async with self._store.read() as tx:
            receivers = await tx.receivers.with_keys_older_than(now - _KEYS_AGE)
        for receiver in receivers:
            activity.heartbeat()
            await self._keys.fetch_keys(
                FetchReceiverKeys(tenant=receiver.tenant, receiver_id=receiver.id, context=_SCHEDULE_CONTEXT)
            )
            if seconds_since_boot() >= ends:
                return
