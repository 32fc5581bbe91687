"""The issuers of workload tokens that tenants trust, with their public keys as a worker last read them.

The authenticator of a row covers the keys: a writer of the database can't add his own.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, or_
from sqlmodel import col

from evergrant_server.core.ids import Tenant, TrustedIssuerId
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.store.authority import AuthenticatedRepository
from evergrant_server.store.database import columns


class TrustedIssuerRow(columns.IdTable, table=True):
    __table_args__ = (
        UniqueConstraint("tenant", "name"),
        UniqueConstraint("tenant", "issuer"),
        Index(None, "keys_next_at"),
    )
    name: str
    kind: str
    issuer: str
    jwks_uri: str | None = None
    keys: list[dict[str, Any]] | None = columns.json()
    keys_at: datetime | None = columns.timestamp()
    keys_tried_at: datetime | None = columns.timestamp()
    keys_next_at: datetime | None = columns.timestamp()
    keys_requested_at: datetime | None = columns.timestamp()
    keys_problem: str | None = None
    created_at: datetime = columns.timestamp()
    changed_at: datetime = columns.timestamp()
    mac: str | None = None


class TrustedIssuers(AuthenticatedRepository[TrustedIssuer, TrustedIssuerId]):
    _table, _model = TrustedIssuerRow, TrustedIssuer

    async def put(self, issuer: TrustedIssuer, *, expected: int | None) -> TrustedIssuer:
        """Add (`expected` None) or change one.

        Raises Failure ALREADY_EXISTS also for another one with this `issuer`, STORE_CONFLICT, NOT_FOUND.
        """
        return await self._put(issuer, "A trusted issuer of this name, or with this issuer,", expected)

    async def by_name(self, tenant: Tenant, name: str) -> TrustedIssuer | None:
        return await self._one(tenant=tenant, name=name)

    async def to_delete(self, tenant: Tenant, name: str) -> TrustedIssuer | None:
        """The issuer as its row says, with a broken authenticator too: only its deletion repairs that."""
        return await self._one_unchecked(tenant=tenant, name=name)

    async def all(self, tenant: Tenant, after: str | None = None, limit: int = 50) -> list[TrustedIssuer]:
        """Those of a tenant, sorted by name, after the name `after`."""
        return await self._page(self._where(tenant=tenant), "name", after, limit)

    async def with_due_keys(self, now: datetime, limit: int = 500) -> list[TrustedIssuer]:
        """Issuers of every tenant whose keys are to be read again, the longest overdue first. Not checked."""
        due = or_(col(TrustedIssuerRow.keys_next_at).is_(None), col(TrustedIssuerRow.keys_next_at) <= now)
        order = (col(TrustedIssuerRow.keys_next_at), col(TrustedIssuerRow.id))
        return await self._all_unchecked(self._where(due).order_by(*order).limit(limit))

    async def with_problems(self, limit: int) -> list[TrustedIssuer]:
        """Issuers of every tenant whose last reading failed. Not checked."""
        failed = self._where(col(TrustedIssuerRow.keys_problem).is_not(None))
        return await self._all_unchecked(failed.order_by(col(TrustedIssuerRow.id)).limit(limit))

    async def delete(self, issuer: TrustedIssuer) -> None:
        """Delete it. Raises Failure NOT_FOUND."""
        name = f"Trusted issuer {issuer.name!r}"
        await self._delete(name, tenant=issuer.tenant, id=issuer.id)
