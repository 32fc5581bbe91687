"""`authority verify` and `accept`, and the doctor's check."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from evergrant_server.cli import authority
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import authority as doctor_check
from evergrant_server.cli.flags import Flags
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.authority.authenticators import (
    account_mac,
    grant_mac,
    new_destination_mac,
    row_mac,
)
from evergrant_server.store.authority.scan import broken_connections
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database import schema
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.engine import open_database
from evergrant_server.store.database.rows import column_values
from evergrant_server.store.integrations.tables import IntegrationRow
from tests.conformance.store.samples import a_grant
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
    await schema.upgrade(settings.database_url)
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


async def with_rows(settings: Settings, *rows: tuple[type[Row], dict[str, Any]]) -> None:
    await schema.upgrade(settings.database_url)
    database = open_database(settings.database_url)
    async with database.write() as connection:
        for table, values in rows:
            await connection.execute(insert(table_of(table)).values(values))
    await database.close()


async def test_an_upgrade_signs_no_row(settings: Settings):
    await schema.upgrade(settings.database_url)
    await with_app(settings)
    await by_hand(settings, "UPDATE app SET mac = NULL")
    assert await schema.upgrade(settings.database_url) == schema.expected_version()
    with pytest.raises(CheckFailed, match="app_"):
        await doctor_check(settings)


async def test_a_message_that_waits_is_named_until_it_is_accepted(settings: Settings):
    flags = Flags(data_dir=settings.data_dir, database_url=settings.database_url, key_file=settings.key_file)
    await schema.upgrade(settings.database_url)
    await by_hand(
        settings,
        "INSERT INTO outbox (tenant, id, kind, target, name, payload, created_at, attempts, revision) VALUES"
        " ('acme', 'out_1', 'signal', 'connection:acme:con_1', 'revoke', '{}', '2026-01-02 03:04:05', 0, 1)",
    )
    await with_app(settings)
    with pytest.raises(CheckFailed, match="out_1"):
        await doctor_check(settings)
    await authority.accept("out_1", flags=flags)
    assert "Evergrant's" in await doctor_check(settings)
    await by_hand(settings, "UPDATE outbox SET name = 'rotate'")
    with pytest.raises(CheckFailed, match="out_1"):
        await doctor_check(settings)


async def test_rows_that_are_accepted_without_hosts_pin_what_their_definition_names(
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
        of_grant = {"facts": columns.pop("metadata"), "options": {}, **columns, "tenant": ACME, "revision": 1}
        of_grant |= {
            "connection_id": connection.id,
            "destination_mac": grant_mac(ring, connection, made, None),
        }
        rows += [(ConnectionRow, signed), (ConnectionGrantRow, of_grant)]
    await with_rows(settings, *rows)
    flags = Flags(data_dir=settings.data_dir, database_url=settings.database_url, key_file=settings.key_path)
    await authority.accept(everything=True, flags=flags)
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.read() as tx:
        read = [await tx.context_rows.connection(it.tenant, it.id) for it in connections]
    assert [it.pins.grant for it in read if it] == [(f"accounts.zoho.{it}",) for it in ("eu", "in", "jp")]
    assert [it.row async for it in broken_connections(store)] == []
    await store.close()
    await authority.hosts(flags=flags)
    assert "every host" in capsys.readouterr().out
    await authority.accept_hosts(crm.id, host=["new.example", "shop.example"], flags=flags)
    assert "crm (tenant acme) may send to new.example, shop.example" in capsys.readouterr().out
