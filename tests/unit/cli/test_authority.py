"""`authority verify` and `accept`, the doctor's check, and an upgrade from before signatures."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert, text

from evergrant_server.cli import authority
from evergrant_server.cli.app import Flags
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import authority as doctor_check
from evergrant_server.cli.operate import upgrade_database
from evergrant_server.core.access import App
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.access import AppRow
from evergrant_server.store.authority import account_mac, grant_mac, new_destination_mac, row_mac
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.engine import open_database
from evergrant_server.store.database.rows import column_values
from evergrant_server.store.database.schema import MIGRATIONS, expected_version
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.review.authority_scan import broken_connections
from tests.conformance.store.samples import a_grant
from tests.conformance.store.test_schema import columns_of
from tests.fakes.databases import NOW, sqlite_url
from tests.fakes.failures import fails
from tests.fakes.rows import a_connection, an_integration, put_app

ACME = Tenant("acme")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    KeyRing.create(tmp_path / "keys.json")
    return Settings(data_dir=tmp_path, database_url=sqlite_url(tmp_path), key_file=tmp_path / "keys.json")


async def by_hand(settings: Settings, *statements: str) -> None:
    database = open_database(settings.database_url)
    async with database.write() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await database.close()


async def with_app(settings: Settings) -> None:
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.API), SystemClock())
    async with store.write() as tx:
        await put_app(tx, ACME, "sync", NOW, {"name": "only", "integration": "*", "actions": ("token",)})
    await store.close()


async def test_a_broken_row_is_named_until_it_is_accepted(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    flags = Flags(data_dir=settings.data_dir, database_url=settings.database_url, key_file=settings.key_file)
    await upgrade_database(settings)
    await with_app(settings)
    await authority.verify(flags=flags)
    await by_hand(settings, "UPDATE permit SET integration = 'crm'")
    capsys.readouterr()
    with fails(ErrorCode.AUTHORITY_BROKEN, "1 rows"):
        await authority.verify(flags=flags)
    row = capsys.readouterr().out.split()[0]
    with pytest.raises(CheckFailed, match=row):
        await doctor_check(settings)
    with fails(ErrorCode.NOT_FOUND, "per_9"):
        await authority.accept("per_9", flags=flags)
    with pytest.raises(BadSettings):
        await authority.accept(flags=flags)
    await authority.accept(row, flags=flags)
    await authority.verify(flags=flags)
    assert "Evergrant's" in await doctor_check(settings)


async def at_schema(settings: Settings, version: str, *rows: tuple[type[Row], dict[str, Any]]) -> None:
    """A database of before, with these rows."""

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, version)

    database = open_database(settings.database_url)
    async with database.write() as connection:
        await connection.run_sync(upgrade)
        for table, values in rows:
            there = await connection.run_sync(columns_of, table_of(table).name)
            known = {name: value for name, value in values.items() if name in there}
            await connection.execute(insert(table_of(table)).values(known))
    await database.close()


async def test_rows_of_before_get_authenticators_with_the_schema(settings: Settings):
    """Rows of the schema 0001, which a later upgrade finds."""
    await at_schema(settings, "0001")
    await by_hand(
        settings,
        "INSERT INTO app (tenant, id, name, disabled, return_to, created_at, revision)"
        " VALUES ('acme', 'app_1', 'sync', 0, '[]', '2026-01-02 03:04:05.000000', 1)",
        "INSERT INTO audit_shard (tenant, shard, count, last_hash, revision)"
        f" VALUES ('acme', 'main', 0, '{'0' * 64}', 1)",
    )
    key_file = settings.key_path.read_bytes()
    settings.key_path.unlink()
    with fails(ErrorCode.KEY_UNAVAILABLE):  # before the schema has changed
        await upgrade_database(settings)
    settings.key_path.write_bytes(key_file)
    settings.key_path.chmod(0o600)
    assert await upgrade_database(settings) == "0001"
    assert "Evergrant's" in await doctor_check(settings)
    await by_hand(settings, "UPDATE app SET mac = NULL")
    assert await upgrade_database(settings) == expected_version()
    with pytest.raises(CheckFailed, match="app_1"):  # a later upgrade accepts nothing
        await doctor_check(settings)


async def test_tenants_of_before_are_enabled_with_authenticators(settings: Settings):
    app = App(tenant=ACME, id=AppId("app_1"), name="sync", created_at=NOW)
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    signed = {**column_values(app), "mac": row_mac(ring, app)}
    people = column_values(an_integration(Tenant("people"), NOW))
    await at_schema(settings, "0015", (AppRow, signed), (IntegrationRow, people))
    assert await upgrade_database(settings) == "0015"
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.read() as tx:
        assert [await tx.tenants.is_enabled(it) for it in (ACME, Tenant("people"))] == [True, True]
        with fails(ErrorCode.AUTHORITY_BROKEN, "is missing"):
            await tx.tenants.is_enabled(Tenant("unknown"))
    await store.close()


async def test_messages_that_wait_get_authenticators(settings: Settings):
    await at_schema(settings, "0026")
    await by_hand(
        settings,
        "INSERT INTO outbox (tenant, id, kind, target, name, payload, created_at, attempts, revision) VALUES"
        " ('acme', 'out_1', 'signal', 'connection:acme:con_1', 'revoke', '{}', '2026-01-02 03:04:05', 0, 1)",
        "INSERT INTO app (tenant, id, name, disabled, return_to, created_at, revision)"
        " VALUES ('acme', 'app_1', 'sync', 0, '[]', '2026-01-02 03:04:05.000000', 1)",
    )
    assert await upgrade_database(settings) == "0026"
    assert "Evergrant's" in await doctor_check(settings)
    await by_hand(settings, "UPDATE outbox SET name = 'rotate'")
    with pytest.raises(CheckFailed, match="out_1"):
        await doctor_check(settings)


async def test_grants_of_before_pin_what_their_definition_names(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    crm = an_integration(ACME, NOW, provider="zoho")
    made = new_destination_mac(ring, crm, None)
    rows: list[tuple[type[Row], dict[str, Any]]] = [
        (IntegrationRow, {**column_values(crm), "mac": row_mac(ring, crm), "destination_mac": made})
    ]
    connections = [a_connection(crm, NOW, subject=f"user-{number}", generation=1) for number in range(3)]
    for number, connection in enumerate(connections):
        values = column_values(connection)
        signed = {**values, "account_mac": account_mac(ring, connection, None)}
        grant = a_grant(1, metadata={"accounts_server": f"accounts.zoho.{('eu', 'in', 'jp')[number]}"})
        columns = column_values(grant)
        of_grant = {**columns, "facts": columns.pop("metadata"), "tenant": ACME, "revision": 1}
        of_grant |= {
            "connection_id": connection.id,
            "destination_mac": grant_mac(ring, connection, made, None),
        }
        rows += [(ConnectionRow, signed), (ConnectionGrantRow, of_grant)]
    await at_schema(settings, "0026", *rows)
    assert await upgrade_database(settings) == "0026"
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.read() as tx:
        pins = [await tx.destinations.require(it, crm) for it in connections]
    assert [it.grant for it in pins] == [(f"accounts.zoho.{it}",) for it in ("eu", "in", "jp")]
    assert [it.row async for it in broken_connections(store)] == []
    await store.close()
    flags = Flags(data_dir=settings.data_dir, database_url=settings.database_url, key_file=settings.key_path)
    await authority.hosts(flags=flags)
    assert "every host" in capsys.readouterr().out
    await authority.accept_hosts(crm.id, host=["new.example", "shop.example"], flags=flags)
    assert "crm (tenant acme) may send to new.example, shop.example" in capsys.readouterr().out
