"""Looks whether grants still live at their providers (RFC 7662), slowly; and keeps receivers in order."""

import asyncio
from datetime import datetime, timedelta

from temporalio import activity

from activities.holdings import Holder, Holdings
from activities.receiver_keys import ReceiverKeysActivities
from activities.records import settled
from activities.single_use import open_attempt
from evergrant_server.audit.elsewhere import hear
from evergrant_server.core.access import Integration
from evergrant_server.core.attempt import ROTATING
from evergrant_server.core.clock import Clock, elapsed
from evergrant_server.core.connection import Connection
from evergrant_server.core.elsewhere import NewsFromElsewhere, Source, Verdict
from evergrant_server.core.errors import Failure
from evergrant_server.core.introspection import Finding, Seen, judge_introspection
from evergrant_server.core.messages import Asked
from evergrant_server.core.receivers import FetchKeys
from evergrant_server.core.schedule import jitter
from evergrant_server.core.secret import Secret
from evergrant_server.core.upkeep import ACTIVITY_LOOK_ELSEWHERE, LookedElsewhere, LookElsewhere
from evergrant_server.store import Store, Tx
from providers.flows import Sender
from providers.replies import read_introspection

_BY_ITSELF = Asked(by="schedule")
_GAP_S = 0.25  # between two questions about one integration
_MOST = 1000  # of one integration in one pass; what is left comes first in the next
_AT_ONCE = 8  # integrations
_FAILURES = 3  # in a row, and an integration is left alone until the next pass
_PAGE = 200
_KEYS_AGE = timedelta(hours=12)
LONGEST_TURN = timedelta(minutes=10)  # enough for `_MOST`, unless each answer takes its time
_RECEIVED_AGE = timedelta(days=60)  # twice as long as an event may be old


class ElsewhereActivities:
    """Errors condemn nobody: only a clear answer about the very token that is held."""

    def __init__(
        self,
        store: Store,
        holder: Holder,
        sender: Sender,
        keys: ReceiverKeysActivities,
        clock: Clock,
        interval: timedelta,
        longest_turn: timedelta = LONGEST_TURN,
    ) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._keys = keys
        self._clock = clock
        self._interval = interval
        self._longest_turn = longest_turn.total_seconds()

    @activity.defn(name=ACTIVITY_LOOK_ELSEWHERE)
    async def look_elsewhere(self, order: LookElsewhere) -> LookedElsewhere:
        """One pass over the receivers, and over the integrations whose provider introspects.

        No turn is longer than `longest_turn`: a provider of one tenant's keeps nobody else waiting.
        """
        await self._receivers()
        tally: dict[str, int] = {}
        turns = asyncio.Semaphore(_AT_ONCE)

        async def look(integration: Integration) -> None:
            async with turns:
                await self._integration(integration, tally)

        after: str | None = None
        while page := await self._integrations(after):
            after = page[-1].id
            await asyncio.gather(*(look(it) for it in page))
        return LookedElsewhere(
            checked=sum(tally.values()),
            ended=tally.get(Verdict.ENDED, 0),
            asked=tally.get(Verdict.ASKED, 0),
            failed=tally.get("failed", 0),
        )

    async def _integrations(self, after: str | None) -> list[Integration]:
        async with self._store.read() as tx:
            return await tx.integrations.every_tenants(after, _PAGE)

    async def _integration(self, it: Integration, tally: dict[str, int]) -> None:
        ends = elapsed() + self._longest_turn
        await self._plan(it)
        now = self._clock.now()
        async with self._store.read() as tx:
            due = await tx.introspections.due(it.tenant, it.id, now, _MOST)
        failures = 0
        for connection in due:
            activity.heartbeat()
            outcome = await self._connection(connection)
            tally[outcome] = tally.get(outcome, 0) + 1
            failures = failures + 1 if outcome == "failed" else 0
            if failures == _FAILURES or elapsed() >= ends:
                return
            await asyncio.sleep(_GAP_S)

    async def _plan(self, it: Integration) -> None:
        """Give connections that are new here a moment of their own, spread over the interval."""
        async with self._store.read() as tx:
            unknown = await tx.introspections.unknown(it.tenant, it.id, _MOST)
        if not unknown or not await self._introspects(unknown[0]):
            return
        now = self._clock.now()
        for start in range(0, len(unknown), 100):
            async with self._store.write() as tx:
                for connection in unknown[start : start + 100]:
                    first = now + self._interval * jitter(connection.id, 0)
                    await tx.introspections.plan(connection.tenant, connection.id, first)

    async def _introspects(self, connection: Connection) -> bool:
        try:
            return introspects(await self._holder.take(connection.tenant, connection.id))
        except Failure:
            return False

    async def _connection(self, connection: Connection) -> str:
        """What came of one connection: a word for the tally, and for its row."""
        try:
            held = await self._holder.take(connection.tenant, connection.id)
            if held.provisional or not introspects(held):
                return await self._next(connection, "skipped")
            finding = await self._find(held)
        except Failure:
            return await self._next(connection, "failed")
        outcome = await settled(self._store, lambda tx: self._follow(tx, connection, finding))
        return await self._next(connection, outcome)

    async def _find(self, held: Holdings) -> Finding:
        """Ask about the refresh token; about the access token where that says nothing."""
        now, grant = self._clock.now(), held.grant
        async with self._store.read() as tx:
            refresh = await tx.grants.refresh_token(held.connection)
            access = await tx.grants.access_token(held.connection)
            answers = await tx.introspections.has_answered(held.integration.tenant, held.integration.id)
        flow = held.connection.flow
        if flow.mints:
            refresh = None  # brought to be exchanged: often another issuer's, and no refresh token
        refresh_active = None if refresh is None else await self._active(held, refresh, "refresh_token")
        access_active = None
        if not refresh_active and not (refresh_active is False and answers):
            # a key that somebody brought is no token of this provider's
            valid = grant is not None and grant.valid(now) and not flow.static
            access_active = await self._active(held, access, "access_token") if valid else None
        seen = Seen(refresh_active=refresh_active, access_active=access_active, refresh_answers=answers)
        return judge_introspection(seen)

    async def _active(self, held: Holdings, token: Secret, hint: str) -> bool:
        """Raises Failure for anything but a clear answer."""
        reply = await self._sender.introspect(held.spec, held.endpoints, held.client, token=token, hint=hint)
        return read_introspection(held.spec, reply)

    async def _follow(self, tx: Tx, asked_about: Connection, finding: Finding) -> str:
        """A token that a refresh may be replacing right now is no witness, nor is one whose successor is
        kept unread."""
        weight = finding.weight
        if weight is None:
            return finding.value
        current = await tx.connections.get(asked_about.tenant, asked_about.id)
        if current is None or current.generation != asked_about.generation:
            return Verdict.OLDER
        unread = await tx.attempts.unread(current.tenant, current.id, current.generation, *ROTATING)
        if unread is not None or await open_attempt(tx, current) is not None:
            return "busy"
        news = NewsFromElsewhere(
            source=Source.INTROSPECTION,
            kind=finding.value,
            weight=weight,
            generation=asked_about.generation,
        )
        return await hear(tx, current, news, _BY_ITSELF, self._clock.now())

    async def _next(self, connection: Connection, outcome: str) -> str:
        now = self._clock.now()
        at = _later(now, self._interval, connection)

        async def plan(tx: Tx) -> None:
            await tx.introspections.plan(
                connection.tenant, connection.id, at, outcome=outcome, checked_at=now
            )

        await settled(self._store, plan)
        return outcome

    async def _receivers(self) -> None:
        now, ends = self._clock.now(), elapsed() + self._longest_turn
        async with self._store.write() as tx:
            await tx.receivers.forget_received(now - _RECEIVED_AGE)
        async with self._store.read() as tx:
            old = await tx.receivers.with_old_keys(now - _KEYS_AGE)
        for receiver in old:
            activity.heartbeat()
            order = FetchKeys(tenant=receiver.tenant, receiver_id=receiver.id, asked=_BY_ITSELF)
            await self._keys.fetch_keys(order)
            if elapsed() >= ends:
                return  # those that were read aren't old any more: the others come in the next pass


def introspects(held: Holdings) -> bool:
    """By RFC 7662: other ways to ask need the token in the URL, or an answer of their own."""
    asks = held.connection.flow.bears and held.spec.introspection is None
    return asks and held.endpoints.introspection_endpoint is not None


def _later(now: datetime, interval: timedelta, connection: Connection) -> datetime:
    return now + interval * (0.9 + 0.2 * jitter(connection.id, connection.generation))
