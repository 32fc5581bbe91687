"""What a connection's workflow is sent, as rows for the outbox."""

from datetime import datetime

from evergrant_server.core.beginning import begun
from evergrant_server.core.connection import Connection
from evergrant_server.core.messages import Asked, Message
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, signal_to, written
from evergrant_server.core.receivers import FetchKeys, Receiver
from evergrant_server.crypto import KeyRing


def start(connection: Connection, ring: KeyRing, asked: Asked, now: datetime) -> OutboxMessage:
    """Begin the workflow of a new connection."""
    return begun(connection, ring.subject_hash(connection.tenant, connection.subject), asked, now)


def signal(connection: Connection, name: str, said: Message, now: datetime) -> OutboxMessage:
    """A signal to the workflow of a connection."""
    return signal_to(connection.tenant, connection.id, name, said, now)


def fetch_keys(receiver: Receiver, asked: Asked, now: datetime) -> OutboxMessage:
    """Have a worker read the keys of a receiver's transmitter."""
    order = FetchKeys(tenant=receiver.tenant, receiver_id=receiver.id, asked=asked)
    target = f"keys:{receiver.tenant}:{receiver.id}"
    return written(receiver.tenant, OutboxKind.FETCH_KEYS, target, order, now)
