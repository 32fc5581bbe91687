"""Deletes what is over its age, step by step: each a transaction, for a bounded time; the next pass goes on.

What a legal hold keeps stays. No step holds more than some hundred rows in memory.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from evergrant_server.audit.erasing import prune_bodies, shards_to_prune
from evergrant_server.audit.erasure_orders import end_hold
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database.rows import RowPlace

# an ended assertion is still known where another process's clock hasn't reached its end
_ENDED_TOKEN_AGE = timedelta(minutes=5)
_ENDED_DELEGATION_AGE = timedelta(days=7)
_ENDED_SESSIONS_AGE = timedelta(days=30)  # sessions of people, for who reviews them
_ENDED_FAMILY_AGE = timedelta(days=30)
_SPENT_AGE = timedelta(days=1)  # codes and access tokens of gateways' clients
_NEVER_USED_AGE, _UNUSED_AGE = timedelta(days=1), timedelta(days=180)  # gateways' clients
_UNUSED_CONSENT_AGE = timedelta(days=90)
_DETECTION_AGE, _NETWORK_AGE = timedelta(days=365), timedelta(days=180)
_HOURS_AGE = timedelta(days=62)  # counts by the hour
_LIMIT_S = 60.0  # of one pass and one kind of row
_ANEW = timedelta(days=1)  # how often rows that stayed are looked at again: a hold may have ended
_LAPSED = 100  # holds in one step
FIRST_PLACE: RowPlace = (datetime.min.replace(tzinfo=UTC), "")


@dataclass(frozen=True)
class Periods:
    """How long each kind of row is kept: settings."""

    attempts: timedelta = timedelta(days=90)
    consents: timedelta = timedelta(days=365)
    histories: timedelta = timedelta(days=1095)
    outbox: timedelta = timedelta(days=7)
    idempotency: timedelta = timedelta(days=1)
    audit: timedelta = timedelta(days=3650)
    deliveries: timedelta = timedelta(days=30)


class Pruning:
    """The passes of one process, which remember how far they have looked: once a day at each row."""

    def __init__(self, store: Store, clock: Clock, periods: Periods) -> None:
        self._store, self._clock, self._periods = store, clock, periods
        self._began = clock.now()
        self._places: dict[str, RowPlace] = {}

    async def run(self) -> None:
        """Delete everything that is over its age. Raises Failure STORE_UNAVAILABLE."""
        now = self._clock.now()
        if now - self._began >= _ANEW:
            self._began, self._places = now, {}
        await self._end_lapsed_holds(now)
        await prune_store(self._store, self._clock, self._periods)
        periods = self._periods
        await self._walk("attempts", lambda tx, place: tx.attempts.prune(now - periods.attempts, place, now))
        await self._walk(
            "attempts of ended connections",
            lambda tx, place: tx.attempts.prune_ended(now - periods.attempts, place, now),
        )
        await self._walk("consents", lambda tx, place: tx.consents.prune(now - periods.consents, place, now))
        await self._walk(
            "consents of ended connections",
            lambda tx, place: tx.consents.prune_ended(now - periods.consents, place, now),
        )
        await prune_audit(self._store, now - periods.audit, now)

    async def _walk(
        self, kind: str, step: Callable[[Transaction, RowPlace], Awaitable[RowPlace | None]]
    ) -> None:
        """Have the rows looked at that come behind those that were, for a bounded time."""
        ends = seconds_since_boot() + _LIMIT_S
        while seconds_since_boot() < ends:
            async with self._store.write() as tx:
                await tx.legal_holds.keep_off()
                place = await step(tx, self._places.get(kind, FIRST_PLACE))
            if place is None:
                return
            self._places[kind] = place

    async def _end_lapsed_holds(self, now: datetime) -> None:
        """Record the end of each hold whose time is over, so that what it kept is looked at again."""
        while True:
            async with self._store.write() as tx:
                lapsed = await tx.legal_holds.lapsed(now, _LAPSED)
                for hold in lapsed:
                    await end_hold(tx, hold, "its time is over", RequestContext(by=SCHEDULE), now)
            if len(lapsed) < _LAPSED:
                return


async def prune_store(store: Store, clock: Clock, periods: Periods) -> None:
    """Delete what goes by its age alone. Raises Failure STORE_UNAVAILABLE."""
    now = clock.now()
    async with store.write() as tx:  # client secrets whose overlap has ended
        await tx.integrations.delete_expired_previous_secrets(now)
    await _prune_deliveries(store, now - periods.deliveries)

    async def messages(tx: Transaction, now: datetime) -> int:
        await tx.legal_holds.keep_off()
        deleted = await tx.outbox.prune(now - periods.outbox, now=now)
        deleted += await tx.idempotency.prune(now - periods.idempotency, now=now)
        return deleted + await tx.histories.prune(now - periods.histories, now=now)

    by_age = (messages, _prune_authorizations, _prune_clients, _prune_sessions, _prune_credentials)
    for prune in (*by_age, _prune_answers):
        ends = seconds_since_boot() + _LIMIT_S
        while seconds_since_boot() < ends:
            async with store.write() as tx:
                if await prune(tx, now) == 0:
                    break


async def prune_audit(store: Store, before: datetime, now: datetime) -> None:
    """Erase what audit records from before then say, shard by shard, for a bounded time."""
    ends, after = seconds_since_boot() + _LIMIT_S, ("", "")
    while seconds_since_boot() < ends:
        async with store.read() as tx:
            shards = await shards_to_prune(tx, before, after)
        if not shards:
            return
        for place in shards:
            looked_at = 1
            while looked_at and seconds_since_boot() < ends:
                async with store.write() as tx:
                    holds = await tx.legal_holds.active(place[0], now)
                    looked_at = await prune_bodies(tx, place, before, holds)
        after = shards[-1]


async def _prune_authorizations(tx: Transaction, now: datetime) -> int:
    """Codes, families and tokens of the gateways' clients."""
    deleted = await tx.authorization_codes.prune(now - _SPENT_AGE)
    deleted += await tx.oauth_tokens.prune(now - _SPENT_AGE)
    return deleted + await tx.token_families.prune(now - _ENDED_FAMILY_AGE)


async def _prune_clients(tx: Transaction, now: datetime) -> int:
    """Unused clients; requests, of devices too, sessions and consents of their people."""
    deleted = await tx.oauth_clients.prune_unused(now - _NEVER_USED_AGE, now - _UNUSED_AGE)
    deleted += await tx.authorization_requests.prune(now)
    deleted += await tx.device_authorizations.prune(now - _SPENT_AGE)
    deleted += await tx.subject_sessions.prune(now)
    return deleted + await tx.client_consents.prune(now - _UNUSED_CONSENT_AGE)


async def _prune_sessions(tx: Transaction, now: datetime) -> int:
    deleted = await tx.person_logins.prune(now)
    return deleted + await tx.person_sessions.prune(now - _ENDED_SESSIONS_AGE)


async def _prune_credentials(tx: Transaction, now: datetime) -> int:
    deleted = await tx.tokens.prune(now - _ENDED_TOKEN_AGE)
    deleted += await tx.key_sessions.prune(now)
    return deleted + await tx.delegations.prune(now - _ENDED_DELEGATION_AGE)


async def _prune_answers(tx: Transaction, now: datetime) -> int:
    """Answers to questions, what was detected, counts by the hour, and networks from which nobody calls."""
    deleted = await tx.questions.prune(now)
    deleted += await tx.detections.prune(now - _DETECTION_AGE)
    deleted += await tx.overviews.prune_hours(now - _HOURS_AGE)
    return deleted + await tx.app_activities.prune_networks(now - _NETWORK_AGE)


async def _prune_deliveries(store: Store, before: datetime) -> None:
    """Delete old deliveries of webhooks whose workflow no longer wakes to do so itself."""
    async with store.read() as tx:
        webhooks = await tx.deliveries.webhooks_with_deliveries_before(before)
    for tenant, webhook in webhooks:
        async with store.write() as tx:
            await tx.deliveries.prune(tenant, webhook, before)
