"""The table of answers that came too late to be installed."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.tables import Row
from evergrant_server.store.types import SealedBytes, UtcDateTime


class LateTokensRow(Row, table=True):
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "connection_id"], ["connection.tenant", "connection.id"]),
        Index(None, "tenant", "connection_id"),
    )
    tenant: str = Field(primary_key=True)
    attempt_id: str = Field(primary_key=True)
    connection_id: str
    slot: str
    from_generation: int
    requested_at: datetime = Field(sa_type=UtcDateTime)
    received_at: datetime = Field(sa_type=UtcDateTime)
    sealed_tokens: Sealed = Field(sa_type=SealedBytes)
    revision: int
