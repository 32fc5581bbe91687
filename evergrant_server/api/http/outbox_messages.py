"""Outbox messages for workflows."""

from datetime import datetime

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.lifecycle.snapshot import start_message
from evergrant_server.core.messages.base import Message, RequestContext, receiver_keys_workflow_id
from evergrant_server.core.messages.integrations import FetchReceiverKeys
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message, signal_message
from evergrant_server.core.provider_events.receivers import Receiver
from evergrant_server.crypto import KeyRing


def connection_start_message(
    connection: Connection, ring: KeyRing, context: RequestContext, now: datetime
) -> OutboxMessage:
    """Start the workflow of a new connection."""
    return start_message(connection, ring.subject_hash(connection.tenant, connection.subject), context, now)


def connection_signal_message(
    connection: Connection, name: str, message: Message, now: datetime
) -> OutboxMessage:
    """Signal a connection's workflow."""
    return signal_message(connection.tenant, connection.id, name, message, now)


def fetch_keys_message(receiver: Receiver, context: RequestContext, now: datetime) -> OutboxMessage:
    """Have a worker fetch the public keys of the receiver's transmitter."""
    order = FetchReceiverKeys(tenant=receiver.tenant, receiver_id=receiver.id, context=context)
    target = receiver_keys_workflow_id(receiver.tenant, receiver.id)
    return outbox_message(receiver.tenant, OutboxKind.FETCH_RECEIVER_KEYS, target, order, now)
