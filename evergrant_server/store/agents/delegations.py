"""Delegations with authenticators, the rules that accept people's tokens, and which of these were used."""

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import Index, Select, UniqueConstraint, and_, delete, func, or_, select
from sqlmodel import Field, col

from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.ids import AppId, DelegationId, DelegationRuleId, Tenant, TrustedIssuerId
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal, fetch_all, insert


class DelegationRow(columns.IdTable, table=True):
    """`root_id` and `place`, the path as one text, are for queries alone: authority is in `path`."""

    __table_args__ = (
        columns.app_foreign_key(),
        Index(None, "id", unique=True),
        Index(None, "tenant", "root_id"),
        Index(None, "tenant", "app_id"),
        Index(None, "expires_at"),
    )
    root_id: str
    place: str
    path: list[str] = columns.json()
    app_id: str
    key_id: str
    method: str
    credential_revision: int | None = None
    confirmation: dict[str, str] | None = columns.json()
    subject: str
    reach: dict[str, Any] = columns.json()
    may_act: str | None = None
    proof: str
    rule_id: str | None = None
    rule_revision: int | None = None
    secret_hash: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    stopped_at: datetime | None = columns.timestamp()
    stopped_by: str | None = None
    stop_reason: str | None = None
    mac: str | None = None


class DelegationRuleRow(columns.IdTable, table=True):
    __table_args__ = (
        UniqueConstraint("tenant", "name"),
        Index(None, "id", unique=True),
        Index(None, "tenant", "issuer_id"),
    )
    name: str
    issuer_id: str
    token_type: str
    audience: str
    claim: str
    domains: list[str] = columns.json()
    may_act: bool
    actors: list[str] = columns.json()
    clients: dict[str, str] = columns.json()
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class UsedSubjectTokenRow(columns.TenantTable, table=True):
    __table_args__ = (Index(None, "expires_at"),)
    jti_hash: str = Field(primary_key=True)
    expires_at: datetime = columns.timestamp()


class Delegations(AuthenticatedRepository[Delegation, DelegationId]):
    _table, _model = DelegationRow, Delegation

    async def add(self, one: Delegation) -> None:
        await self._add(one, f"Delegation {one.id}", root_id=one.root_id, place="/".join(one.path))

    async def find(self, id: DelegationId) -> Delegation | None:
        """The delegation with this id in whichever tenant."""
        return await self._one(id=id)

    async def chain(self, one: Delegation) -> tuple[Delegation, ...]:
        """Those of its path that are there, from the root to itself."""
        above = self._where(col(DelegationRow.id).in_(one.path[:-1]), tenant=one.tenant)
        path = {delegation.id: delegation for delegation in await self._all(above)} | {one.id: one}
        return tuple(path[id] for id in one.path if id in path)

    async def page(
        self, tenant: Tenant, after: str | None, limit: int, **equal: str | None
    ) -> list[Delegation]:
        """Those sorted by id, after the id `after`, with these values of their columns. Not checked."""
        columns = {name: value for name, value in equal.items() if value is not None}
        return await self._page(self._where(tenant=tenant, **columns), "id", after, limit)

    async def live_of_app(self, tenant: Tenant, app_id: AppId, now: datetime, limit: int) -> list[Delegation]:
        """The app's own that haven't ended. Not checked."""
        row = DelegationRow
        live = self._where(col(row.stopped_at).is_(None), col(row.expires_at) > now)
        mine = live.where(columns_equal(row, tenant=tenant, app_id=app_id))
        return await self._all_unchecked(mine.order_by(col(row.id)).limit(limit))

    async def tree_size(self, tenant: Tenant, root: DelegationId) -> int:
        return await self._count(columns_equal(DelegationRow, tenant=tenant, root_id=root))

    async def count_live_under(self, one: Delegation, now: datetime) -> int:
        """How many delegations end with this one, itself counted, that neither it nor others ended before."""
        table = DelegationRow
        stopped = self._where(col(table.stopped_at).is_not(None), tenant=one.tenant, root_id=one.root_id)
        ended = [row for row in await fetch_all(self._connection, stopped) if row["id"] != one.id]
        if any(row["id"] in one.path for row in ended):
            return 0
        under = or_(
            col(table.id) == one.id, col(table.place).startswith("/".join(one.path) + "/", autoescape=True)
        )
        live = and_(columns_equal(table, tenant=one.tenant, root_id=one.root_id), col(table.expires_at) > now)
        others = (~_is_at_or_under(row["place"]) for row in ended)
        return await self._count(and_(live, under, *others))

    async def use_subject_token(
        self, tenant: Tenant, issuer_id: TrustedIssuerId, jti: str, expires_at: datetime
    ) -> bool:
        """Use up a token of this issuer with this `jti`; False when it was used before."""
        hashed = hashlib.sha256(f"{issuer_id} {jti}".encode()).hexdigest()
        values = {"tenant": tenant, "jti_hash": hashed, "expires_at": expires_at, "revision": 1}
        return await insert(self._connection, UsedSubjectTokenRow, values)

    async def prune(self, before: datetime, limit: int = 1000) -> int:
        """Delete delegations and the memory of used tokens that ended before then, at most this many."""
        old = select(col(DelegationRow.id)).where(col(DelegationRow.expires_at) < before).limit(limit)
        pruned = await self._run(delete(DelegationRow).where(col(DelegationRow.id).in_(old)))
        row = UsedSubjectTokenRow
        used = select(col(row.jti_hash)).where(col(row.expires_at) < before).limit(limit)
        return pruned + await self._run(
            delete(row).where(col(row.jti_hash).in_(used), col(row.expires_at) < before)
        )

    async def _count(self, condition: Any) -> int:
        query: Select[Any] = select(func.count()).select_from(DelegationRow).where(condition)
        return int((await self._connection.execute(query)).scalar_one())


def _is_at_or_under(place: str) -> Any:
    row = DelegationRow
    return or_(col(row.place) == place, col(row.place).startswith(place + "/", autoescape=True))


class DelegationRules(AuthenticatedRepository[DelegationRule, DelegationRuleId]):
    _table, _model = DelegationRuleRow, DelegationRule

    async def put(self, rule: DelegationRule, *, expected: int | None) -> DelegationRule:
        """Add (`expected` None) or change one, which ends the delegations that it accepted.

        Raises Failure ALREADY_EXISTS, STORE_CONFLICT, NOT_FOUND.
        """
        return await self._put(rule, f"Delegation rule {rule.name!r}", expected)

    async def by_name(self, tenant: Tenant, name: str) -> DelegationRule | None:
        """The rule as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant, name=name)

    async def all(self, tenant: Tenant) -> list[DelegationRule]:
        """Those of a tenant, sorted by name: a tenant has few. Not checked."""
        return await self._all_unchecked(self._where(tenant=tenant).order_by(col(DelegationRuleRow.name)))

    async def of_issuer(self, tenant: Tenant, issuer_id: TrustedIssuerId) -> list[DelegationRule]:
        """The rules for tokens of an issuer. Not checked."""
        return await self._all_unchecked(self._where(tenant=tenant, issuer_id=issuer_id))

    async def delete(self, rule: DelegationRule) -> None:
        """Delete it, which ends the delegations that it accepted. Raises Failure NOT_FOUND."""
        await self._delete(f"Delegation rule {rule.name!r}", tenant=rule.tenant, id=rule.id)
