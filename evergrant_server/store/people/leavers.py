"""The tenant's directory as SCIM tells it, the rule about leavers, and whose offboarding an incident is.

Doesn't own the incident of an offboarding (`store.connections.incidents`).
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, delete, func, select
from sqlmodel import col

from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.incidents import IncidentKind
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.ids import DirectoryUserId, IncidentId, OffboardingRuleId, Tenant
from evergrant_server.core.oauth.requests import SubjectSession
from evergrant_server.core.people.leavers import (
    DirectoryUser,
    Leaver,
    Match,
    OffboardingRule,
    PersonAttribute,
    user_key,
)
from evergrant_server.core.people.roles import Person
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.store.agents.delegations import DelegationRow
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.connections.incidents import IncidentRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Repository, columns_equal, read_model, take_turns
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.oauth.requests import (
    AuthorizationRequestRow,
    ClientConsentRow,
    SubjectSessionRow,
)
from evergrant_server.store.oauth.tables import AuthorizationCodeRow
from evergrant_server.store.people.people import PersonSessionRow


class OffboardingRuleRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant"),)
    subject_from: str | None = None
    sub_from: str | None = None
    issuer: str | None = None
    grace_s: float | None = None
    sponsor: str | None = None
    team_labels: list[str] = columns.json()
    team_owner: str | None = None
    dry_run: bool
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class DirectoryUserRow(columns.IdTable, table=True):
    __table_args__ = (
        UniqueConstraint("tenant", "user_key"),
        Index("ix_directory_user_subject", "tenant", "subject"),
        Index("ix_directory_user_external_id", "tenant", "external_id"),
    )
    user_name: str
    user_key: str
    external_id: str | None = None
    display_name: str | None = None
    emails: list[dict[str, Any]] = columns.json()
    active: bool | None = None
    subject: str | None = None
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class LeaverRow(columns.IdTable, table=True):
    __table_args__ = (Index("ix_leaver_subject", "tenant", "subject"),)
    subject: str
    issuer: str | None = None
    sub: str | None = None
    user_id: str | None = None
    matches: list[dict[str, Any]] = columns.json()
    mac: str | None = None


class OffboardingRules(AuthenticatedRepository[OffboardingRule, OffboardingRuleId]):
    _table, _model = OffboardingRuleRow, OffboardingRule

    async def of_tenant(self, tenant: Tenant) -> OffboardingRule | None:
        return await self._one(tenant=tenant)

    async def to_replace(self, tenant: Tenant) -> OffboardingRule | None:
        """The rule as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant)

    async def put(self, rule: OffboardingRule, before: OffboardingRule | None) -> OffboardingRule:
        """In place of the rule that `to_replace` gave. Raises Failure STORE_CONFLICT for another one."""
        return await self._put_for(before, rule)

    async def delete(self, rule: OffboardingRule) -> None:
        """Delete the rule that `to_replace` gave. Raises Failure STORE_CONFLICT for another one."""
        await self._delete_read(rule)


class DirectoryUsers(AuthenticatedRepository[DirectoryUser, DirectoryUserId]):
    _table, _model = DirectoryUserRow, DirectoryUser

    async def put(self, user: DirectoryUser, *, expected: int | None) -> DirectoryUser:
        """Add (`expected` None) or change a user. Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT
        or NOT_FOUND when changing."""
        return await self._put(user, f"A user named {user.user_name}", expected)

    async def by_key(self, tenant: Tenant, key: str) -> DirectoryUser | None:
        """The user whose name is compared as this."""
        return await self._one(tenant=tenant, user_key=key)

    async def with_attribute(
        self, tenant: Tenant, attribute: PersonAttribute | None, value: str
    ) -> DirectoryUser | None:
        """The only user of whom this attribute says this; None for addresses: several may have one."""
        if attribute is PersonAttribute.USER_NAME:
            user = await self.by_key(tenant, user_key(value))
            return user if user is not None and user.user_name == value else None
        if attribute is not PersonAttribute.EXTERNAL_ID:
            return None
        users = await self._all(self._where(tenant=tenant, external_id=value).limit(2))
        return users[0] if len(users) == 1 else None

    async def count(self, tenant: Tenant) -> int:
        query = select(func.count()).select_from(DirectoryUserRow)
        query = query.where(columns_equal(DirectoryUserRow, tenant=tenant))
        return int((await self._connection.execute(query)).scalar_one())

    async def listed(self, tenant: Tenant, offset: int, limit: int) -> list[DirectoryUser]:
        """Users sorted by id, behind the first `offset` ones. Not checked."""
        mine = self._where(tenant=tenant).order_by(col(DirectoryUserRow.id))
        return await self._all_unchecked(mine.offset(offset).limit(limit))

    async def delete(self, user: DirectoryUser) -> None:
        """Raises Failure NOT_FOUND."""
        await self._delete(f"the user {user.id}", tenant=user.tenant, id=user.id)


class Leavers(AuthenticatedRepository[Leaver, IncidentId]):
    _table, _model = LeaverRow, Leaver

    async def add(self, leaver: Leaver) -> None:
        await self._add(leaver, f"Leaver {leaver.id}")

    async def lock(self, tenant: Tenant) -> None:
        """Wait for the transactions that connect subjects of the tenant. Later ones wait for this one."""
        await take_turns(self._connection, f"leavers:{tenant}")

    async def is_leaving(self, tenant: Tenant, integration: str, subject: str) -> bool:
        """Whether the subject is a person's whose offboarding hasn't ended, nor was undone. Another
        offboarding begins once this transaction has ended."""
        return any(match.covers(integration, subject) for match in await self.leaving(tenant))

    async def leaving(self, tenant: Tenant) -> list[Match]:
        """The subjects of which `is_leaving` is true."""
        await take_turns(self._connection, f"leavers:{tenant}", shared=True)
        row = IncidentRow
        under_way = columns_equal(row, tenant=tenant, kind=IncidentKind.LEAVER.value)
        under_way &= col(row.finished_at).is_(None) & col(row.undone_at).is_(None)
        mine = self._where(col(LeaverRow.id).in_(select(col(row.id)).where(under_way)), tenant=tenant)
        return [match for leaver in await self._all(mine) for match in leaver.matches]


class PersonsRows(Repository):
    """What a person has in Evergrant beside connections. None of it is checked: it is ended."""

    async def logins(self, tenant: Tenant) -> list[tuple[str, LoginRule]]:
        """Where the subjects of each integration with the binding `oidc` log in."""
        row = table_of(IntegrationRow).c
        bound = select(row.name, row.login).where(row.tenant == tenant, row.binding == Binding.OIDC.value)
        rows = await self._connection.execute(bound.order_by(row.name))
        return [(name, LoginRule.model_validate(login)) for name, login in rows if login is not None]

    async def sessions(self, tenant: Tenant, person: Person, now: datetime) -> list[PersonSession]:
        """The person's sessions that haven't ended, to administer."""
        row = table_of(PersonSessionRow)
        live = select(row).where(row.c.tenant == tenant, row.c.ended_at.is_(None), row.c.expires_at > now)
        rows = (await self._connection.execute(live)).mappings()
        sessions = [read_model(PersonSession, PersonSessionRow, {**each}) for each in rows]
        return [session for session in sessions if _is_same(session.person, person)]

    async def subject_sessions(
        self, tenant: Tenant, subjects: set[str], person: Person | None, now: datetime
    ) -> list[SubjectSession]:
        """Sessions in which the person lets OAuth clients act, that haven't ended."""
        row = table_of(SubjectSessionRow)
        live = select(row).where(row.c.tenant == tenant, row.c.ended_at.is_(None), row.c.expires_at > now)
        rows = (await self._connection.execute(live)).mappings()
        sessions = [read_model(SubjectSession, SubjectSessionRow, {**each}) for each in rows]
        return [
            session
            for session in sessions
            if session.subject in subjects or (person is not None and _is_same(session.person, person))
        ]

    async def forget_authorizations(self, tenant: Tenant, subjects: set[str]) -> None:
        """Delete codes, requests under way, and what the person has agreed to: no family begins of them.

        Codes last: a transaction that makes one of a consent or a request is waited for.
        """
        for table in (ClientConsentRow, AuthorizationRequestRow, AuthorizationCodeRow):
            mine = columns_equal(table, tenant=tenant) & col(table.subject).in_(subjects)
            await self._run(delete(table).where(mine))

    async def roots_of(self, tenant: Tenant, subjects: set[str], now: datetime, limit: int) -> list[str]:
        """The ids of live sessions in which apps act for one of these subjects."""
        row = table_of(DelegationRow).c
        live = select(row.id).where(row.tenant == tenant, row.subject.in_(subjects), row.id == row.root_id)
        live = live.where(row.stopped_at.is_(None), row.expires_at > now).order_by(row.id).limit(limit)
        return list((await self._connection.execute(live)).scalars())


def _is_same(first: Person, second: Person) -> bool:
    return (first.issuer, first.sub) == (second.issuer, second.sub)
