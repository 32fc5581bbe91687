"""Each table is signed, sealed, or decides nothing: walked in the schema, and tried on rows of each kind."""

from pathlib import Path

from sqlalchemy import func, select, update
from sqlmodel import col

from evergrant_server.core.ids import Tenant
from evergrant_server.store.authority.scan import ALL, broken_configuration, broken_connections
from evergrant_server.store.database.columns import METADATA, table_of
from tests.fakes.api import running_api
from tests.security.isolation.world import a_world

# Whose authenticator isn't that of a value of core: checked where they are read.
SIGNED_OTHERWISE = {
    "connection_grant": "lease rows, and the context of what a worker sends (`require_grant`)",
    "audit_shard": "the end of a chain of before (`ChainEnd`)",
    "audit_tree": "the end of a tree (`TreeEnd`)",
    "outbox": "the relay (`outbox_mac`)",
}
SEALED = {
    "audit_log_key": "the seed of the key that signs checkpoints: who uses it compares the public key",
    "export_line": "a JWE for the recipient, whose key is signed with the export",
    "idempotency": "the stored response, bound to its row",
    "key": "wrapped keys, bound to tenant, purpose and connection",
    "late_tokens": "tokens, bound to their attempt",
    "proof_key": "a private key, bound to its connection",
    "replaced_grant": "tokens, which go to the connection's own pinned destination",
}
DECIDES_NOTHING = {
    "account_identifier": "finds connections; the pin among them is in the connection's `account_mac`",
    "app_activity": "what an app usually does: a changed one raises an alarm, or none",
    "app_assertion": "remembers used assertions for their five minutes: who deletes one needs the assertion",
    "app_key_use": "when a key was last used",
    "attempt": "which sends are open: a changed one may cost a grant, and gives nobody one",
    "audit": "records in trees, whose ends are signed",
    "audit_anchor": "what was kept outside: who asks an anchor hears from it what it has kept",
    "audit_checkpoint": "notes that the log's key has signed",
    "audit_filed": "finds the leases of a connection: a missing one is still in the log",
    "audit_hour": "counts for a plot",
    "audit_head": "notes that the log's key has signed, and the place of a signed head",
    "audit_node": "a hash of a tree's tile: a proof that is made of a changed one leads to no signed root",
    "audit_pruning": "up to where a log was pruned: a changed one keeps more, or is looked at again",
    "audit_stream_cursor": "up to where a stream has sent: its receiver sees the gap, or a record again",
    "audit_stream_state": "when a stream is sent next, and why it waits",
    "caller_network": "whence an app has called: a changed one raises an alarm, or none",
    "delivery": "which event goes to which webhook of the tenant: both are signed",
    "detection": "what was noticed, for people; its record is in the log",
    "detection_place": "up to where records were looked at",
    "history": "an export of what Temporal has",
    "incident_connection": "how far an incident or a bulk order is: the order is signed, a report is read "
    "from records",
    "introspection": "when a token is looked at next",
    "lease_use": "which app has leased which connection",
    "permit_use": "when a permit was last used",
    "process": "what a rotation waits for: who may seal is looked at where it seals",
    "question": "what an auditor asked: the answer is what auditors read anyway",
    "question_answer": "copies of what auditors read, for a week",
    "region": "which region serves: a changed one stops leases, or lets two spend, and shows no token",
    "received_event": "remembers events that came: an event ends, and grants nothing",
    "tenant_durability": "whether leases wait for the other region",
    "usage": "the generation that was leased last",
    "used_subject_token": "remembers used tokens of people: who deletes one needs the token",
}
# The isolation tests' world has no row of these; their repositories' own tests change one.
NOT_IN_THE_WORLD = {
    *("access_token", "app_token", "authorization_code", "authorization_request", "device_authorization"),
    *("client_consent", "key_session", "person_login", "refresh_token", "subject_session"),
    *("root_key", "tenant_move"),
}


def test_every_table_is_signed_or_sealed_or_decides_nothing():
    signed = {table_of(table).name for table in ALL}
    groups = (signed, set(SIGNED_OTHERWISE), set(SEALED), set(DECIDES_NOTHING))
    assert set().union(*groups) == set(METADATA.tables)
    assert sum(map(len, groups)) == len(METADATA.tables), "in one group alone"
    with_mac = {name for name, table in METADATA.tables.items() if "mac" in table.c}
    assert with_mac == signed | set(SIGNED_OTHERWISE)
    for name in SEALED.keys() - {"export_line"}:
        assert any(column.name.startswith("sealed_") for column in METADATA.tables[name].columns), name


async def test_a_row_without_a_signature_is_named_in_each_table(tmp_path: Path):
    async with running_api(tmp_path) as api:
        await a_world(api, Tenant("acme-of-tables"))
        without: set[str] = set()
        for table in ALL:
            async with api.worker.write() as tx:
                some = select(col(table.id), col(table.mac)).limit(1)  # type: ignore[attr-defined]  # each has it
                row = (await tx.connection.execute(some)).first()
                if row is None:
                    without.add(table_of(table).name)
                    continue
                mine = update(table).where(col(table.id) == row[0])
                await tx.connection.execute(mine.values(mac=None))
            named = {it.row for it in await broken_configuration(api.worker)}
            named |= {it.row async for it in broken_connections(api.worker)}
            assert named == {row[0]}, table_of(table).name
            async with api.worker.write() as tx:
                await tx.connection.execute(mine.values(mac=row[1]))
        assert without == NOT_IN_THE_WORLD
        async with api.worker.read() as tx:
            grants = METADATA.tables["connection_grant"]
            assert (await tx.connection.execute(select(func.count()).select_from(grants))).scalar_one()
