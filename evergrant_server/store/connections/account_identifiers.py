"""Providers' identifiers of the accounts behind connections: keyed hashes, to look connections up by."""

from collections.abc import Mapping

from sqlalchemy import Index, and_, bindparam, delete, func, select, update
from sqlmodel import Field, col

from evergrant_server.core.connections.account import (
    PIN,
    Account,
    OnReconnect,
    comparable,
    is_expected_account,
)
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.provider_events import (
    AccountIdentifier,
    account_identifiers_of,
    unreplaced_names,
)
from evergrant_server.crypto import KeyRing
from evergrant_server.store.authority.authenticators import account_mac, require_own_account
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    Repository,
    Values,
    change,
    columns_equal,
    fetch_all,
    fetch_first,
    find_one,
    insert,
)

_FEW = 5


class AccountIdentifierRow(columns.TenantTable, table=True):
    __table_args__ = (
        columns.connection_foreign_key(),
        Index(None, "tenant", "integration_id", "identifier_hash"),
    )
    connection_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    integration_id: str
    identifier_hash: str


_IDENTIFIERS = table_of(AccountIdentifierRow)
_OF_CONNECTION = select(_IDENTIFIERS.c.name, _IDENTIFIERS.c.identifier_hash).where(
    *(_IDENTIFIERS.c[name] == bindparam(name) for name in ("tenant", "connection_id"))
)
_RENEW = (
    update(_IDENTIFIERS)
    .where(*(_IDENTIFIERS.c[name] == bindparam(f"of_{name}") for name in ("tenant", "connection_id", "name")))
    .values(identifier_hash=bindparam("of_identifier_hash"), integration_id=bindparam("of_integration_id"))
)


class AccountIdentifiers(Repository):
    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    async def update_from_reply(
        self, owner: Connection, tokens: TokenSet, grant: Grant, origin: Origin
    ) -> Values:
        """Store the identifiers of this token reply; writes nothing when they are the same. Returns the pin's
        authenticator, a column of the connection's, if there is a new one.

        A refresh never moves the pin: it continues the same grant. Nor does it make an authenticator for
        one that was changed by other means. Raises Failure KEY_UNAVAILABLE without the refresh purpose.
        """
        wanted = {
            name: self._hash(owner.tenant, owner.integration_id, identifier)
            for name, identifier in account_identifiers_of(tokens, grant).items()
        }
        key = {"tenant": owner.tenant, "connection_id": owner.id}
        rows = await fetch_all(self._connection, _OF_CONNECTION, key)
        had = {row["name"]: row["identifier_hash"] for row in rows}
        stay = unreplaced_names(tokens, origin)
        if PIN in stay & had.keys():
            wanted.pop(PIN, None)
        renewed = origin is Origin.NEW or (PIN in wanted and await self._is_authentic(owner, None))
        gone = had.keys() - stay - wanted.keys()
        if gone:
            mine = columns_equal(AccountIdentifierRow, **key)
            await self._run(
                delete(AccountIdentifierRow).where(mine, col(AccountIdentifierRow.name).in_(sorted(gone)))
            )
        for name, hashed in wanted.items():
            client = owner.integration_id
            row = {**key, "name": name, "identifier_hash": hashed, "integration_id": client}
            if name not in had:
                await insert(self._connection, AccountIdentifierRow, {**row, "revision": 1})
            elif had[name] != hashed and name not in stay:
                renamed = {f"of_{column}": value for column, value in row.items()}
                await change(self._connection, _RENEW, renamed)
        return {"account_mac": account_mac(self._ring, owner, wanted.get(PIN))} if renewed else {}

    async def account_hash(self, connection: Connection) -> str | None:
        """The keyed hash of the account that the connection is pinned to, or None."""
        key = {"tenant": connection.tenant, "connection_id": connection.id, "name": PIN}
        row = await find_one(self._connection, AccountIdentifierRow, **key)
        return None if row is None else row["identifier_hash"]

    async def own_account(self, connection: Connection) -> str | None:
        """As `account_hash`, for what may replace the grant. Raises Failure AUTHORITY_BROKEN unless a worker
        wrote it; a connection that is revoking isn't checked."""
        pin = await self.account_hash(connection)
        if connection.state is not LifecycleState.REVOKING:
            require_own_account(self._ring, connection, await self._mac(connection), pin)
        return pin

    async def _is_authentic(self, owner: Connection, pin: str | None) -> bool:
        try:
            require_own_account(self._ring, owner, await self._mac(owner), pin)
        except Failure:
            return False
        return True

    async def _mac(self, connection: Connection) -> str | None:
        row = await find_one(self._connection, ConnectionRow, tenant=connection.tenant, id=connection.id)
        return None if row is None else row["account_mac"]

    async def is_shared(
        self, tenant: Tenant, integration_id: IntegrationId, account_hash: str, but: ConnectionId
    ) -> bool:
        """True when a live connection of this integration other than `but` has this account."""
        row, connection = table_of(AccountIdentifierRow).c, table_of(ConnectionRow).c
        query = (
            select(row.connection_id)
            .join_from(
                table_of(AccountIdentifierRow),
                table_of(ConnectionRow),
                and_(connection.tenant == row.tenant, connection.id == row.connection_id),
            )
            .where(
                row.tenant == tenant,
                row.integration_id == integration_id,
                row.identifier_hash == account_hash,
                row.connection_id != but,
                connection.state.not_in(FINAL_STATES),
            )
        )
        return await fetch_first(self._connection, query.limit(1)) is not None

    async def any_other_has_a_grant(
        self, tenant: Tenant, integration_id: IntegrationId, but: ConnectionId
    ) -> bool:
        """True when a live connection of this integration other than `but` may have any account."""
        c = table_of(ConnectionRow).c
        mine = columns_equal(ConnectionRow, tenant=tenant, integration_id=integration_id)
        others = select(c.id).where(mine, c.id != but, c.state.not_in(FINAL_STATES), c.generation > 0)
        return await fetch_first(self._connection, others.limit(1)) is not None

    async def connections_identified_by(
        self, tenant: Tenant, integration_id: IntegrationId, identifiers: frozenset[AccountIdentifier]
    ) -> list[ConnectionId]:
        """Connections of this integration that have every one of these identifiers; none for an empty set."""
        if not identifiers:
            return []
        hashes = [self._hash(tenant, integration_id, identifier) for identifier in identifiers]
        mine = columns_equal(AccountIdentifierRow, tenant=tenant, integration_id=integration_id)
        query = (
            select(col(AccountIdentifierRow.connection_id))
            .where(mine, col(AccountIdentifierRow.identifier_hash).in_(hashes))
            .group_by(col(AccountIdentifierRow.connection_id))
            .having(func.count() == len(hashes))
            .order_by(col(AccountIdentifierRow.connection_id))
        )
        return [row["connection_id"] for row in await fetch_all(self._connection, query)]

    async def connections_of_subject(
        self, tenant: Tenant, integration_id: IntegrationId, subject: str
    ) -> list[ConnectionId]:
        """Live connections of this integration whose subject this is."""
        mine = columns_equal(ConnectionRow, tenant=tenant, integration_id=integration_id, subject=subject)
        live = col(ConnectionRow.state).not_in(FINAL_STATES)
        query = select(col(ConnectionRow.id)).where(mine, live).order_by(col(ConnectionRow.id))
        return [row["id"] for row in await fetch_all(self._connection, query)]

    async def is_expected(self, owner: Connection, came: Account | None, rule: OnReconnect) -> bool:
        """Whether a consent that was given with this account fits the connection's pin and expectation.

        Raises as `own_account`.
        """
        claims = {} if came is None else came.claims
        return is_expected_account(
            None if came is None else self.hash_of(owner, came),
            self.hash_claims(owner.tenant, owner.integration_id, claims),
            pin=await self.own_account(owner),
            expected=owner.expected_account or {},
            rule=rule,
        )

    def hash_claims(
        self, tenant: Tenant, integration_id: IntegrationId, claims: Mapping[str, str]
    ) -> dict[str, str]:
        """Keyed hashes of claims, by which an expectation is compared."""
        return {
            name: self._ring.account_hash(tenant, integration_id, f"expected:{name}", comparable(name, value))
            for name, value in claims.items()
        }

    def expectation_at(
        self, owner: Connection, integration: IntegrationId, came: Account | None
    ) -> dict[str, str] | None:
        """The expectation of the connection, which this account has met, as hashes of another client."""
        if owner.expected_account is None:
            return None
        claims = {} if came is None else came.claims
        expected = {name: claims[name] for name in owner.expected_account if name in claims}
        return self.hash_claims(owner.tenant, integration, expected)

    async def of_other_subjects(self, owner: Connection, account: Account) -> list[ConnectionId]:
        """Other subjects' live connections that are pinned to this account, a few at most."""
        mine = columns_equal(
            AccountIdentifierRow,
            tenant=owner.tenant,
            integration_id=owner.integration_id,
            identifier_hash=self.hash_of(owner, account),
        )
        same = and_(
            col(ConnectionRow.tenant) == col(AccountIdentifierRow.tenant),
            col(ConnectionRow.id) == col(AccountIdentifierRow.connection_id),
        )
        live = col(ConnectionRow.state).not_in(FINAL_STATES)
        others = col(ConnectionRow.subject) != owner.subject
        query = select(col(ConnectionRow.id)).join(AccountIdentifierRow, same).where(mine, live, others)
        rows = await fetch_all(self._connection, query.order_by(col(ConnectionRow.id)).limit(_FEW))
        return [row["id"] for row in rows]

    async def delete_of_connection(self, tenant: Tenant, connection_id: ConnectionId) -> None:
        """Delete all of a connection."""
        mine = columns_equal(AccountIdentifierRow, tenant=tenant, connection_id=connection_id)
        await self._run(delete(AccountIdentifierRow).where(mine))

    def hash_of(self, owner: Connection, account: Account) -> str:
        """The keyed hash by which accounts are compared."""
        return self._hash(owner.tenant, owner.integration_id, AccountIdentifier(PIN, account.id))

    def _hash(self, tenant: str, integration_id: str, identifier: AccountIdentifier) -> str:
        return self._ring.account_hash(tenant, integration_id, identifier.name, identifier.value)
