"""A transaction: one snapshot to read, or one change that is committed whole or not at all."""

from datetime import datetime

from evergrant_server.crypto import KeyRing
from evergrant_server.store.access.apps import Access
from evergrant_server.store.access.idempotency import Idempotency
from evergrant_server.store.connections.attempts import Attempts
from evergrant_server.store.connections.connections import Connections
from evergrant_server.store.connections.consents import Consents
from evergrant_server.store.connections.grants import Grants
from evergrant_server.store.connections.histories import Histories
from evergrant_server.store.connections.late_tokens import LateTokenSets
from evergrant_server.store.connections.proof_keys import ProofKeys
from evergrant_server.store.connections.usage import Usage
from evergrant_server.store.database.connection import DatabaseConnection
from evergrant_server.store.exports.exports import Exports
from evergrant_server.store.integrations.definitions import Definitions
from evergrant_server.store.integrations.integrations import Integrations
from evergrant_server.store.outbox import Outbox
from evergrant_server.store.provider_events.account_identifiers import AccountIdentifiers
from evergrant_server.store.provider_events.introspections import Introspections
from evergrant_server.store.provider_events.receivers import Receivers
from evergrant_server.store.sealing import ColumnSealer, UnwrappedKeys
from evergrant_server.store.webhooks.deliveries import Deliveries
from evergrant_server.store.webhooks.webhooks import Webhooks


class Transaction:
    """The repositories of one transaction. Nothing but calls to these may be awaited inside it."""

    def __init__(
        self, connection: DatabaseConnection, ring: KeyRing, now: datetime, keys: UnwrappedKeys | None = None
    ) -> None:
        self.connection = connection
        sealer = self.sealer = ColumnSealer(connection, ring, now, keys)
        self.connections = Connections(connection)
        self.grants = Grants(connection, sealer)
        self.integrations = Integrations(connection, sealer)
        self.definitions = Definitions(connection)
        self.access = Access(connection)
        self.consents = Consents(connection, sealer)
        self.exports = Exports(connection)
        self.attempts = Attempts(connection)
        self.late_tokens = LateTokenSets(connection, sealer)
        self.proof_keys = ProofKeys(connection, sealer)
        self.outbox = Outbox(connection)
        self.usage = Usage(connection)
        self.histories = Histories(connection)
        self.webhooks = Webhooks(connection, sealer)
        self.deliveries = Deliveries(connection)
        self.receivers = Receivers(connection, sealer)
        self.account_identifiers = AccountIdentifiers(connection, ring)
        self.introspections = Introspections(connection)
        self.idempotency = Idempotency(connection, sealer)
