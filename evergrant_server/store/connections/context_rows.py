"""What the requests for one connection are made of, in two queries: its rows, and the keys that open them.

And what a refresh changes of it, in one."""

from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import ColumnElement, FromClause, and_, bindparam, exists, or_, select, text

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.credentials import ProofKey
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant
from evergrant_server.core.definition import Definition
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.integrations import NOTHING_PINNED, Integration, PinnedHosts
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store.audit_tables import END_CONDITION, AuditRow
from evergrant_server.store.authority.authenticators import authentic
from evergrant_server.store.connections.connections import Connections
from evergrant_server.store.connections.grants import (
    SealedTokens,
    StoredGrant,
    authentic_grant,
    grant_of,
)
from evergrant_server.store.connections.proof_keys import opened_proof_key
from evergrant_server.store.connections.tables import (
    AttemptRow,
    ConnectionGrantRow,
    ConnectionRow,
    LateTokensRow,
    ProofKeyRow,
    UsageRow,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import (
    Values,
    fetch_first,
    find_one,
    labelled,
    not_found,
    part,
    read_model,
)
from evergrant_server.store.integrations.definitions import SERVING_STATES, DefinitionRow, Definitions
from evergrant_server.store.integrations.integrations import SealedClient
from evergrant_server.store.integrations.pinned_hosts import require_pins
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.sealing import SealedRepository

_CONNECTION, _INTEGRATION = table_of(ConnectionRow), table_of(IntegrationRow)
_GRANT, _PROOF_KEY = table_of(ConnectionGrantRow), table_of(ProofKeyRow)
_TABLES = (_CONNECTION, _INTEGRATION, _GRANT, _PROOF_KEY)
_AUDIT, _DEFINITION, _USAGE = table_of(AuditRow), table_of(DefinitionRow), table_of(UsageRow)


def _mine(table: FromClause, column: str = "connection_id") -> ColumnElement[bool]:
    """A row of the connection."""
    return and_(table.c.tenant == _CONNECTION.c.tenant, table.c[column] == _CONNECTION.c.id)


_OF_INTEGRATION = and_(
    _INTEGRATION.c.tenant == _CONNECTION.c.tenant, _INTEGRATION.c.id == _CONNECTION.c.integration_id
)
_OF_MAIN_GRANT = and_(_mine(_GRANT), _GRANT.c.slot == bindparam("slot"))
_OF_ID = and_(_CONNECTION.c.tenant == bindparam("tenant"), _CONNECTION.c.id == bindparam("id"))
_SERVES = and_(
    _DEFINITION.c.tenant == _CONNECTION.c.tenant,
    _DEFINITION.c.name == _INTEGRATION.c.provider,
    or_(*(_DEFINITION.c.state == state for state in SERVING_STATES)),
)
_ROWS = (
    select(
        *labelled(*_TABLES),
        exists().where(_mine(_AUDIT, "object"), text(END_CONDITION)).label("may_have_ended"),
        exists().where(_SERVES).label("has_definitions"),
        _USAGE.c.leased_generation,
    )
    .outerjoin(_INTEGRATION, _OF_INTEGRATION)
    .outerjoin(_GRANT, _OF_MAIN_GRANT)
    .outerjoin(_PROOF_KEY, _mine(_PROOF_KEY))
    .outerjoin(_USAGE, _mine(_USAGE))
    .where(_OF_ID)
)

_ATTEMPT, _LATE, _NARROWED = table_of(AttemptRow), table_of(LateTokensRow), _GRANT.alias()
_RENEWED = (_CONNECTION, _GRANT, _ATTEMPT)
_RENEWAL = (
    select(
        *labelled(*_RENEWED),
        exists().where(_mine(_LATE)).label("has_late_tokens"),
        exists().where(_mine(_NARROWED), _NARROWED.c.slot != bindparam("slot")).label("has_narrowed_tokens"),
    )
    .outerjoin(_GRANT, _OF_MAIN_GRANT)
    .outerjoin(_ATTEMPT, and_(_mine(_ATTEMPT), _ATTEMPT.c.id == bindparam("attempt")))
    .where(_OF_ID)
)
_RENEWAL_LOCKED = _RENEWAL.with_for_update(of=_CONNECTION, key_share=True)


@dataclass(frozen=True)
class ContextRows:
    """A connection with its integration, its main grant and the definitions of its provider, as one snapshot
    has them; what is sealed stays so until it is asked for."""

    connection: Connection
    tokens: SealedTokens
    leased_generation: int  # the newest that was leased; 0: none was
    client: SealedClient | None = None  # None: its integration was deleted
    grant: Grant | None = None
    pins: PinnedHosts = NOTHING_PINNED
    definitions: tuple[Definition, ...] = ()
    proof_row: Values | None = field(default=None, repr=False)

    @property
    def integration(self) -> Integration | None:
        return self.client.integration if self.client else None

    def proof_key(self) -> ProofKey | None:
        """The key that its tokens are bound to. Raises Failure SEAL_BROKEN, KEY_UNAVAILABLE."""
        return None if self.proof_row is None else opened_proof_key(self.tokens.keys, self.proof_row)


class Renewal(NamedTuple):
    """The rows that a refresh changes."""

    connection: Connection
    grant: Grant | None
    attempt: Attempt | None
    stored: StoredGrant

    @property
    def is_taken_over(self) -> bool:
        """True when another attempt has sent the credential of this one since."""
        return self.attempt is not None and self.attempt.outcome is AttemptOutcome.SUPERSEDED


class ContextRowsOf(SealedRepository):
    async def connection(
        self, tenant: Tenant, id: ConnectionId, client_of: IntegrationId | None = None
    ) -> ContextRows | None:
        """What stands in the store of this connection. Raises Failure AUTHORITY_BROKEN, and INTERNAL for a
        row that can't be read.

        `client_of`: the integration whose client is used, for a consent to another one than has got the
        grant, or to end a grant of the one before; no secret of the connection's grant may be sent with it.
        """
        row = await fetch_first(self._connection, _ROWS, {"tenant": tenant, "id": id, "slot": MAIN_SLOT})
        if row is None:
            return None
        ring = self._sealer.ring
        connection_row, integration_row, grant_row, proof_row = (part(row, table) for table in _TABLES)
        assert connection_row is not None
        is_own = client_of in (None, connection_row["integration_id"])
        if not is_own:
            integration_row = await find_one(self._connection, IntegrationRow, tenant=tenant, id=client_of)
        of_connections = Connections(self._connection, ring)
        connection = await of_connections.checked(connection_row, may_have_ended=row["may_have_ended"])
        assert connection is not None
        sealed = SealedClient.columns(integration_row) if integration_row else []
        if grant_row is not None:
            sealed += SealedTokens.columns(grant_row)
        if proof_row is not None:
            sealed.append((KeyPurpose.LEASE, proof_row["sealed_key"]))
        keys = await self._sealer.read_keys(tenant, id, sealed)
        tokens, leased = SealedTokens(connection, grant_row, keys), row["leased_generation"] or 0
        if integration_row is None:
            return ContextRows(connection, tokens, leased)
        integration = authentic(ring, Integration, IntegrationRow, integration_row)
        pins = require_pins(ring, connection, integration, integration_row, grant_row if is_own else None)
        grant = None if grant_row is None else authentic_grant(ring, connection, grant_row)
        definitions: list[Definition] = []
        if row["has_definitions"] or not is_own:
            definitions = await Definitions(self._connection, ring).serving(tenant, integration.provider)
        client = SealedClient(integration, integration_row, keys)
        return ContextRows(connection, tokens, leased, client, grant, pins, tuple(definitions), proof_row)

    async def renewal(self, attempt: Attempt, *, locked: bool = False) -> Renewal:
        """What stands in the store of the connection, before the reply of this attempt is installed.

        `locked`: the connection is locked against changes and shared locks until this transaction ends.
        Raises Failure NOT_FOUND, and INTERNAL for a row that can't be read.
        """
        query = _RENEWAL_LOCKED if locked else _RENEWAL
        key = {"tenant": attempt.tenant, "id": attempt.connection_id, "attempt": attempt.id}
        row = await fetch_first(self._connection, query, {**key, "slot": MAIN_SLOT})
        if row is None:
            raise not_found(attempt.connection_id)
        connection_row, grant_row, attempt_row = (part(row, table) for table in _RENEWED)
        return Renewal(
            read_model(Connection, ConnectionRow, connection_row or {}),
            None if grant_row is None else grant_of(grant_row),
            None if attempt_row is None else read_model(Attempt, AttemptRow, attempt_row),
            StoredGrant(grant_row, row["has_late_tokens"], row["has_narrowed_tokens"]),
        )
