"""The table of keys that tokens are bound to."""

from datetime import datetime

from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.crypto import Sealed
from evergrant_server.store.tables import Row
from evergrant_server.store.types import SealedBytes, UtcDateTime


class ProofKeyRow(Row, table=True):
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "connection_id"], ["connection.tenant", "connection.id"]),
    )
    tenant: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    thumbprint: str
    sealed_key: Sealed = Field(sa_type=SealedBytes)
    created_at: datetime = Field(sa_type=UtcDateTime)
    revision: int
