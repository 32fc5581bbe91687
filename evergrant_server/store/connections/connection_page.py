"""What queries over many connections return: a page of them, and revocations that are under way."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import ConnectionId, Tenant


class PendingRevocation(NamedTuple):
    """A connection that is revoking since then."""

    tenant: Tenant
    id: ConnectionId
    integration: str
    since: datetime


class UnreadableRow(NamedTuple):
    """A row that this version can't read as a connection; `why` names its fields, none of their values."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    why: str


class ConnectionPage(list[Connection]):
    """Connections sorted by id, without the rows that can't be read: these are named beside them.

    `last` is the id of the last row, readable or not, None when there is no row; `has_more` is False when
    no row follows it.
    """

    def __init__(
        self,
        connections: Iterable[Connection],
        unreadable: tuple[UnreadableRow, ...],
        last: ConnectionId | None,
        has_more: bool,
    ) -> None:
        super().__init__(connections)
        self.unreadable = unreadable
        self.last = last
        self.has_more = has_more
