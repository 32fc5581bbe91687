"""A transaction: one snapshot to read, or one change that is committed whole or not at all."""

from datetime import datetime
from functools import cached_property

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
        self, connection: DatabaseConnection, ring: KeyRing, now: datetime, held: UnwrappedKeys | None = None
    ) -> None:
        self.connection = connection
        self._seals = ColumnSealer(connection, ring, now, held)

    @property
    def sealer(self) -> ColumnSealer:
        return self._seals

    @cached_property
    def connections(self) -> Connections:
        return Connections(self.connection)

    @cached_property
    def grants(self) -> Grants:
        return Grants(self.connection, self._seals)

    @cached_property
    def integrations(self) -> Integrations:
        return Integrations(self.connection, self._seals)

    @cached_property
    def definitions(self) -> Definitions:
        return Definitions(self.connection)

    @cached_property
    def access(self) -> Access:
        return Access(self.connection)

    @cached_property
    def consents(self) -> Consents:
        return Consents(self.connection, self._seals)

    @cached_property
    def exports(self) -> Exports:
        return Exports(self.connection)

    @cached_property
    def attempts(self) -> Attempts:
        return Attempts(self.connection)

    @cached_property
    def late_tokens(self) -> LateTokenSets:
        return LateTokenSets(self.connection, self._seals)

    @cached_property
    def proof_keys(self) -> ProofKeys:
        return ProofKeys(self.connection, self._seals)

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.connection)

    @cached_property
    def usage(self) -> Usage:
        return Usage(self.connection)

    @cached_property
    def histories(self) -> Histories:
        return Histories(self.connection)

    @cached_property
    def webhooks(self) -> Webhooks:
        return Webhooks(self.connection, self._seals)

    @cached_property
    def deliveries(self) -> Deliveries:
        return Deliveries(self.connection)

    @cached_property
    def receivers(self) -> Receivers:
        return Receivers(self.connection, self._seals)

    @cached_property
    def account_identifiers(self) -> AccountIdentifiers:
        return AccountIdentifiers(self.connection, self._seals.ring)

    @cached_property
    def introspections(self) -> Introspections:
        return Introspections(self.connection)

    @cached_property
    def idempotency(self) -> Idempotency:
        return Idempotency(self.connection, self._seals)
