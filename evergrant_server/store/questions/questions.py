"""Questions with their answers, and the rows that they are answered from: who used what, all of a subject.

`PersonalFacts` reads rows of every table with a `connection_id` or a `subject`, as an erasure deletes them:
no list names the tables. What opens something is left out: sealed bytes, hashes, authenticators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Index, Select, Table, and_, delete, func, select
from sqlmodel import Field, ForeignKeyConstraint, col

from evergrant_server.core.ids import ConnectionId, QuestionId, Tenant
from evergrant_server.core.questions.questions import AnswerItem, AnswerPage, Question, QuestionState
from evergrant_server.store.access import AppRow, LeaseUseRow
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import METADATA, SealedBytes, table_of
from evergrant_server.store.database.rows import ModelRepository, Repository, Values, fetch_all, insert_all
from evergrant_server.store.erasure.rows import NAMING, names
from evergrant_server.store.exports import ExportRow
from evergrant_server.store.permits import PermitRow

# a lease's use is written once an hour for each app and connection: the last use may be that much later
USE_PRECISION = timedelta(hours=1)
MOST_LOOKED_AT = 1000  # connections, for one page of unused ones


class QuestionRow(columns.IdTable, table=True):
    __table_args__ = (
        Index("ix_question_subject", "tenant", "subject"),
        Index("ix_question_connection", "tenant", "connection_id"),
        Index(None, "expires_at"),
    )
    kind: str
    connection_id: str | None = None
    app_id: str | None = None
    integration: str | None = None
    subject: str | None = None
    since: datetime | None = columns.timestamp()
    until: datetime | None = columns.timestamp()
    by: str
    trace_id: str
    state: str
    connections: int
    records: int
    items: int
    after: str
    created_at: datetime = columns.timestamp()
    answered_at: datetime | None = columns.timestamp()
    expires_at: datetime = columns.timestamp()


class QuestionAnswerRow(columns.TenantTable, table=True):
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "question_id"], ["question.tenant", "question.id"], ondelete="CASCADE"
        ),
        Index("ix_question_answer_connection", "tenant", "connection_id"),
    )
    question_id: str = Field(primary_key=True)
    number: int = Field(
        primary_key=True, sa_type=columns.BIG_INTEGER, sa_column_kwargs={"autoincrement": False}
    )  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    kind: str
    connection_id: str | None = None
    facts: dict[str, Any] = columns.json()


class Questions(ModelRepository[Question, QuestionId]):
    _table, _model = QuestionRow, Question

    async def add(self, question: Question) -> None:
        await self._add(question, f"Question {question.id}")

    async def page(self, tenant: Tenant, after: tuple[datetime, str] | None, limit: int) -> list[Question]:
        """Questions, the newest first, behind that moment and id."""
        row, query = QuestionRow, self._where(tenant=tenant)
        if after is not None:
            at, id = after
            older = (col(row.created_at) == at) & (col(row.id) > id)
            query = query.where((col(row.created_at) < at) | older)
        return await self._all(query.order_by(col(row.created_at).desc(), col(row.id)).limit(limit))

    async def count_running(self, tenant: Tenant) -> int:
        running = self._where(tenant=tenant, state=QuestionState.RUNNING.value).subquery()
        return int((await self._connection.execute(select(func.count()).select_from(running))).scalar_one())

    async def write_page(self, before: Question, page: AnswerPage, now: datetime) -> Question:
        """Write a page of the answer, and count it. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        saved = await self.replace(before.page_written(page, now), expected=before.revision)
        rows = [
            {
                "tenant": before.tenant,
                "question_id": before.id,
                "number": number,
                "kind": kind,
                "connection_id": connection_id,
                "facts": facts,
                "revision": 1,
            }
            for number, (kind, connection_id, facts) in enumerate(page.items, before.items + 1)
        ]
        if rows:
            await insert_all(self._connection, QuestionAnswerRow, rows)
        return saved

    async def answer(self, question: Question, after: int, limit: int) -> list[AnswerItem]:
        """Lines of the answer behind the line with the number `after`; they are counted from 1."""
        row = table_of(QuestionAnswerRow)
        query = select(row).where(
            row.c.tenant == question.tenant, row.c.question_id == question.id, row.c.number > after
        )
        lines = await fetch_all(self._connection, query.order_by(row.c.number).limit(limit))
        return [AnswerItem.model_validate(line) for line in lines]

    async def prune(self, before: datetime, limit: int = 20) -> int:
        """Delete questions whose answer isn't kept any longer, with their answers; returns how many."""
        row = table_of(QuestionRow).c
        late = select(row.tenant, row.id).where(row.expires_at < before).limit(limit)
        ids = [tuple(place) for place in await self._connection.execute(late)]
        for tenant, id in ids:
            mine = (row.tenant == tenant) & (row.id == id)
            await self._run(delete(table_of(QuestionRow)).where(mine))
        return len(ids)


# --- who used what ----------------------------------------------------------------------


class UsedConnection(NamedTuple):
    """A connection that was leased in the time that a question is about, perhaps by another app."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    state: str


@dataclass(frozen=True)
class UnusedConnection:
    """A connection that nothing has leased since a moment; `used_at` None: never."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    label: str
    state: str
    created_at: datetime
    used_at: datetime | None

    def is_unused(self, since: datetime | None) -> bool:
        if since is None:
            return self.used_at is None
        return self.created_at < since and (self.used_at is None or self.used_at < since)


class Uses(Repository):
    """Which app leased which connection, and when last: to the hour."""

    async def connections(self, question: Question, after: str, limit: int) -> list[UsedConnection]:
        """Connections that leases of the question may be of, by id, after the id `after`.

        A superset: a last use says that there was one since, not that there was one before `until`.
        """
        use, connection = table_of(LeaseUseRow).c, table_of(ConnectionRow).c
        conditions = [connection.tenant == question.tenant, connection.id > after]
        if question.connection_id is not None:
            conditions.append(connection.id == question.connection_id)
        else:
            conditions.append(connection.id.in_(self._used(question, use)))
        return await self._named(question, conditions, limit)

    async def named(self, question: Question, ids: Sequence[str]) -> list[UsedConnection]:
        """Those of these connections that the question is about, by id. One that was erased isn't there."""
        connection = table_of(ConnectionRow).c
        mine = [connection.tenant == question.tenant, connection.id.in_(ids)]
        return await self._named(question, mine, len(ids))

    async def _named(
        self, question: Question, conditions: list[ColumnElement[bool]], limit: int
    ) -> list[UsedConnection]:
        connection = table_of(ConnectionRow).c
        if question.integration is not None:
            conditions.append(connection.integration == question.integration)
        named = select(*(connection[name] for name in UsedConnection._fields)).where(*conditions)
        rows = await fetch_all(self._connection, named.order_by(connection.id).limit(limit))
        return [UsedConnection(**row) for row in rows]

    @staticmethod
    def _used(question: Question, use: Any) -> Select[Any]:
        used = select(use.connection_id).where(use.tenant == question.tenant)
        if question.app_id is not None:
            used = used.where(use.app_id == question.app_id)
        if question.since is not None:
            used = used.where(use.used_at >= question.since - USE_PRECISION)
        return used

    async def exports(self, question: Question) -> list[Values]:
        """The exports that were requested in the time: each holds every token that its filters name."""
        row = table_of(ExportRow).c
        query = select(row.id, row.by, row.filters, row.exported, row.created_at, row.status)
        query = query.where(row.tenant == question.tenant)
        if question.since is not None:
            query = query.where(row.created_at >= question.since)
        if question.until is not None:
            query = query.where(row.created_at < question.until)
        return await fetch_all(self._connection, query.order_by(row.created_at, row.id).limit(1000))

    async def unused(
        self, tenant: Tenant, since: datetime | None, after: str, limit: int
    ) -> tuple[list[UnusedConnection], str | None]:
        """Connections that haven't ended and that no app has leased since then, or ever (None), by id; and
        the id behind which more may follow, None at the end. Few may be found among those looked at."""
        use, connection = table_of(LeaseUseRow), table_of(ConnectionRow).c
        last = (
            select(func.max(use.c.used_at))
            .where(use.c.tenant == connection.tenant, use.c.connection_id == connection.id)
            .correlate(table_of(ConnectionRow))
            .scalar_subquery()
        )
        names = ("id", "integration", "provider", "subject", "label", "state", "created_at")
        query = (
            select(*(connection[name] for name in names), last.label("used_at"))
            .where(connection.tenant == tenant, connection.id > after)
            .where(connection.state.in_(("active", "needs_reauth")))
            .order_by(connection.id)
            .limit(MOST_LOOKED_AT)
        )
        looked_at = [UnusedConnection(**row) for row in await fetch_all(self._connection, query)]
        unused = [each for each in looked_at if each.is_unused(since)]
        if len(unused) > limit:
            return unused[:limit], unused[limit - 1].id
        return unused, looked_at[-1].id if len(looked_at) == MOST_LOOKED_AT else None

    async def apps(self, tenant: Tenant) -> dict[str, str]:
        """The names of the tenant's apps by their ids."""
        row = table_of(AppRow).c
        query = select(row.id, row.name).where(row.tenant == tenant)
        return {id: name for id, name in await self._connection.execute(query)}


# --- all of a subject -------------------------------------------------------------------

# Tables that say nothing of a person beside what others say: why each is left out of an answer.
LEFT_OUT = {
    "account_identifier": "hashes of what `connection_grant` says",
    "attempt": "how often a worker has called the provider",
    "authorization_code": "used within a minute; `token_family` says what it gave",
    "event": "copies of records, for webhooks",
    "history": "events of workflows, sealed; `GET /v1/connections/{id}/history` has them",
    "introspection": "when a worker asks the provider next",
    "key": "wrapped keys",
    "late_tokens": "sealed tokens until they are verified",
    "proof_key": "a sealed key",
    "question": "this question, and those before",
    "question_answer": "this answer, and those before",
    "usage": "a number of leases",
}
_OPENS = ("sealed_", "secret", "challenge", "mac", "hash")  # parts of the names of columns


class PersonalFacts(Repository):
    """Reads what is stored of a subject, as values of JSON."""

    async def of_subject(self, tenant: Tenant, subject: str) -> list[tuple[str, dict[str, object]]]:
        """Table and facts of each row that names the subject, but its connections."""
        tables = _telling("subject", table_of(ConnectionRow))
        rows = [
            row for table in tables for row in await self._rows(table, tenant, table.c.subject == subject)
        ]
        for table, column in (*NAMING, (table_of(PermitRow), "subjects")):
            for row in await self._rows(table, tenant, table.c.tenant == tenant):
                if names({column: row[1][column]}, subject):
                    rows.append(row)
        return rows

    async def connections(
        self, tenant: Tenant, subject: str, after: str, limit: int
    ) -> list[tuple[str, dict[str, object]]]:
        """The subject's connections by id, after `after`, ended ones too."""
        table = table_of(ConnectionRow)
        mine = and_(table.c.subject == subject, table.c.id > after)
        return await self._rows(table, tenant, mine, order=table.c.id, limit=limit)

    async def of_connection(self, tenant: Tenant, id: ConnectionId) -> list[tuple[str, dict[str, object]]]:
        """Table and facts of each row that names the connection."""
        tables = _telling("connection_id")
        return [
            row for table in tables for row in await self._rows(table, tenant, table.c.connection_id == id)
        ]

    async def _rows(
        self,
        table: Table,
        tenant: Tenant,
        condition: ColumnElement[bool],
        *,
        order: ColumnElement[Any] | None = None,
        limit: int | None = None,
    ) -> list[tuple[str, dict[str, object]]]:
        query = select(*_facts(table)).where(table.c.tenant == tenant, condition)
        if order is not None:
            query = query.order_by(order)
        rows = await fetch_all(self._connection, query if limit is None else query.limit(limit))
        return [(table.name, {name: _plain(value) for name, value in row.items()}) for row in rows]


def _telling(column: str, *without: Table) -> list[Table]:
    return [
        table
        for table in METADATA.sorted_tables
        if column in table.c and table.name not in LEFT_OUT and table not in without
    ]


def _facts(table: Table) -> list[Any]:
    """The columns of a table that open nothing and prove nothing."""
    return [
        column
        for column in table.c
        if column.name not in ("tenant", "revision")
        and not isinstance(column.type, SealedBytes)
        and not any(word in column.name for word in _OPENS)
    ]


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
