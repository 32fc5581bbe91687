"""Receivers with their signing secrets and pinned keys, and what came in there."""

from datetime import datetime

from sqlalchemy import delete, or_, select
from sqlmodel import col

from evergrant_server.core.ids import IntegrationId, ReceiverId, Tenant
from evergrant_server.core.provider_events.receivers import Receiver
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import AssociatedData, KeyPurpose
from evergrant_server.store.database.rows import (
    Values,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_models,
    find_model,
    find_one,
    insert,
)
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.provider_events.tables import EventReceiverRow, ReceivedEventRow
from evergrant_server.store.sealing import SealedRepository

_COLUMN = "sealed_secret"


class Receivers(SealedRepository):
    """Receivers of one transaction."""

    async def put(self, receiver: Receiver, secret: Secret | None, *, expected: int | None) -> Receiver:
        """Add (`expected` None) or change a receiver; `secret` None keeps the old one.

        Raises Failure ALREADY_EXISTS when adding, STORE_CONFLICT or NOT_FOUND when changing.
        """
        sealed: Values = {}
        if secret is not None:
            sealed[_COLUMN] = await self._sealer.seal(
                KeyPurpose.INTAKE, NO_CONNECTION, _place(receiver), secret
            )
        if expected is None:
            if not await insert(
                self._connection, EventReceiverRow, column_values(receiver, **{_COLUMN: None, **sealed})
            ):
                raise already_exists("A receiver of this integration")
            return receiver
        return await self._change(receiver, expected, sealed)

    async def replace(self, receiver: Receiver, *, expected: int) -> Receiver:
        """Write the row if it is at revision `expected`. Raises Failure STORE_CONFLICT, NOT_FOUND."""
        return await self._change(receiver, expected, {})

    async def find_in_any_tenant(self, id: ReceiverId) -> Receiver | None:
        """The receiver with this id in any tenant: a provider that calls it sends no more."""
        return await self._one(id=id)

    async def of_integration(self, tenant: Tenant, integration_id: IntegrationId) -> Receiver | None:
        return await self._one(tenant=tenant, integration_id=integration_id)

    async def secret(self, receiver: Receiver) -> Secret | None:
        """The signing secret, if there is one. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        row = await find_one(self._connection, EventReceiverRow, tenant=receiver.tenant, id=receiver.id)
        if row is None or row[_COLUMN] is None:
            return None
        return await self._sealer.open(KeyPurpose.INTAKE, NO_CONNECTION, _place(receiver), row[_COLUMN])

    async def delete(self, receiver: Receiver) -> None:
        mine = columns_equal(EventReceiverRow, tenant=receiver.tenant, id=receiver.id)
        await self._connection.execute(delete(EventReceiverRow).where(mine))

    async def with_keys_older_than(self, before: datetime, limit: int = 500) -> list[Receiver]:
        """Receivers of every tenant whose keys were fetched before then, or never."""
        old = or_(col(EventReceiverRow.keys_at).is_(None), col(EventReceiverRow.keys_at) < before)
        query = select(EventReceiverRow).where(old, col(EventReceiverRow.jwks_uri).is_not(None))
        return await fetch_models(
            self._connection, Receiver, query.order_by(col(EventReceiverRow.id)).limit(limit)
        )

    async def is_known_event(self, receiver: Receiver, event_hash: str) -> bool:
        """True when this event came before."""
        key = {"tenant": receiver.tenant, "receiver_id": receiver.id, "event_hash": event_hash}
        return await find_one(self._connection, ReceivedEventRow, **key) is not None

    async def record_event(self, receiver: Receiver, event_hash: str, at: datetime) -> bool:
        """Remember that this event came; False when another process was faster."""
        values: Values = {
            "tenant": receiver.tenant,
            "receiver_id": receiver.id,
            "event_hash": event_hash,
            "received_at": at,
            "revision": 1,
        }
        return await insert(self._connection, ReceivedEventRow, values)

    async def delete_events_before(self, before: datetime) -> int:
        """Delete what came before then; says how many."""
        old = delete(ReceivedEventRow).where(col(ReceivedEventRow.received_at) < before)
        return (await self._connection.execute(old)).rowcount

    async def _change(self, receiver: Receiver, expected: int, sealed: Values) -> Receiver:
        key = {"tenant": receiver.tenant, "id": receiver.id}
        revision = await compare_and_set(
            self._connection, EventReceiverRow, key, column_values(receiver, **sealed), expected
        )
        return receiver.model_copy(update={"revision": revision})

    async def _one(self, **equal: str) -> Receiver | None:
        return await find_model(self._connection, Receiver, EventReceiverRow, **equal)


def _place(receiver: Receiver) -> AssociatedData:
    return AssociatedData(receiver.tenant, "event_receiver", receiver.id, _COLUMN)
