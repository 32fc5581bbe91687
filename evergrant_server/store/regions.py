"""The row that says which region serves, and what a fail-over would lose.

The region that serves renews `valid_until` after the other one has confirmed, so a region that comes back
after a fail-over finds it in the past. The row replicates with everything else: a promoted standby reads how
long the old region may still believe in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, insert, or_, select, text, update

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import Tenant
from evergrant_server.core.single_use.attempt import CONSENTED, ROTATING, AttemptOutcome
from evergrant_server.store.connections.tables import AttemptRow, ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, fetch_all, fetch_first

_INSTALLATION, _ID = Tenant(""), "authority"
_SPENT = tuple(kind.value for kind in (*ROTATING, *CONSENTED))


class RegionRow(columns.IdTable, table=True):
    name: str  # of the region that serves
    epoch: int  # grows with each change of region, and of whether the other one counts
    standalone: bool  # no other region is waited for
    valid_until: datetime | None = columns.timestamp()  # None: without a bound
    authority_s: float  # how far ahead `valid_until` was set; 0: it has no bound
    confirmed_at: datetime | None = columns.timestamp()  # the other region has all that was committed before
    taken_from: str  # the region that served before, after a fail-over
    taken_at: datetime | None = columns.timestamp()
    changed_at: datetime = columns.timestamp()


class TenantDurabilityRow(columns.IdTable, table=True):
    audit_durability: str


_R, _D = table_of(RegionRow), table_of(TenantDurabilityRow)
_A, _C = table_of(AttemptRow), table_of(ConnectionRow)
# whether the region of this name may lease, and for how long: the text of `lease_writer_postgresql`
REMAINING = (
    "SELECT coalesce(extract(epoch FROM valid_until - clock_timestamp()), 'infinity')::float8 AS remaining"
    f" FROM {_R.name} WHERE tenant = '' AND id = '{_ID}' AND name = "
)
_STANDBYS = text(
    "SELECT application_name, state, sync_state, pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn)::bigint,"
    " extract(epoch FROM clock_timestamp() - reply_time)::float8 FROM pg_stat_replication"
)
_SETTINGS = text(
    "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names'),"
    " current_setting('synchronous_commit'), clock_timestamp()"
)

_BEHIND = text("SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8")
_PROMOTE = text("SELECT pg_promote(true, 10)")  # seconds; it takes a fifth of one


class Authority(NamedTuple):
    """The row, and the database's time at which it was read."""

    name: str
    epoch: int
    standalone: bool
    valid_until: datetime | None
    authority_s: float
    confirmed_at: datetime | None
    taken_from: str
    taken_at: datetime | None
    read_at: datetime

    @property
    def remaining_s(self) -> float:
        """How long the region may still serve without a renewal; infinite without a bound."""
        if self.valid_until is None:
            return float("inf")
        return (self.valid_until - self.read_at).total_seconds()

    def lets(self, region: str) -> bool:
        """Whether this region may serve now."""
        return self.name == region and self.remaining_s > 0


@dataclass(frozen=True)
class Standby:
    """A standby that streams from this server, as `pg_stat_replication` shows it; without the right to read
    that (`pg_monitor`), its state is None."""

    name: str
    state: str | None
    sync_state: str | None
    behind_bytes: int | None
    silent_s: float | None


class Server(NamedTuple):
    """What this PostgreSQL server is."""

    in_recovery: bool
    waits_for: str  # `synchronous_standby_names`
    default_commit: str  # `synchronous_commit` of transactions that say nothing
    now: datetime
    standbys: tuple[Standby, ...]


class OpenAttempt(NamedTuple):
    """A credential that was sent, or about to be, when a region ended, and what became of it."""

    tenant: Tenant
    id: str
    connection_id: str
    kind: str
    opened_at: datetime
    from_generation: int
    outcome: str | None  # an AttemptOutcome
    generation: int  # of its connection, as its state
    state: str

    @property
    def fate(self) -> str:
        """`renewed`: the connection has newer tokens. `lost`: its subject must consent again. `ended`: it was
        revoked, or its consent is over. `waits`: for what the provider's rules say."""
        if self.generation > self.from_generation:
            return "renewed"
        if self.state == LifecycleState.NEEDS_REAUTH:
            return "lost"
        if LifecycleState(self.state).is_final:
            return "ended"
        return "not sent" if self.outcome == AttemptOutcome.NOT_SENT else "waits"


class Regions:
    """Within one transaction. PostgreSQL alone has regions."""

    def __init__(self, connection: DatabaseConnection) -> None:
        self._connection = connection

    async def authority(self) -> Authority | None:
        """None: no region was ever attached or promoted."""
        shown = [_R.c[name] for name in Authority._fields[:-1]]
        query = select(*shown, func.clock_timestamp().label("read_at")).where(*_key())
        row = await fetch_first(self._connection, query)
        return None if row is None else Authority(**row)

    async def put(self, name: str, *, standalone: bool) -> None:
        """Give the authority to this region, without a bound until it is renewed."""
        before = await self.authority()
        values: Values = {
            "name": name,
            "standalone": standalone,
            "valid_until": None,
            "changed_at": func.clock_timestamp(),
        }
        if before is None:
            first: Values = {
                "tenant": _INSTALLATION,
                "id": _ID,
                "epoch": 1,
                "authority_s": 0.0,
                "taken_from": "",
                "revision": 1,
            }
            await self._connection.execute(insert(_R).values({**first, **values}))
        else:
            moved: Values = {"epoch": before.epoch + 1, "revision": _R.c.revision + 1}
            await self._connection.execute(update(_R).where(*_key()).values({**values, **moved}))

    async def take(self, name: str, old: Authority) -> bool:
        """Give this region the authority that another one had, alone, and keep the moment as that of the
        fail-over. False: it has changed hands since `old` was read."""
        now = func.clock_timestamp()
        taken: Values = {
            "name": name,
            "standalone": True,
            "valid_until": None,
            "changed_at": now,
            "taken_from": old.name,
            "taken_at": now,
            "epoch": old.epoch + 1,
            "revision": _R.c.revision + 1,
        }
        changed = await self._connection.execute(
            update(_R).where(*_key(), _R.c.epoch == old.epoch).values(taken)
        )
        return changed.rowcount == 1

    async def renew(self, seen: Authority, authority: timedelta) -> bool:
        """The other region had confirmed what was committed before `seen` was read: the authority lasts until
        so long after that. False: it has changed hands, or nothing is waited for any more."""
        bound = authority.total_seconds()
        renewed: Values = {
            "valid_until": seen.read_at + authority if bound else None,
            "authority_s": bound,
            "confirmed_at": seen.read_at,
            "revision": _R.c.revision + 1,
        }
        same = (_R.c.name == seen.name, _R.c.epoch == seen.epoch, _R.c.standalone.is_(False))
        changed = await self._connection.execute(update(_R).where(*_key(), *same).values(renewed))
        return changed.rowcount == 1

    async def server(self) -> Server:
        in_recovery, waits_for, commit, now = (await self._connection.execute(_SETTINGS)).one()
        standbys: Sequence[Any] = ()
        if not in_recovery:
            standbys = (await self._connection.execute(_STANDBYS)).all()
        return Server(in_recovery, waits_for, commit, now, tuple(Standby(*row) for row in standbys))

    async def behind_s(self) -> float | None:
        """On a standby: how old the last change is that it has applied; None: none has come yet."""
        return (await self._connection.execute(_BEHIND)).scalar_one()

    async def promote(self) -> bool:
        """Make this standby a primary; False: it took too long. Outside a transaction."""
        return (await self._connection.execute(_PROMOTE)).scalar_one()

    async def connections_at_stake(self, since: datetime | None) -> int:
        """How many connections sent a single-use credential after the other region last confirmed: a
        fail-over now would lose what they got, or not know that they had sent it."""
        sent = or_(_A.c.outcome.is_(None), _A.c.outcome != AttemptOutcome.NOT_SENT.value)
        later: ColumnElement[bool] = _A.c.kind.in_(_SPENT)
        if since is not None:
            later &= func.coalesce(_A.c.closed_at, _A.c.opened_at) > since
        chosen = select(_A.c.tenant, _A.c.connection_id).where(later, sent).distinct().subquery()
        return (await self._connection.execute(select(func.count()).select_from(chosen))).scalar_one()

    async def open_at(self, moment: datetime) -> list[OpenAttempt]:
        """The attempts that were open at a fail-over, as they are now."""
        open_then = or_(_A.c.outcome.is_(None), _A.c.closed_at > moment)
        shown = [_A.c[name] for name in OpenAttempt._fields[:-2]] + [_C.c.generation, _C.c.state]
        same = (_C.c.tenant == _A.c.tenant) & (_C.c.id == _A.c.connection_id)
        query = select(*shown).join(_C, same).where(_A.c.opened_at <= moment, open_then)
        query = query.order_by(_A.c.opened_at, _A.c.id)
        return [OpenAttempt(**row) for row in await fetch_all(self._connection, query)]

    async def put_durability(self, tenant: Tenant, durability: str) -> None:
        """Whether the tenant's leases wait for the other region: `local` or `region`."""
        key = (_D.c.tenant == tenant, _D.c.id == tenant)
        values: Values = {"audit_durability": durability}
        changed = await self._connection.execute(
            update(_D).where(*key).values({**values, "revision": _D.c.revision + 1})
        )
        if changed.rowcount == 0:
            await self._connection.execute(insert(_D).values(tenant=tenant, id=tenant, revision=1, **values))

    async def durabilities(self) -> dict[Tenant, str]:
        """What tenants have chosen, of those that have."""
        rows = await fetch_all(self._connection, select(_D.c.tenant, _D.c.audit_durability))
        return {Tenant(row["tenant"]): row["audit_durability"] for row in rows}


def _key() -> tuple[ColumnElement[bool], ...]:
    return _R.c.tenant == _INSTALLATION, _R.c.id == _ID
