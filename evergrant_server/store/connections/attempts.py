"""Attempts, the intent rows of single-use credentials, and tokens whose reply came too late.

One attempt is open per connection and slot. Late tokens are sealed until they are verified.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, exists, or_, select, text, tuple_
from sqlalchemy.orm import aliased
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, IntegrationId, Tenant
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome, LateTokens
from evergrant_server.core.single_use.pacing import Share
from evergrant_server.crypto import AssociatedData, KeyPurpose
from evergrant_server.store.connections.tables import (
    REFRESHED_CONDITION,
    AttemptRow,
    ConnectionRow,
    LateTokensRow,
    ended_connections,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import (
    ModelRepository,
    RowPlace,
    columns_equal,
    fetch_all,
    find_one,
    read_model,
)
from evergrant_server.store.erasure.orders import is_held
from evergrant_server.store.keys import sealed_place
from evergrant_server.store.sealing import SealedRepository

_MOST_SUPERSEDED = 20  # an answer that this many later uses superseded is worth nothing
_ENDED_NOTHING = (
    AttemptOutcome.INSTALLED.value,
    AttemptOutcome.INSTALLED_LATE.value,
    AttemptOutcome.NOT_SENT.value,
)
_BROUGHT_TOKENS = (AttemptOutcome.INSTALLED.value, AttemptOutcome.INSTALLED_LATE.value)
_UNKNOWN = (AttemptOutcome.SUPERSEDED.value, AttemptOutcome.GIVEN_UP.value, AttemptOutcome.UNREAD.value)
_OUTCOME, _NEWEST = col(AttemptRow.outcome), col(AttemptRow.opened_at).desc()
_CLOSED = col(AttemptRow.closed_at)


_A = table_of(AttemptRow).c
_OF_SLOT = [_A[name] == bindparam(name) for name in ("tenant", "connection_id", "slot")]
# The open attempt of a slot, and every use of the wanted credential that may have spent it. Each half names
# the columns of its own index: a connection has an attempt for each refresh of three months.
_EARLIER_USES = (
    select(table_of(AttemptRow))
    .where(
        or_(
            and_(*_OF_SLOT, _A.outcome.is_(None)),
            and_(
                *_OF_SLOT,
                *(_A[name] == bindparam(name) for name in ("from_generation", "kind", "credential")),
                or_(*(_A.outcome == outcome for outcome in _UNKNOWN)),
            ),
        )
    )
    .order_by(_A.sends.desc(), _A.opened_at.desc())
)


class EarlierUses(NamedTuple):
    """What may forbid the next attempt of a slot."""

    opened: Attempt | None  # of the slot, of any kind: there is at most one
    unknown: Attempt | None  # the newest use of this credential with an unknown outcome: it counts them all
    unread: Attempt | None  # a use of this credential whose tokens wait to be read
    rest: tuple[Attempt, ...] = ()  # the other uses of this credential with an unknown outcome

    def without_open(self) -> "EarlierUses":
        """As if the open attempt had not been sent."""
        if self.opened is None or self.opened is not self.unknown:
            return self._replace(opened=None)
        return self._replace(opened=None, unknown=next(iter(self.rest), None))


class Attempts(ModelRepository[Attempt, AttemptId]):
    _table, _model = AttemptRow, Attempt

    async def open(self, attempt: Attempt) -> None:
        """Commit to an intent. Raises Failure STORE_CONFLICT while another is open for this slot."""
        if not await self._insert(attempt):
            raise Failure(
                ErrorCode.STORE_CONFLICT,
                f"{attempt.connection_id} has an open attempt on its {attempt.slot} slot.",
                row=attempt.connection_id,
            )

    async def open_of_any_kind(
        self, tenant: Tenant, connection_id: ConnectionId, slot: str
    ) -> Attempt | None:
        """The open attempt of this token slot, of any kind. There is at most one."""
        return await self._one(tenant=tenant, connection_id=connection_id, slot=slot, outcome=None)

    async def earlier_uses(self, wanted: Attempt) -> EarlierUses:
        """What was sent before, as far as it decides about the next attempt. One with an unknown outcome
        carries the count of them all, so that no restart and no takeover forgets a use."""
        names = {"tenant", "connection_id", "slot", "from_generation", "kind", "credential"}
        rows = await fetch_all(self._connection, _EARLIER_USES, wanted.model_dump(include=names))
        uses = [read_model(Attempt, AttemptRow, row) for row in rows]
        mine = [use for use in uses if use.spends(wanted.kind, wanted.from_generation, wanted.credential)]
        return EarlierUses(
            opened=next((use for use in uses if use.outcome is None), None),
            unknown=next(iter(mine), None),
            unread=next((use for use in mine if use.outcome is AttemptOutcome.UNREAD), None),
            rest=tuple(mine[1:]),
        )

    async def superseded(self, tenant: Tenant, connection_id: ConnectionId, generation: int) -> list[Attempt]:
        """The newest that were taken over at this generation: their answers may come all the same."""
        over = self._where(
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation,
            outcome=AttemptOutcome.SUPERSEDED.value,
        )
        return await self._all(over.order_by(_NEWEST).limit(_MOST_SUPERSEDED))

    async def installed_since(
        self, tenant: Tenant, connection_id: ConnectionId, generation: int
    ) -> list[Attempt]:
        """Those that gave the connection a grant at this generation or a later one."""
        mine = self._where(
            col(AttemptRow.from_generation) >= generation,
            _OUTCOME.in_(_BROUGHT_TOKENS),
            tenant=tenant,
            connection_id=connection_id,
        )
        return await self._all(mine)

    async def other_possibly_harmful_uses(self, answered: Attempt) -> list[Attempt]:
        """The newest other uses of its credential that were refused or never answered."""
        others = self._where(
            _same(answered),
            or_(_OUTCOME.is_(None), _OUTCOME.not_in(_ENDED_NOTHING)),
            col(AttemptRow.id) != answered.id,
        )
        return await self._all(others.order_by(_NEWEST).limit(_MOST_SUPERSEDED))

    async def may_be_invalidated(self, tenant: Tenant, connection_id: ConnectionId, generation: int) -> bool:
        """True when this generation was installed late, while another use of the same credential was
        refused or never answered: that use may have made the provider end this grant."""
        uses = self._where(
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation - 1,
            kind=AttemptKind.REFRESH.value,
        )
        ended = [use.outcome for use in await self._all(uses)]
        return AttemptOutcome.INSTALLED_LATE in ended and any(
            outcome not in _ENDED_NOTHING for outcome in ended
        )

    async def unread_at_generation(
        self, tenant: Tenant, connection_id: ConnectionId, generation: int, *kinds: AttemptKind
    ) -> Attempt | None:
        """An attempt of these kinds (none: of any) at this generation whose tokens wait to be read."""
        unread = self._where(
            col(AttemptRow.kind).in_([kind.value for kind in kinds or AttemptKind]),
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation,
            outcome=AttemptOutcome.UNREAD.value,
        )
        return await self._first(unread)

    async def lost(
        self, tenant: Tenant, connection_id: ConnectionId, kinds: Sequence[AttemptKind]
    ) -> list[Attempt]:
        """The newest uses of these kinds whose answer was not installed: they may have made tokens that live
        on at the provider. Not those whose credential has brought tokens since."""
        another_use = aliased(AttemptRow)
        names = ("tenant", "connection_id", "slot", "kind", "from_generation", "credential")
        same = [getattr(another_use, name) == getattr(AttemptRow, name) for name in names]
        brought = exists().where(*same, col(another_use.outcome).in_(_BROUGHT_TOKENS))
        refused_again = and_(_OUTCOME.in_((AttemptOutcome.REFUSED.value,)), col(AttemptRow.sends) > 1)
        lost = self._where(
            or_(_OUTCOME.is_(None), _OUTCOME.in_(_UNKNOWN), refused_again),
            col(AttemptRow.kind).in_([kind.value for kind in kinds]),
            ~brought,
            tenant=tenant,
            connection_id=connection_id,
        )
        return await self._all(lost.order_by(_NEWEST).limit(_MOST_SUPERSEDED))

    async def first_refused(
        self, tenant: Tenant, connection_id: ConnectionId, generation: int
    ) -> Attempt | None:
        """The first refresh of this generation that the provider refused."""
        refused = self._where(
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation,
            kind=AttemptKind.REFRESH.value,
            outcome=AttemptOutcome.REFUSED.value,
        )
        return await self._first(refused.order_by(_CLOSED))

    async def newest_refresh(
        self, tenant: Tenant, integration_id: IntegrationId, nth: int = 1
    ) -> datetime | None:
        """When the newest refresh of the integration worked, or the `nth` newest."""
        newest = self._refreshed(tenant, integration_id).order_by(_CLOSED.desc())
        attempt = await self._first(newest.offset(nth - 1))
        return None if attempt is None else attempt.closed_at

    async def newest_refreshed(self, tenant: Tenant, integration_id: IntegrationId) -> ConnectionId | None:
        """The connection of the integration whose refresh worked last."""
        newest = self._refreshed(tenant, integration_id).order_by(_CLOSED.desc())
        attempt = await self._first(newest)
        return None if attempt is None else attempt.connection_id

    async def share_used_until(
        self, tenant: Tenant, integration_id: IntegrationId, share: Share
    ) -> datetime | None:
        """Until when the integration's newest refreshes take all of a limit's share; None: they never did."""
        last = await self.newest_refresh(tenant, integration_id, share.most)
        return None if last is None else last + timedelta(seconds=share.span_s)

    async def refreshes_of_others(
        self, connection: Connection, since: datetime
    ) -> tuple[datetime, datetime] | None:
        """When the first and the newest refresh of other connections of its integration worked, after
        `since`."""
        mine = self._refreshed(connection.tenant, connection.integration_id)
        others = mine.where(col(AttemptRow.connection_id) != connection.id)
        others = others.where(col(AttemptRow.closed_at) > since)
        first = await self._first(others.order_by(_CLOSED))
        newest = await self._first(others.order_by(_CLOSED.desc()))
        if first is None or newest is None or first.closed_at is None or newest.closed_at is None:
            return None
        return first.closed_at, newest.closed_at

    async def prune(
        self, before: datetime, seen: RowPlace, now: datetime, limit: int = 500
    ) -> RowPlace | None:
        """Delete closed attempts that nothing reads any more: closed before then, two generations behind
        their connection's, not the newest refresh of their integration, and under no legal hold.

        Looks at the connections of the first `limit` attempts that were closed after `seen`, and deletes some
        ten for each at the most. Returns the place of the last one, to go on from there; None: no other
        has reached that age. What stays of a connection is deleted when its next attempt has.
        """
        row = table_of(AttemptRow).c
        aged = select(row.tenant, row.connection_id, row.closed_at, row.id)
        aged = aged.where(row.closed_at > seen[0], row.closed_at < before).order_by(row.closed_at)
        looked_at = await fetch_all(self._connection, aged.limit(limit))
        if not looked_at:
            return None
        connections = {(attempt["tenant"], attempt["connection_id"]) for attempt in looked_at}
        await self._delete_old(connections, before, now, limit * 10, _overtaken())
        return looked_at[-1]["closed_at"], looked_at[-1]["id"]

    async def prune_ended(
        self, before: datetime, seen: RowPlace, now: datetime, limit: int = 500
    ) -> RowPlace | None:
        """The same of connections that had ended before then: all their attempts."""
        page = await fetch_all(self._connection, ended_connections(before, seen, limit))
        if not page:
            return None
        connections = {(connection["tenant"], connection["id"]) for connection in page}
        while await self._delete_old(connections, before, now, limit * 10):
            pass
        return page[-1]["changed_at"], page[-1]["id"]

    async def _delete_old(
        self,
        connections: set[tuple[str, str]],
        before: datetime,
        now: datetime,
        limit: int,
        *conditions: ColumnElement[bool],
    ) -> int:
        row = table_of(AttemptRow).c
        mine = tuple_(row.tenant, row.connection_id).in_(connections)
        held = is_held(row.tenant, row.connection_id, now)
        old = select(row.tenant, row.id).where(mine, row.closed_at < before, ~_newest_refresh(), ~held)
        old = old.where(*conditions).limit(limit)
        return await self._run(delete(AttemptRow).where(tuple_(row.tenant, row.id).in_(old)))

    def _refreshed(self, tenant: Tenant, integration_id: IntegrationId) -> Select[Any]:
        mine = self._where(tenant=tenant, integration_id=integration_id)
        return mine.where(text(REFRESHED_CONDITION))

    async def mark_installed_late(self, taken_over: Attempt) -> None:
        """Write that what came for it was installed all the same; `closed_at` still says when another one
        took over. Raises Failure STORE_CONFLICT when its row changed meanwhile."""
        late = taken_over.__replace__(outcome=AttemptOutcome.INSTALLED_LATE)
        await self.replace(late, expected=taken_over.revision)

    async def close(self, attempt: Attempt, outcome: AttemptOutcome, at: datetime) -> Attempt:
        """Write how it ended, once; a second time for what was unread. Raises Failure STORE_CONFLICT when it
        was closed meanwhile."""
        if attempt.outcome not in (None, AttemptOutcome.UNREAD):
            raise Failure(ErrorCode.STORE_CONFLICT, f"{attempt.id} was closed before.", row=attempt.id)
        ended = attempt.__replace__(outcome=outcome, closed_at=at)
        return await self.replace(ended, expected=attempt.revision)


def _overtaken() -> ColumnElement[bool]:
    """The attempt's connection has had two more grants since: what ended that of the attempt is history."""
    mine = (col(ConnectionRow.tenant) == col(AttemptRow.tenant)) & (
        col(ConnectionRow.id) == col(AttemptRow.connection_id)
    )
    return exists().where(mine, col(ConnectionRow.generation) > col(AttemptRow.from_generation) + 1)


def _newest_refresh() -> ColumnElement[bool]:
    """No later refresh of its integration worked: recurring errors are judged by when one last did."""
    later = aliased(AttemptRow)
    worked = (col(later.kind) == AttemptKind.REFRESH.value) & (
        col(later.outcome) == AttemptOutcome.INSTALLED.value
    )
    newer = exists().where(
        col(later.tenant) == col(AttemptRow.tenant),
        col(later.integration_id) == col(AttemptRow.integration_id),
        col(later.closed_at) > col(AttemptRow.closed_at),
        worked,
    )
    return text(REFRESHED_CONDITION) & ~newer


def _same(wanted: Attempt) -> ColumnElement[bool]:
    """Uses of this very credential."""
    return columns_equal(
        AttemptRow,
        tenant=wanted.tenant,
        connection_id=wanted.connection_id,
        from_generation=wanted.from_generation,
        slot=wanted.slot,
        kind=wanted.kind.value,
        credential=wanted.credential,
    )


_COLUMN = "sealed_tokens"


class LateTokenSets(SealedRepository, ModelRepository[LateTokens, AttemptId]):
    _table, _model = LateTokensRow, LateTokens

    async def add(self, late: LateTokens, tokens: TokenSet) -> bool:
        """Keep its tokens sealed with the connection's refresh key; False when they are kept already."""
        sealed = await self._sealer.seal(
            KeyPurpose.REFRESH, late.connection_id, _place(late), tokens.as_secret()
        )
        return await self._insert(late, **{_COLUMN: sealed})

    async def get(self, tenant: Tenant, id: AttemptId) -> LateTokens | None:
        return await self._one(tenant=tenant, attempt_id=id)

    async def of_connection(self, tenant: Tenant, connection_id: ConnectionId) -> list[LateTokens]:
        """Late tokens of a connection, newest first."""
        mine = self._where(tenant=tenant, connection_id=connection_id)
        return await self._all(mine.order_by(col(LateTokensRow.received_at).desc()))

    async def tokens(self, late: LateTokens) -> TokenSet:
        """Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, LateTokensRow, tenant=late.tenant, attempt_id=late.attempt_id)
        sealed = b"" if row is None else row[_COLUMN]
        opened = await self._sealer.open(KeyPurpose.REFRESH, late.connection_id, _place(late), sealed)
        return TokenSet.from_secret(opened)

    async def delete(
        self, tenant: Tenant, connection_id: ConnectionId, attempt_id: AttemptId | None = None
    ) -> None:
        """Delete the one of an attempt, or all of a connection: superseded or shredded."""
        mine = columns_equal(LateTokensRow, tenant=tenant, connection_id=connection_id)
        if attempt_id is not None:
            mine = columns_equal(LateTokensRow, tenant=tenant, attempt_id=attempt_id)
        await self._run(delete(LateTokensRow).where(mine))


def _place(late: LateTokens) -> AssociatedData:
    row = {name: getattr(late, name) for name in ("tenant", "attempt_id", "from_generation")}
    return sealed_place(table_of(LateTokensRow), _COLUMN, row)
