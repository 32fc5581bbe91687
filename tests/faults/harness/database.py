"""The database of the table: real PostgreSQL, with witnesses that the product knows nothing of.

A trigger looks at every change of a connection's row and of its grant: a revision that isn't the next
one was written over a newer row; a generation never goes back; `revoked` and `revoking` are never left.
"""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import httpx2
import yaml

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.confirmation import CONFIRM_TIME, await_confirm
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant, Origin
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, Tenant, new_id
from evergrant_server.core.integrations import Integration, RefreshRules, Rotation
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.core.single_use.control_request import comparable_answer
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store, Transaction
from providers.definition.registry import Registry
from tests.fakes.databases import postgres
from tests.fakes.patience import PATIENCE_S
from tests.fakes.rows import (
    a_connection,
    a_consent,
    a_definition,
    add_code,
    add_refresh,
    an_integration,
    discovered,
    pinned_hosts,
    token_set,
)
from tests.faults.harness.instrumentation.points import ROOT
from tests.faults.harness.provider import GRACE_S, StrictProvider
from tests.faults.harness.records import AttemptRecord, FinalState
from tests.faults.harness.table.scenario import AFTER_A_LOST_ANSWER, BESIDE_A_WITNESS, FOR_DAYS
from tests.faults.harness.table.scenarios import ON_TRIAL

TENANT = Tenant("faults")
PUBLIC_URL = "http://127.0.0.1:9"
CATALOG = ROOT / "providers" / "catalog"
WITNESS = Path(__file__).with_name("witness.sql")


_WITHOUT_A_RECORD = """
    SELECT row_id, change FROM witness_change WHERE NOT EXISTS (
        SELECT 1 FROM audit WHERE audit.object = row_id AND audit.xmin = witness_change.xmin
    )
"""
_ATTEMPTS = "SELECT * FROM attempt JOIN witness_attempt ON attempt_id = id WHERE connection_id = $1"
_SECRETS = {
    "right": lambda right: (right,),
    "rotated too early": lambda right: (right, "not yet"),
    "wrong": lambda right: ("wrong", "wrong as well"),
}


# an answer that crossed another use was installed, and that use was heard to be refused
CROSSED = """FROM attempt it JOIN attempt other USING (tenant, connection_id, kind, from_generation)
    WHERE it.outcome = 'installed_late' AND other.outcome = 'refused'"""


class HarnessDatabase:
    """One migrated database for the whole table, and the shortest way to a connection in it."""

    def __init__(self, url: str, key_file: Path, store: Store, witness: asyncpg.Connection) -> None:
        self.url, self.key_file, self.store = url, key_file, store
        self._witness = witness
        self._asking = asyncio.Lock()  # one question at a time on one connection
        self._clock = SystemClock()
        self._registry = Registry.load()
        none_kept = httpx2.Limits(max_keepalive_connections=0)
        self._browser = httpx2.AsyncClient(trust_env=False, limits=none_kept, timeout=PATIENCE_S)

    @classmethod
    async def open(cls, folder: Path) -> "HarnessDatabase":
        key_file = folder / f"{new_id('key')}.json"
        KeyRing.create(key_file)
        ground = await cls.on(await postgres().fresh(), key_file)
        await ground._stage_a_definition()
        return ground

    @classmethod
    async def on(cls, url: str, key_file: Path) -> "HarnessDatabase":
        """On a database that is there, with witnesses from now on."""
        witness = await asyncpg.connect(**arguments_of(url))
        await witness.execute(WITNESS.read_text(encoding="utf-8"))
        store = await Store.open(url, KeyRing.open(key_file, Role.WORKER), SystemClock())
        return cls(url, key_file, store, witness)

    async def _stage_a_definition(self) -> None:
        """A version of a provider's definition that is being tried, for scenarios that use it."""
        document = yaml.safe_load((CATALOG / "generic.yaml").read_text(encoding="utf-8"))
        tried = {**document, "name": ON_TRIAL}
        definition = a_definition(TENANT, tried, self._clock.now(), state=DefinitionState.STAGED)
        async with self.store.write() as tx:
            await tx.definitions.add(definition)

    async def close_sessions(self) -> None:
        await self.store.close()
        await self._browser.aclose()
        await self._witness.close()

    async def close(self) -> None:
        await self.close_sessions()
        await postgres().drop(self.url)

    async def _asked(self) -> asyncpg.Connection:
        """The witness's own session, opened again after a restart of the server."""
        if self._witness.is_closed():
            self._witness = await asyncpg.connect(**arguments_of(self.url))
        return self._witness

    async def integration(
        self, tx: Transaction, idp: StrictProvider, rotation: Rotation, provider: str, secrets: str
    ) -> Integration:
        now = self._clock.now()
        rules = RefreshRules(rotation=rotation, grace_s=GRACE_S if rotation is Rotation.GRACE else 0)
        said = {"name": new_id("int"), "provider": provider, "refresh": rules, **discovered(idp)}
        # changed before the refreshes of `_refused_before`: later, what is refused would be the admin's
        integration = an_integration(TENANT, now - timedelta(days=30), **said)
        first, *after = _SECRETS[secrets](idp.client_secret)
        integration = await tx.integrations.put(integration, Secret(first), expected=None)
        for secret in after:
            integration = await tx.integrations.rotate_secret(
                integration, Secret(secret), until=now + timedelta(hours=1), expected=integration.revision
            )
        return integration

    async def connection(
        self, tx: Transaction, integration: Integration, subject: str = "user-1"
    ) -> Connection:
        """One whose subject hasn't consented yet."""
        connection = a_connection(integration, self._clock.now(), subject=subject)
        await tx.connections.add(connection)
        return connection

    async def granted(
        self,
        tx: Transaction,
        connection: Connection,
        idp: StrictProvider,
        refreshable: bool,
        recurs: str = "",
    ) -> Connection:
        """The same with its first grant, as a code exchange leaves it, and with what has been refused before,
        as a scenario names it."""
        now, given = self._clock.now(), idp.grant()
        tokens = token_set(given if refreshable else {**given, "refresh_token": None})
        after = connection.granted(now)
        grant = Grant.from_tokens(tokens, generation=after.generation, requested=("read",), at=now)
        integration = await tx.integrations.get(connection.tenant, connection.integration_id)
        assert integration is not None
        hosts, expected = pinned_hosts(integration), connection.revision
        saved = await tx.grants.install(
            after, tokens, grant, origin=Origin.NEW, expected=expected, hosts=hosts
        )
        if recurs:
            await self._refused_before(tx, saved, recurs)
        return saved

    async def _refused_before(self, tx: Transaction, connection: Connection, recurs: str) -> None:
        """Rows of a connection that was refused before, and of another whose refreshes worked."""
        now = self._clock.now()
        other = connection.model_copy(update={"id": new_id("con"), "subject": "other"})
        await tx.connections.add(other)
        refused, worked = {
            FOR_DAYS: ((200 * 3600,), (199 * 3600, 3600)),
            AFTER_A_LOST_ANSWER: ((60,), (3600,)),
            BESIDE_A_WITNESS: ((120, 60), (3600, 30)),
        }[recurs]
        if recurs == AFTER_A_LOST_ANSWER:
            await add_refresh(tx, connection, now - timedelta(seconds=90), AttemptOutcome.SUPERSEDED)
        for seconds in refused:
            await add_refresh(tx, connection, now - timedelta(seconds=seconds), AttemptOutcome.REFUSED)
        for seconds in worked:
            await add_refresh(tx, other, now - timedelta(seconds=seconds), AttemptOutcome.INSTALLED)
        if recurs == FOR_DAYS:
            return
        first, newest = (now - timedelta(seconds=seconds) for seconds in (refused[0], refused[-1]))
        answer = comparable_answer(400, "application/json", b'{"error": "invented"}', ())
        since = {"since": first.isoformat(), "answered_since": first.isoformat()}
        detail: dict[str, Any] = {"undecided": {"answer": answer, **since}}
        detail |= {"answer_lost": True} if recurs == AFTER_A_LOST_ANSWER else {}
        context = RequestContext(by="harness")
        action = AuditAction.REFRESH_FAILED
        entry = AuditEntry(
            tenant=TENANT, at=newest, action=action, object=connection.id, context=context, detail=detail
        )
        await audit.append(tx, entry)

    async def leased(self, connection: Connection) -> None:
        """The usage row after a lease of this generation."""
        put = "INSERT INTO usage (tenant, connection_id, leased_generation, revision) VALUES ($1, $2, $3, 1)"
        async with self._asking:
            await (await self._asked()).execute(put, TENANT, connection.id, connection.generation)

    async def consent(
        self, idp: StrictProvider, integration: Integration, connection: Connection, *, started: bool = True
    ) -> Consent:
        """A consent with a code of the real server; not `started`: one that can't be exchanged."""
        told = {
            "state_hash": new_id("cns"),
            "browser_hash": "b",
            "redirect_uri": f"{PUBLIC_URL}/oauth/callback/{integration.id}",
            "issuer": idp.issuer,
            "token_endpoint": idp.url("token") if started else None,
        }
        consent = a_consent(connection, self._clock.now(), **told)
        generic = self._registry.get("generic")
        return await add_code(self.store, generic, integration, consent, self._browser)

    async def returned(self, consent: Consent, *, late: bool) -> tuple[Consent, str]:
        """The same consent as a callback leaves it that its app has to confirm, and the confirm code."""
        id = AppId(new_id("app"))
        now = self._clock.now() - (2 * CONFIRM_TIME if late else timedelta(0))
        bound = {"binding": Binding.APP, "app_id": id}
        waiting, code = await_confirm(consent.model_copy(update=bound), now)
        async with self.store.write() as tx:
            await tx.tenants.begin(TENANT)
            await tx.access.put_app(App(tenant=TENANT, id=id, name=id, created_at=now), expected=None)
            return await tx.consents.replace(waiting, expected=consent.revision), code.reveal()

    async def revoke(self, connection: Connection) -> None:
        """What the API writes first for a revocation; a worker may write at the same moment."""

        async def revoke(tx: Transaction) -> None:
            current = await tx.connections.get(TENANT, connection.id)
            assert current is not None
            await tx.connections.replace(
                current.revocation_requested("left", self._clock.now()), expected=current.revision
            )

        await commit_with_retries(self.store, revoke)

    async def forget_changes(self) -> None:
        """What was put there by hand has no record."""
        async with self._asking:
            await (await self._asked()).execute("DELETE FROM witness_change")

    async def changes_without_a_record(self) -> list[str]:
        """Of a connection's state or generation: the audit's record is written in the same transaction."""
        async with self._asking:
            found = await (await self._asked()).fetch(_WITHOUT_A_RECORD)
        return [f"{it['row_id']}: {it['change']} without a record in its transaction" for it in found]

    async def count(self, query: str) -> int:
        async with self._asking:
            return int(await (await self._asked()).fetchval(query) or 0)

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async with self._asking:
            return await (await self._asked()).fetch(query, *arguments)

    async def attempts(self, connection: ConnectionId) -> tuple[AttemptRecord, ...]:
        """Every attempt of the connection, in moments of this machine's unmoved clock."""
        since = time.time() - time.monotonic()
        return tuple(
            AttemptRecord(
                journal=it["journal_id"],
                spends=(it["kind"], it["credential"], it["from_generation"]),
                opened=it["opened_at"].timestamp() - since,
                written=it["at"].timestamp() - since,
                send_by=it["send_by"].timestamp() - since,
                outcome=it["outcome"],
            )
            for it in await self.rows(_ATTEMPTS, connection)
        )

    async def row(self, connection: ConnectionId) -> Connection:
        async with self.store.read() as tx:
            row = await tx.connections.get(TENANT, connection)
        assert row is not None
        return row

    async def end(self, connection: ConnectionId, consent: Consent | None) -> FinalState:
        """One snapshot of the store. A grant that doesn't belong to its connection's row is a wrong, and no
        reason to stop: a build without compare-and-set leaves such rows."""
        wrongs: list[str] = []
        async with self.store.read() as tx:
            row = await tx.connections.get(TENANT, connection)
            assert row is not None
            try:
                refresh = await tx.grants.refresh_token(row) if row.generation else None
            except Failure as failure:
                if failure.code is not ErrorCode.SEAL_BROKEN:
                    raise
                refresh = None
                wrongs.append(str(failure))
            still_open = await tx.attempts.open_of_any_kind(TENANT, connection, MAIN_SLOT)
            now = await tx.consents.get(TENANT, consent.id) if consent else None
        async with self._asking:
            witness = await self._asked()
            seen = await witness.fetch("SELECT wrong FROM witness WHERE row_id = $1", connection)
            crossed = await witness.fetchval(f"SELECT count(*) {CROSSED} AND connection_id = $1", connection)
        wrongs += [str(it["wrong"]) for it in seen]
        token = refresh.reveal() if refresh is not None else None
        return FinalState(row, now, token, still_open, tuple(wrongs), bool(crossed))


def arguments_of(url: str) -> dict[str, Any]:
    """asyncpg's own arguments for a store's URL."""
    parts = urlsplit(url.replace("postgresql+asyncpg", "postgresql"))
    return {
        "host": dict(parse_qsl(parts.query))["host"],
        "user": "postgres",
        "database": parts.path.lstrip("/"),
    }
