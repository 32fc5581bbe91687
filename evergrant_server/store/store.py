"""The store itself: opened once per process, handing out transactions with every repository."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import cached_property
from typing import TypeVar

from sqlalchemy import select, text
from sqlmodel import col

from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.crypto import ROOT_PURPOSES, KeyPurpose, KeyRing, Role, SealingKey
from evergrant_server.store.access import Access
from evergrant_server.store.agents.agents import Agents, AgentStops
from evergrant_server.store.agents.delegations import DelegationRules, Delegations
from evergrant_server.store.audit.checkpoints import AuditCheckpoints
from evergrant_server.store.audit_streams import AuditStreams, StreamStates
from evergrant_server.store.authentication import AppCredentials, AppTokens, KeySessions
from evergrant_server.store.cells.keys import MovedKeys
from evergrant_server.store.cells.moves import TenantMoves
from evergrant_server.store.cells.rows import MovedRows
from evergrant_server.store.connections.account_identifiers import AccountIdentifiers
from evergrant_server.store.connections.attempts import Attempts, LateTokenSets
from evergrant_server.store.connections.bulk import BulkOrders
from evergrant_server.store.connections.campaigns import CampaignItems, Campaigns
from evergrant_server.store.connections.connections import Connections
from evergrant_server.store.connections.consents import Consents
from evergrant_server.store.connections.context_rows import ContextRowsOf
from evergrant_server.store.connections.grants import Grants
from evergrant_server.store.connections.histories import Histories
from evergrant_server.store.connections.incidents import IncidentItems, Incidents
from evergrant_server.store.connections.narrowed_tokens import NarrowedTokens
from evergrant_server.store.connections.proof_keys import ProofKeys
from evergrant_server.store.connections.replaced_grants import ReplacedGrants
from evergrant_server.store.connections.revocable_rows import RevocableRows
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import (
    Database,
    DatabaseConnection,
    KeptPostgres,
    Pool,
    open_database,
)
from evergrant_server.store.database.errors import store_unavailable, translate_errors
from evergrant_server.store.database.kept_sqlite import KeptSqlite
from evergrant_server.store.database.rows import columns_equal, fetch_first, take_turns
from evergrant_server.store.database.sqlite import SqliteDatabase
from evergrant_server.store.decisions import AccessRequests, Approvals, CallApprovals
from evergrant_server.store.erasure.orders import Erasures, LegalHolds
from evergrant_server.store.erasure.rows import PersonalRows
from evergrant_server.store.exports import Exports
from evergrant_server.store.idempotency import Idempotency
from evergrant_server.store.integrations.definitions import Definitions
from evergrant_server.store.integrations.integrations import Integrations
from evergrant_server.store.integrations.pinned_hosts import Destinations
from evergrant_server.store.integrations.pinned_hosts_of_all import PinnedHostsOfAll
from evergrant_server.store.keys import NO_CONNECTION, KeyRow, WrappedKey, unwrap
from evergrant_server.store.oauth.clients import OAuthClients
from evergrant_server.store.oauth.families import (
    AuthorizationCodes,
    OAuthTokens,
    RefreshTokens,
    TokenFamilies,
)
from evergrant_server.store.oauth.requests import (
    AuthorizationRequests,
    ClientConsents,
    ClientLogins,
    DeviceAuthorizations,
    SubjectSessions,
)
from evergrant_server.store.outbox import Outbox
from evergrant_server.store.people.leavers import (
    DirectoryUsers,
    Leavers,
    OffboardingRules,
    PersonsRows,
)
from evergrant_server.store.people.people import AdminLogins, PersonLogins, PersonSessions
from evergrant_server.store.provider_events import Introspections, Receivers
from evergrant_server.store.questions.detections import AppActivities, Detections
from evergrant_server.store.questions.evidence import EvidenceCounts
from evergrant_server.store.questions.overview import Overviews
from evergrant_server.store.questions.questions import PersonalFacts, Questions, Uses
from evergrant_server.store.regions import Regions
from evergrant_server.store.root_keys import WrappedRoots
from evergrant_server.store.rotation.connection_keys import ConnectionKeyRotation
from evergrant_server.store.rotation.processes import Processes
from evergrant_server.store.rotation.roots import RootMoves
from evergrant_server.store.rotation.tenant_keys import TenantKeyRotation
from evergrant_server.store.sealing import ColumnSealer, UnwrappedKeys
from evergrant_server.store.tenants import Tenants
from evergrant_server.store.trusted_issuers import TrustedIssuers
from evergrant_server.store.webhooks import Deliveries, Webhooks

_CLOSE_S = 10.0
_LONG_READER = "End the process that reads for so long, such as a sqlite3 shell (fuser evergrant.db)."
Repo = TypeVar("Repo")


def _with_connection(repository: Callable[[DatabaseConnection], Repo]) -> cached_property[Repo]:
    return cached_property(lambda tx: repository(tx.connection))


def _with_ring(repository: Callable[[DatabaseConnection, KeyRing], Repo]) -> cached_property[Repo]:
    return cached_property(lambda tx: repository(tx.connection, tx.ring))


def _with_sealer(repository: Callable[[DatabaseConnection, ColumnSealer], Repo]) -> cached_property[Repo]:
    return cached_property(lambda tx: repository(tx.connection, tx.sealer))


class Transaction:
    """The repositories of one transaction, each built when it is first asked for.

    Nothing but calls to these may be awaited inside it.
    """

    def __init__(
        self, connection: DatabaseConnection, ring: KeyRing, now: datetime, keys: UnwrappedKeys | None = None
    ) -> None:
        self.connection, self.ring, self.now = connection, ring, now
        self._keys = keys

    @cached_property
    def sealer(self) -> ColumnSealer:
        return ColumnSealer(self.connection, self.ring, self.now, self._keys)

    async def take_turns(self, turns: str) -> None:
        """As `database.rows.take_turns`, before rows are counted to add one."""
        await take_turns(self.connection, turns)

    connections = _with_ring(Connections)
    context_rows = _with_sealer(ContextRowsOf)
    grants = _with_sealer(Grants)
    narrowed_tokens = _with_sealer(NarrowedTokens)
    integrations = _with_sealer(Integrations)
    destinations = _with_ring(Destinations)
    pinned_hosts = _with_ring(PinnedHostsOfAll)
    definitions = _with_ring(Definitions)
    tenants = _with_ring(Tenants)
    tenant_moves = _with_sealer(TenantMoves)
    moved_rows = _with_connection(MovedRows)
    moved_keys = _with_ring(MovedKeys)
    root_keys = _with_ring(WrappedRoots)
    access = _with_ring(Access)
    agents = _with_ring(Agents)
    call_approvals = _with_sealer(CallApprovals)
    agent_stops = _with_ring(AgentStops)
    delegations = _with_ring(Delegations)
    delegation_rules = _with_ring(DelegationRules)
    credentials = _with_ring(AppCredentials)
    tokens = _with_ring(AppTokens)
    key_sessions = _with_ring(KeySessions)
    approvals = _with_ring(Approvals)
    trusted_issuers = _with_ring(TrustedIssuers)
    access_requests = _with_ring(AccessRequests)
    admin_logins = _with_ring(AdminLogins)
    person_logins = _with_sealer(PersonLogins)
    person_sessions = _with_ring(PersonSessions)
    oauth_clients = _with_ring(OAuthClients)
    authorization_codes = _with_ring(AuthorizationCodes)
    token_families = _with_ring(TokenFamilies)
    refresh_tokens = _with_sealer(RefreshTokens)
    oauth_tokens = _with_ring(OAuthTokens)
    client_logins = _with_ring(ClientLogins)
    authorization_requests = _with_ring(AuthorizationRequests)
    device_authorizations = _with_ring(DeviceAuthorizations)
    subject_sessions = _with_ring(SubjectSessions)
    client_consents = _with_ring(ClientConsents)
    consents = _with_sealer(Consents)
    exports = _with_ring(Exports)
    erasures = _with_ring(Erasures)
    legal_holds = _with_ring(LegalHolds)
    incidents = _with_ring(Incidents)
    incident_items = _with_connection(IncidentItems)
    leavers = _with_ring(Leavers)
    offboarding_rules = _with_ring(OffboardingRules)
    directory_users = _with_ring(DirectoryUsers)
    persons_rows = _with_connection(PersonsRows)
    bulk_orders = _with_ring(BulkOrders)
    campaigns = _with_ring(Campaigns)
    campaign_items = _with_connection(CampaignItems)
    overviews = _with_connection(Overviews)
    personal_rows = _with_connection(PersonalRows)
    attempts = _with_connection(Attempts)
    late_tokens = _with_sealer(LateTokenSets)
    replaced_grants = _with_sealer(ReplacedGrants)
    revocable_rows = _with_connection(RevocableRows)
    proof_keys = _with_sealer(ProofKeys)
    outbox = _with_ring(Outbox)
    histories = _with_connection(Histories)
    webhooks = _with_sealer(Webhooks)
    deliveries = _with_ring(Deliveries)
    audit_streams = _with_sealer(AuditStreams)
    stream_states = _with_connection(StreamStates)
    receivers = _with_sealer(Receivers)
    account_identifiers = _with_ring(AccountIdentifiers)
    introspections = _with_connection(Introspections)
    idempotency = _with_sealer(Idempotency)
    questions = _with_connection(Questions)
    evidence = _with_connection(EvidenceCounts)
    detections = _with_connection(Detections)
    app_activities = _with_connection(AppActivities)
    uses = _with_connection(Uses)
    personal_facts = _with_connection(PersonalFacts)
    checkpoints = _with_sealer(AuditCheckpoints)
    regions = _with_connection(Regions)
    processes = cached_property(lambda tx: Processes(tx.connection, tx.now))
    root_moves = cached_property(lambda tx: RootMoves(tx.connection, tx.ring, tx.now))
    tenant_keys = cached_property(lambda tx: TenantKeyRotation(tx.connection, tx.ring, tx.now))
    connection_keys = cached_property(lambda tx: ConnectionKeyRotation(tx.connection, tx.ring, tx.now))


class Store:
    """One database and the keys to its columns. Belongs to one event loop."""

    def __init__(self, database: Database, ring: KeyRing, clock: Clock) -> None:
        """Use `open`: it checks that the database can be reached and has a schema for this code."""
        self._database = database
        self._clock = clock
        self.ring = ring
        self.is_sqlite, self.servers = database.is_sqlite, database.servers

    @classmethod
    async def open(cls, url: str, ring: KeyRing, clock: Clock) -> "Store":
        """Open the database behind `url` with the keys of `ring`.

        Raises Failure STORE_UNAVAILABLE when it can't be reached, SCHEMA_MISMATCH when its schema isn't for
        this code.
        """
        schema.require_existing_file(url)
        database = open_database(url)
        try:
            with translate_errors():
                async with database.read() as connection:
                    await connection.run_sync(schema.require_usable_schema)
        except BaseException:
            await database.close()
            raise
        return cls(database, ring, clock)

    def in_pool(self, pool: Pool) -> "Store":
        """The same store for work that has connections of its own. Closing this one closes them too."""
        return Store(self._database.in_pool(pool), self.ring, self._clock)

    def kept(self) -> KeptSqlite | KeptPostgres:
        """A connection for one task that writes again and again. Close it before the store."""
        return (
            KeptSqlite(self._database)
            if isinstance(self._database, SqliteDatabase)
            else self._database.kept()
        )

    def connections_in_use(self) -> dict[str, int]:
        """How many connections of each pool are in use; none for SQLite."""
        return {pool.value: number for pool, number in self._database.connections_in_use().items()}

    async def close(self) -> None:
        """Close every connection, but wait for no silent database. Transactions must have ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._database.close()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Transaction]:
        """One snapshot: every query inside sees the same moment."""
        with translate_errors():
            async with self._database.read() as connection:
                yield self._transaction(connection)

    @asynccontextmanager
    async def write(self, keys: UnwrappedKeys | None = None) -> AsyncGenerator[Transaction]:
        """One change: committed on a clean exit, rolled back on an exception.

        With `keys`, what they seal or open needs no key service. Nothing but database calls
        may be awaited inside. Raises Failure STORE_UNAVAILABLE when it can't begin or commit,
        STORE_CONFLICT when another change came first.
        """
        with translate_errors():
            async with self._database.write() as connection:
                yield self._transaction(connection, keys)

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[DatabaseConnection]:
        """A connection for single queries without a transaction around them, as on the lease path."""
        with translate_errors():
            async with self._database.autocommit() as connection:
                yield connection

    async def commits_seen(self) -> int | None:
        """A number that every commit of another connection changes; None when the database has none.

        Raises Failure STORE_UNAVAILABLE.
        """
        with translate_errors():
            return await self._database.commits_seen()

    async def forget_old_pages(self) -> None:
        """SQLite: empty the write-ahead log, which has pages as they were before. PostgreSQL keeps them until
        it vacuums and recycles its log. Raises Failure STORE_UNAVAILABLE while readers need them."""
        with translate_errors():
            emptied = await self._database.empty_log()
        if not emptied:
            raise store_unavailable("a reader keeps its write-ahead log from being emptied", _LONG_READER)

    async def unwrap_keys(
        self, tenant: str, connection_id: str, purposes: tuple[KeyPurpose, ...]
    ) -> UnwrappedKeys:
        """Unwrap the keys that a connection's next answer will need, making those it lacks.

        Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN, STORE_UNAVAILABLE.
        """
        async with self.read() as tx:
            keys = (await tx.sealer.read_keys(tenant, connection_id)).unwrapped(connection_id, purposes)
        if keys is not None:
            return keys
        async with self.write() as tx:
            return await tx.sealer.get_or_create_keys(tenant, connection_id, purposes)

    async def find_story_key(
        self, tenant: Tenant, connection_id: ConnectionId, key_id: str | None = None
    ) -> SealingKey | None:
        """A key of what the connection's workflow writes; without an id the current one. None: it has none.

        Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN, STORE_UNAVAILABLE.
        """
        async with self.autocommit() as connection:
            sealer = ColumnSealer(connection, self.ring, self._clock.now())
            return await sealer.find_key(KeyPurpose.STORY, tenant, connection_id, key_id)

    async def make_story_key(self, tenant: Tenant, connection_id: ConnectionId) -> SealingKey | None:
        """The current key of the connection's story, made where it has none; None without a connection.

        Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN, STORE_UNAVAILABLE.
        """
        async with self.write() as tx:
            if await tx.connections.position(tenant, connection_id, for_share=True) is None:
                return None  # it was erased
            keys = await tx.sealer.get_or_create_keys(tenant, connection_id, (KeyPurpose.STORY,))
            return keys.current(KeyPurpose.STORY)

    def _transaction(self, connection: DatabaseConnection, keys: UnwrappedKeys | None = None) -> Transaction:
        return Transaction(connection, self.ring, self._clock.now(), keys)


async def database_time(store: Store) -> datetime | None:
    """The database's time; None for SQLite, which uses this host's clock."""
    if store.is_sqlite:
        return None
    async with store.autocommit() as connection:
        return (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()


async def unwrap_newest_tenant_key(store: Store, ring: KeyRing, purpose: KeyPurpose) -> str | None:
    """Unwrap the newest tenant key of a purpose; returns its id, None when there is none yet.

    Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN when this ring isn't the one it was made with.
    """
    query = (
        select(col(KeyRow.tenant), col(KeyRow.id), col(KeyRow.sealed_key))
        .where(columns_equal(KeyRow, purpose=purpose.value, connection_id=NO_CONNECTION))
        .order_by(col(KeyRow.created_at).desc())
        .limit(1)
    )
    async with store.autocommit() as connection:
        row = await fetch_first(connection, query)
    if row is None:
        return None
    key, sealed = row["id"], row["sealed_key"]
    return unwrap(ring, row["tenant"], purpose, WrappedKey(key, NO_CONNECTION, sealed, key, sealed)).id


async def require_matching_key_ring(store: Store, ring: KeyRing) -> None:
    """Raise Failure KEY_UNAVAILABLE when this ring doesn't open what the database holds.

    Checked at the start: otherwise the process would seal new rows under other keys than the old
    rows.
    """
    for purpose in ROOT_PURPOSES:
        if not ring.holds(purpose):
            continue
        try:
            await unwrap_newest_tenant_key(store, ring, purpose)
        except Failure as failure:
            if failure.code not in (ErrorCode.KEY_UNAVAILABLE, ErrorCode.SEAL_BROKEN):
                raise
            held = f"It has {', '.join(ring.root_ids()[purpose])} for that."
            repair = "Set EVERGRANT_KEY_FILE to the key file that filled this database, or restore that file."
            if ring.role in (Role.API, Role.GATEWAY):
                repair += f" A copy is made anew where the full key file is: keys export-{ring.role}."
            raise Failure(
                ErrorCode.KEY_UNAVAILABLE,
                f"{ring!r} doesn't open this database's keys: {failure.detail} {held} {repair}",
                key_file=str(ring.source),
            ) from None
