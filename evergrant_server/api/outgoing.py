"""What a connection's workflow is sent, as rows for the outbox."""

from datetime import datetime

from evergrant_server.core.connection import Connection
from evergrant_server.core.ids import OutboxId, new_id, workflow_id
from evergrant_server.core.lifecycle import life_of
from evergrant_server.core.messages import Asked, ConnectionStart, Message
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.core.receivers import FetchKeys, Receiver
from evergrant_server.core.schedule import NEWEST_RULES
from evergrant_server.crypto import KeyRing


def start(connection: Connection, ring: KeyRing, asked: Asked, now: datetime) -> OutboxMessage:
    """Begin the workflow of a new connection."""
    order = ConnectionStart(
        tenant=connection.tenant,
        connection_id=connection.id,
        integration_id=connection.integration_id,
        integration=connection.integration,
        provider=connection.provider,
        subject_hash=ring.subject_hash(connection.tenant, connection.subject),
        rules=NEWEST_RULES,
        life=life_of(connection, None, None, now),
        asked=asked,
    )
    return _message(connection, OutboxKind.START_WORKFLOW, "", order, now)


def signal(connection: Connection, name: str, said: Message, now: datetime) -> OutboxMessage:
    """A signal to the workflow of a connection."""
    return _message(connection, OutboxKind.SIGNAL, name, said, now)


def fetch_keys(receiver: Receiver, asked: Asked, now: datetime) -> OutboxMessage:
    """Have a worker read the keys of a receiver's transmitter."""
    order = FetchKeys(tenant=receiver.tenant, receiver_id=receiver.id, asked=asked)
    return OutboxMessage(
        tenant=receiver.tenant,
        id=OutboxId(new_id("out")),
        kind=OutboxKind.FETCH_KEYS,
        target=f"keys:{receiver.tenant}:{receiver.id}",
        payload=order.model_dump(mode="json"),
        created_at=now,
    )


def _message(
    connection: Connection, kind: OutboxKind, name: str, payload: Message, now: datetime
) -> OutboxMessage:
    return OutboxMessage(
        tenant=connection.tenant,
        id=OutboxId(new_id("out")),
        kind=kind,
        target=workflow_id(connection.tenant, connection.id),
        name=name,
        payload=payload.model_dump(mode="json"),
        created_at=now,
    )
