"""Grants and their tokens, and the key that tokens are bound to (RFC 9449): gone with the grant.

All are sealed per connection: access tokens and that key in the lease purpose, the rest in refresh.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, delete, select, update
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import MAIN_SLOT, NARROWED, Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.integrations import NOTHING_PINNED, PinnedHosts
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import ROOT_PURPOSES, AssociatedData, KeyPurpose, KeyRing, Sealed
from evergrant_server.crypto.envelope import seal_broken
from evergrant_server.store.authority.authenticators import grant_parts, require_grant
from evergrant_server.store.connections.account_identifiers import AccountIdentifiers
from evergrant_server.store.connections.attempts import LateTokenSets
from evergrant_server.store.connections.connections import Connections
from evergrant_server.store.connections.replaced_grants import ReplacedGrants
from evergrant_server.store.connections.tables import (
    ConnectionGrantRow,
    ConnectionRow,
    ConsentRow,
    ProofKeyRow,
    UsageRow,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import (
    Values,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_first,
    find_one,
    insert,
    read_model,
)
from evergrant_server.store.integrations.pinned_hosts import COLUMN, HOSTS, Destinations
from evergrant_server.store.keys import sealed_place
from evergrant_server.store.sealing import KeyRows, SealedRepository

ACCESS_COLUMN, REFRESH_COLUMN, ID_TOKEN_COLUMN = "sealed_access", "sealed_refresh", "sealed_id_token"
_SEALED_CONSENT_COLUMNS = [
    column.name for column in table_of(ConsentRow).c if column.name.startswith("sealed_")
]


_GRANTS, _CONNECTIONS = table_of(ConnectionGrantRow), table_of(ConnectionRow)
_GRANT_AND_GENERATION = (
    select(_GRANTS, _CONNECTIONS.c.generation.label("connection_generation"))
    .join(
        _CONNECTIONS,
        and_(_CONNECTIONS.c.tenant == _GRANTS.c.tenant, _CONNECTIONS.c.id == _GRANTS.c.connection_id),
    )
    .where(*(_GRANTS.c[name] == bindparam(name) for name in ("tenant", "connection_id", "slot")))
)


def grant_associated_data(
    tenant: str, connection_id: str, slot: str, column: str, generation: int
) -> AssociatedData:
    """What a token's seal is bound to: by its generation an older token can't replace a newer one."""
    row = {"tenant": tenant, "connection_id": connection_id, "slot": slot, "generation": generation}
    return sealed_place(_GRANTS, column, row)


def signed_grant(ring: KeyRing, owner: Connection, grant: Grant) -> str:
    """The authenticator of a grant's row."""
    return ring.sign(*grant_parts(owner.tenant, owner.id, grant, grant.slot))


def grant_of(row: Values) -> Grant:
    """The facts of a grant's row. Raises Failure INTERNAL when it can't be read."""
    return read_model(Grant, ConnectionGrantRow, {**row, "metadata": row["facts"]})


def authentic_grant(ring: KeyRing, owner: Connection, row: Values) -> Grant:
    """The facts of the main grant's row, as `Grants.get_authentic` has them."""
    grant = grant_of(row)
    if owner.state is not LifecycleState.REVOKING:
        require_grant(ring, owner.tenant, owner.id, grant, MAIN_SLOT, row["mac"])
    return grant


@dataclass(frozen=True)
class SealedTokens:
    """The tokens of a grant, sealed, with the keys that open them, wrapped: what one query each has read."""

    owner: Connection
    row: Values | None = field(repr=False)  # of the grant
    keys: KeyRows

    def access_token(self) -> Secret:
        """The access token held now. Raises Failure CONSENT_REQUIRED when there is none, SEAL_BROKEN."""
        token = self._open(KeyPurpose.LEASE, ACCESS_COLUMN)
        if token is None:
            raise Failure(ErrorCode.CONSENT_REQUIRED, f"{self.owner.id} holds no access token.")
        return token

    def refresh_token(self) -> Secret | None:
        """The refresh token, or None. Raises Failure KEY_UNAVAILABLE without the refresh purpose."""
        return self._open(KeyPurpose.REFRESH, REFRESH_COLUMN)

    def id_token(self) -> Secret | None:
        """The newest id token, or None. Raises Failure KEY_UNAVAILABLE without the refresh purpose."""
        return self._open(KeyPurpose.REFRESH, ID_TOKEN_COLUMN)

    @staticmethod
    def columns(row: Values) -> list[tuple[KeyPurpose, Sealed | None]]:
        """What the keys have to open."""
        lease, refresh = KeyPurpose.LEASE, KeyPurpose.REFRESH
        return [(lease, row[ACCESS_COLUMN]), (refresh, row[REFRESH_COLUMN]), (refresh, row[ID_TOKEN_COLUMN])]

    def _open(self, purpose: KeyPurpose, column: str) -> Secret | None:
        owner, row = self.owner, self.row
        if row is None or row[column] is None:
            return None
        place = grant_associated_data(owner.tenant, owner.id, row["slot"], column, row["generation"])
        if was_rolled_back(row["slot"], row["generation"], owner.generation):
            raise seal_broken(place, "belongs to another generation than its connection")
        return self.keys.open(purpose, owner.id, place, row[column])


@dataclass(frozen=True)
class StoredGrant:
    """The grant that a new one replaces, as this transaction has read it."""

    row: Values | None = field(repr=False)
    has_late_tokens: bool = True
    has_narrowed_tokens: bool = True


class Grants(SealedRepository):
    async def get(self, tenant: Tenant, connection_id: ConnectionId, slot: str = MAIN_SLOT) -> Grant | None:
        row = await find_one(
            self._connection, ConnectionGrantRow, tenant=tenant, connection_id=connection_id, slot=slot
        )
        return None if row is None else grant_of(row)

    async def leased_generation(self, tenant: Tenant, connection_id: ConnectionId) -> int:
        """That of the newest token that an app has leased; 0: none was."""
        row = await find_one(self._connection, UsageRow, tenant=tenant, connection_id=connection_id)
        return 0 if row is None else row["leased_generation"]

    async def get_authentic(self, owner: Connection) -> Grant | None:
        """The main grant, for what is sent where it says. Raises Failure AUTHORITY_BROKEN, but not while it
        is revoked: nothing stops that."""
        row = await find_one(
            self._connection, ConnectionGrantRow, tenant=owner.tenant, connection_id=owner.id, slot=MAIN_SLOT
        )
        return None if row is None else authentic_grant(self._sealer.ring, owner, row)

    async def install(
        self,
        after: Connection,
        tokens: TokenSet,
        grant: Grant,
        *,
        origin: Origin,
        expected: int,
        hosts: PinnedHosts = NOTHING_PINNED,
        stored: StoredGrant | None = None,
        older: IntegrationId | None = None,
    ) -> Connection:
        """Write the connection `after` and its new grant in one go, if the row is still at `expected`.

        The main slot's grant has the connection's generation; other slots count their own.

        A refresh without a refresh token or id token in its reply keeps the old one (RFC 6749 section
        6, OpenID Connect Core section 12.2); a new grant inherits none, and its secrets are sent to `hosts`
        alone. A grant with `access_generation` keeps the access token as well; any other ends the narrower
        ones. `stored`: the grant of this slot, read with the connection at `expected`; None: it is read.
        `older`: the integration whose client has got the grant of before, where that is another one.
        Needs the lease and refresh purposes. Raises Failure STORE_CONFLICT, NOT_FOUND, KEY_UNAVAILABLE,
        AUTHORITY_BROKEN.
        """
        if grant.slot == MAIN_SLOT and grant.generation != after.generation:
            raise ValueError("a main grant is installed with the generation of its connection")
        revision = await self._change_connection(after, tokens, grant, origin, expected, older)
        stored = stored or StoredGrant(await self._row(after, grant.slot))
        values = await self._values(after, tokens, grant, origin, stored.row)
        values |= await self._destination(after, stored.row, origin, hosts, older)
        await self._put(values, stored.row)
        if stored.has_late_tokens:  # superseded
            await LateTokenSets(self._connection, self._sealer).delete(after.tenant, after.id)
        if stored.has_narrowed_tokens and grant.slot == MAIN_SLOT and grant.access_generation is None:
            await self._delete_narrowed(after)
        return after.__replace__(revision=revision)

    async def _values(
        self, after: Connection, tokens: TokenSet, grant: Grant, origin: Origin, old: Values | None
    ) -> Values:
        """The columns of the grant's row, but for its destination."""
        kept = old if origin is Origin.REFRESH else None
        columns = column_values(grant)
        return {
            "facts": columns.pop("metadata"),
            **columns,
            "tenant": after.tenant,
            "connection_id": after.id,
            ACCESS_COLUMN: await self._access_column(after, grant, tokens, old),
            REFRESH_COLUMN: await self._kept(after, grant, REFRESH_COLUMN, tokens.refresh_token, kept),
            ID_TOKEN_COLUMN: await self._kept(after, grant, ID_TOKEN_COLUMN, tokens.id_token, kept),
            "mac": signed_grant(self._sealer.ring, after, grant),
            "revision": 1 if old is None else old["revision"] + 1,
        }

    async def _change_connection(
        self,
        after: Connection,
        tokens: TokenSet,
        grant: Grant,
        origin: Origin,
        expected: int,
        older: IntegrationId | None,
    ) -> int:
        """Write the connection, with the account that the reply names; returns the new revision."""
        countersigned = await Connections(self._connection, self._sealer.ring).countersigned(after, older)
        changed = column_values(after, **countersigned)
        if grant.slot == MAIN_SLOT:
            identifiers = AccountIdentifiers(self._connection, self._sealer.ring)
            changed |= await identifiers.update_from_reply(after, tokens, grant, origin)
        key = {"tenant": after.tenant, "id": after.id}
        return await compare_and_set(self._connection, ConnectionRow, key, changed, expected)

    async def _destination(
        self,
        after: Connection,
        old: Mapping[str, Any] | None,
        origin: Origin,
        hosts: PinnedHosts,
        older: IntegrationId | None,
    ) -> Values:
        """A refresh continues a grant of the same place, even if the integration's row has changed since."""
        if old is not None and origin is Origin.REFRESH:
            return {name: old[name] for name in (HOSTS, COLUMN)}
        return await Destinations(self._connection, self._sealer.ring).of_new_grant(after, hosts, old, older)

    async def access_token(self, owner: Connection, slot: str = MAIN_SLOT) -> Secret:
        """As `SealedTokens.access_token`. Raises Failure STORE_CONFLICT."""
        return (await self.sealed_tokens(owner, slot)).access_token()

    async def refresh_token(self, owner: Connection, slot: str = MAIN_SLOT) -> Secret | None:
        """As `SealedTokens.refresh_token`. Raises Failure STORE_CONFLICT."""
        return (await self.sealed_tokens(owner, slot)).refresh_token()

    async def id_token(self, owner: Connection, slot: str = MAIN_SLOT) -> Secret | None:
        """As `SealedTokens.id_token`. Raises Failure STORE_CONFLICT."""
        return (await self.sealed_tokens(owner, slot)).id_token()

    async def sealed_tokens(self, owner: Connection, slot: str = MAIN_SLOT) -> SealedTokens:
        """The tokens held now. Raises Failure STORE_CONFLICT when `owner` is older than the row."""
        row = await self._row(owner, slot)
        if row is None:
            return SealedTokens(owner, None, KeyRows(self._sealer.ring, owner.tenant))
        newest = row["connection_generation"]
        if newest != owner.generation and not was_rolled_back(slot, row["generation"], newest):
            why = f"{owner.id} is no longer at generation {owner.generation}."
            raise Failure(ErrorCode.STORE_CONFLICT, why)
        keys = await self._sealer.read_keys(owner.tenant, owner.id, SealedTokens.columns(row))
        return SealedTokens(owner.__replace__(generation=newest), row, keys)

    async def update_facts(self, connection: Connection, grant: Grant) -> None:
        """Write a grant's facts and options, in a transaction that has changed its connection."""
        values: Values = {
            "facts": grant.metadata,
            "options": [option.model_dump() for option in grant.options],
            "mac": signed_grant(self._sealer.ring, connection, grant),
        }
        await self._update(
            connection.tenant, connection.id, values, col(ConnectionGrantRow.slot) == MAIN_SLOT
        )

    async def shred(self, tenant: Tenant, connection_id: ConnectionId) -> int:
        """Destroy the keys of the connection's tokens, and every sealed column of it; facts stay.

        Its story stays readable, until the connection is erased. Says how many keys there were.
        """
        destroyed = await self._sealer.destroy_keys(tenant, connection_id, ROOT_PURPOSES)
        identifiers = AccountIdentifiers(self._connection, self._sealer.ring)
        await identifiers.delete_of_connection(tenant, connection_id)
        of_key = columns_equal(ProofKeyRow, tenant=tenant, connection_id=connection_id)
        await self._run(delete(ProofKeyRow).where(of_key))
        for kept in (LateTokenSets, ReplacedGrants):
            await kept(self._connection, self._sealer).delete(tenant, connection_id)
        empty: Values = dict.fromkeys((ACCESS_COLUMN, REFRESH_COLUMN, ID_TOKEN_COLUMN))
        await self._update(tenant, connection_id, empty)
        consents = columns_equal(ConsentRow, tenant=tenant, connection_id=connection_id)
        await self._run(update(ConsentRow).where(consents).values(dict.fromkeys(_SEALED_CONSENT_COLUMNS)))
        return destroyed

    async def _update(
        self, tenant: Tenant, connection_id: ConnectionId, values: Values, *where: ColumnElement[bool]
    ) -> None:
        """Change the connection's grants at any revision."""
        mine = columns_equal(ConnectionGrantRow, tenant=tenant, connection_id=connection_id)
        values = {**values, "revision": col(ConnectionGrantRow.revision) + 1}
        await self._run(update(ConnectionGrantRow).where(mine, *where).values(values))

    async def _put(self, values: Values, old: Mapping[str, Any] | None) -> None:
        key = {name: values[name] for name in ("tenant", "connection_id", "slot")}
        if old is not None:
            await compare_and_set(self._connection, ConnectionGrantRow, key, values, old["revision"])
        elif not await insert(self._connection, ConnectionGrantRow, values):
            raise Failure(ErrorCode.STORE_CONFLICT, f"{key['connection_id']} was granted meanwhile.")

    async def _access_column(
        self, after: Connection, grant: Grant, tokens: TokenSet, old: Mapping[str, Any] | None
    ) -> Sealed:
        """The reply's access token; beside a narrower one the old token, sealed again for its generation."""
        token = tokens.access_token
        if grant.access_generation is not None and old is not None and old[ACCESS_COLUMN] is not None:
            place = grant_associated_data(
                after.tenant, after.id, grant.slot, ACCESS_COLUMN, old["generation"]
            )
            token = await self._sealer.open(KeyPurpose.LEASE, after.id, place, old[ACCESS_COLUMN])
        return await self._seal(KeyPurpose.LEASE, after, grant, ACCESS_COLUMN, token)

    async def _delete_narrowed(self, owner: Connection) -> None:
        mine = columns_equal(ConnectionGrantRow, tenant=owner.tenant, connection_id=owner.id)
        await self._run(
            delete(ConnectionGrantRow).where(mine, col(ConnectionGrantRow.slot).startswith(NARROWED))
        )

    async def _kept(
        self, after: Connection, grant: Grant, column: str, new: Secret | None, kept: Mapping[str, Any] | None
    ) -> Sealed | None:
        """Seal the new token, or the kept one again for its new generation."""
        if new is None and kept is not None and kept[column] is not None:
            place = grant_associated_data(after.tenant, after.id, grant.slot, column, kept["generation"])
            new = await self._sealer.open(KeyPurpose.REFRESH, after.id, place, kept[column])
        if new is None:
            return None
        return await self._seal(KeyPurpose.REFRESH, after, grant, column, new)

    async def _seal(
        self, purpose: KeyPurpose, owner: Connection, grant: Grant, column: str, value: Secret
    ) -> Sealed:
        place = grant_associated_data(owner.tenant, owner.id, grant.slot, column, grant.generation)
        return await self._sealer.seal(purpose, owner.id, place, value)

    async def _row(self, owner: Connection, slot: str) -> Values | None:
        parameters = {"tenant": owner.tenant, "connection_id": owner.id, "slot": slot}
        return await fetch_first(self._connection, _GRANT_AND_GENERATION, parameters)


def was_rolled_back(slot: str, grant_generation: int, connection_generation: int) -> bool:
    """True when a main grant isn't its connection's newest: an older row was put back.

    A connection's generation is its main slot's; other slots are numbered on their own.
    """
    return slot == MAIN_SLOT and grant_generation != connection_generation
