"""Streams of the audit log: receivers with their secrets, how far each stream is, and its cursors.

Secrets are sealed by the tenant's intake key: admins make them, workers sign. A stream that the operator's
settings make has no row of a receiver; its state is the installation's. What waits for a stream is counted in
`audit.streams.cursors`.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import JSON, ColumnElement, UniqueConstraint, and_, delete, exists, or_, select, update
from sqlmodel import Field, col

from evergrant_server.core.audit_streams.state import StreamState
from evergrant_server.core.audit_streams.stream import AuditStream
from evergrant_server.core.ids import StreamId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhooks import MASK, masked_url
from evergrant_server.crypto import Sealed
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import ModelRepository, columns_equal
from evergrant_server.store.sealing import ColumnSealer, IntakeRepository


class AuditStreamRow(columns.IdTable, table=True):
    __table_args__ = (UniqueConstraint("tenant", "name"),)
    name: str
    url: str  # with a mask in place of its query
    sealed_query: Sealed | None = columns.sealed(columns.BY_INTAKE)
    format: str
    header_names: list[str] = Field(sa_type=JSON)
    sealed_headers: Sealed | None = columns.sealed(columns.BY_INTAKE)
    disabled: bool
    sealed_secret: Sealed = columns.sealed(columns.BY_INTAKE)
    secret_changed_at: datetime = columns.timestamp()
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class AuditStreamStateRow(columns.IdTable, table=True):
    claimed_by: str | None = None
    claimed_until: datetime | None = columns.timestamp()
    batch: int
    failures: int
    failing_since: datetime | None = columns.timestamp()
    paused_until: datetime | None = columns.timestamp()
    problem: str | None = None
    response_status: int | None = None
    sent: int = Field(sa_type=columns.BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    sent_at: datetime | None = columns.timestamp()
    unsent: int = Field(sa_type=columns.BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # likewise
    oldest_at: datetime | None = columns.timestamp()


class AuditStreamCursorRow(columns.TenantTable, table=True):
    """The last record of a shard that the receiver has taken. `tenant` is the shard's."""

    stream_id: str = Field(primary_key=True)
    shard: str = Field(primary_key=True)
    seq: int = Field(sa_type=columns.BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # likewise
    moved_at: datetime = columns.timestamp()


_QUERY, _HEADERS, _SECRET = "sealed_query", "sealed_headers", "sealed_secret"


class StreamAccess(NamedTuple):
    """How a receiver is reached."""

    url: Secret  # with its query
    headers: Mapping[str, Secret]
    secrets: tuple[Secret, ...]  # that sign


class AuditStreams(IntakeRepository[AuditStream, StreamId], AuthenticatedRepository[AuditStream, StreamId]):
    _table, _model = AuditStreamRow, AuditStream

    def __init__(self, connection: DatabaseConnection, sealer: ColumnSealer) -> None:
        self._connection, self._sealer, self._ring = connection, sealer, sealer.ring

    async def add(self, stream: AuditStream, secret: Secret, headers: Mapping[str, Secret]) -> AuditStream:
        """Add a stream with its secret, its headers and its whole URL, and return it with the masked one.

        Raises Failure ALREADY_EXISTS when the name is there.
        """
        masked, query = masked_url(stream.url)
        plain = {_SECRET: secret, _QUERY: query, _HEADERS: _as_one(headers)}
        sealed = await self._sealed(stream, plain)
        stored = stream.__replace__(url=masked, header_names=tuple(headers))
        return await self._add(stored, f"Stream {stream.name!r}", **sealed)

    async def change(
        self, stream: AuditStream, *, url: str | None, headers: Mapping[str, Secret] | None, expected: int
    ) -> AuditStream:
        """As `replace`, with another URL and other headers; None leaves them as they are."""
        plain: dict[str, Secret | None] = {}
        if url is not None:
            masked, plain[_QUERY] = masked_url(url)
            stream = stream.__replace__(url=masked)
        if headers is not None:
            plain[_HEADERS] = _as_one(headers)
            stream = stream.__replace__(header_names=tuple(headers))
        return await self._change(stream, expected, **await self._sealed(stream, plain))

    async def rotate_secret(self, stream: AuditStream, secret: Secret, *, expected: int) -> AuditStream:
        """Write a new secret. What the receiver refuses until it knows it is sent again."""
        return await self._change(stream, expected, **await self._sealed(stream, {_SECRET: secret}))

    async def access(self, stream: AuditStream) -> StreamAccess:
        """How the receiver is reached. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        query, headers = await self._opened(stream, _QUERY), await self._opened(stream, _HEADERS)
        secret = await self._opened(stream, _SECRET)
        url = Secret(stream.url if query is None else stream.url.removesuffix(MASK) + query.reveal())
        named: dict[str, str] = {} if headers is None else json.loads(headers.reveal())
        opened = {name: Secret(value) for name, value in named.items()}
        return StreamAccess(url, opened, () if secret is None else (secret,))

    async def by_name(self, tenant: Tenant, name: str) -> AuditStream | None:
        return await self._one(tenant=tenant, name=name)

    async def by_name_unchecked(self, tenant: Tenant, name: str) -> AuditStream | None:
        """The stream as its row says, with a broken authenticator too: a put or a deletion repairs that."""
        return await self._one_unchecked(tenant=tenant, name=name)

    async def unchecked(self, tenant: Tenant, id: StreamId) -> AuditStream | None:
        """The stream as its row says, to name it."""
        return await self._one_unchecked(tenant=tenant, id=id)

    async def page(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[AuditStream]:
        """Streams sorted by name, after the name `after`. Not checked."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def delete(self, tenant: Tenant, id: StreamId) -> None:
        """Delete it with its secrets, its state and its cursors. Raises Failure NOT_FOUND."""
        await self._delete(id, tenant=tenant, id=id)
        state = columns_equal(AuditStreamStateRow, tenant=tenant, id=id)
        await self._run(delete(AuditStreamStateRow).where(state))
        cursors = columns_equal(AuditStreamCursorRow, tenant=tenant, stream_id=id)
        await self._run(delete(AuditStreamCursorRow).where(cursors))


class StreamStates(ModelRepository[StreamState, StreamId]):
    """How far each stream is. No authenticator: it decides no authority, and a receiver sees what is left out
    by the gapless numbers of a shard."""

    _table, _model = AuditStreamStateRow, StreamState

    async def add(self, state: StreamState) -> bool:
        """Add it; False when it is there."""
        return await self._insert(state)

    async def of_streams(self, tenant: Tenant, ids: list[StreamId]) -> dict[StreamId, StreamState]:
        states = await self._all(self._where(col(AuditStreamStateRow.id).in_(ids), tenant=tenant))
        return {state.id: state for state in states}

    async def failing(self, limit: int) -> list[StreamState]:
        """Streams of every tenant whose last batch wasn't taken, the one that fails for longest first."""
        query = self._where(col(AuditStreamStateRow.failures) > 0)
        return await self._all(query.order_by(col(AuditStreamStateRow.failing_since)).limit(limit))

    async def behind(self) -> list[StreamState]:
        """Up to a hundred streams of every tenant that have something to send, as of their last batch."""
        query = self._where(col(AuditStreamStateRow.unsent) > 0)
        return await self._all(query.order_by(col(AuditStreamStateRow.oldest_at)).limit(100))

    async def release_all(self, by: str) -> None:
        """End the claims of a process that stops."""
        row = AuditStreamStateRow
        claims = update(row).where(col(row.claimed_by) == by)
        await self._run(claims.values(claimed_by=None, claimed_until=None, revision=col(row.revision) + 1))

    async def any_that_time_frees(self, by: str) -> bool:
        """Whether a stream is paused, or claimed by another process: it goes on without a commit."""
        row = AuditStreamStateRow
        waits = or_(col(row.failures) > 0, col(row.claimed_by) != by)
        return bool((await self._connection.execute(select(exists().where(waits)))).scalar())

    async def any(self) -> bool:
        """Whether there is a stream at all."""
        return bool(
            (await self._connection.execute(select(exists().select_from(AuditStreamStateRow)))).scalar()
        )


def may_run(by: str, now: datetime) -> ColumnElement[bool]:
    """The condition that the process `by` may send a stream now: that of its state."""
    row = AuditStreamStateRow
    paused, until = col(row.paused_until), col(row.claimed_until)
    free = or_(col(row.claimed_by).is_(None), col(row.claimed_by) == by, until.is_(None), until <= now)
    return and_(or_(paused.is_(None), paused <= now), free)


def _as_one(headers: Mapping[str, Secret]) -> Secret | None:
    """The headers in one sealed column."""
    if not headers:
        return None
    return Secret(json.dumps({name: value.reveal() for name, value in headers.items()}))
