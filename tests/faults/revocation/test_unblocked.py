"""Nothing that goes wrong for one connection keeps its revocation from the provider."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col
from temporalio.testing import ActivityEnvironment

from activities.consents.accounts import AccountActivities
from activities.consents.code_exchange import CodeExchangeSpend
from activities.grants.refresh import RefreshActivities, RefreshSpend
from evergrant_server.cli.doctor import CheckFailed, database
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, RevocationOutcome
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import LookUpAccounts
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import status
from tests.faults.support.activities import Activities, at_temporal, call_for


def breaks(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    """Every call of this method raises; the list has an item for each call."""
    called: list[str] = []

    def broken(*_: Any, **__: Any) -> None:
        called.append(name)
        raise RuntimeError("rt-secret")

    monkeypatch.setattr(owner, name, broken)
    return called


def last_try() -> ActivityEnvironment:
    env = at_temporal()
    env.info = replace(env.info, attempt=3)
    return env


async def test_an_unexpected_error_of_a_refresh_delays_no_revocation(
    place: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    connection = await place.connect(STRICT)
    tries = breaks(monkeypatch, RefreshActivities, "_result_without_request")
    refresh = asyncio.create_task(place.ensure_fresh(connection, 1))

    async def tried() -> list[str]:
        return tries

    async with asyncio.timeout(PATIENCE_S):
        await eventually(tried)
        ended = await place.revoked(connection)
        assert ended.revocation is RevocationOutcome.CONFIRMED
        await asyncio.gather(refresh, return_exceptions=True)  # its workflow may have ended before
    assert len(tries) == 3
    assert "refresh_grant: unexpected RuntimeError at " in caplog.text
    history = str(await place.parts.link.history(connection_workflow_id(TENANT, connection.id)))
    assert "rt-secret" not in caplog.text + history
    assert __file__ not in history


async def test_an_unexpected_error_of_a_code_exchange_ends_the_consent_and_delays_no_revocation(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    connection = await place.begin()
    tries = breaks(monkeypatch, CodeExchangeSpend, "request")
    async with asyncio.timeout(PATIENCE_S):
        await place.consent(connection)
        await place.until_audited(connection, AuditAction.CONSENT_FAILED)
        (failed,) = await place.audited(connection, AuditAction.CONSENT_FAILED)
        assert failed.detail["reason"] == ErrorCode.INTERNAL
        ended = await place.revoked(connection)
    assert ended.revocation is RevocationOutcome.NOTHING_HELD
    assert len(tries) == 3


async def test_an_unexpected_error_of_an_account_lookup_is_a_result(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    connection = await place.change(await place.connect(), follow_up=FollowUp.LOOKING_UP)
    breaks(monkeypatch, AccountActivities, "_look_up")
    order = LookUpAccounts(**call_for(connection), generation=1)
    result = await Activities(place)._run("look_up_accounts", order, last_try())
    assert result.failure is ErrorCode.INTERNAL


async def test_the_health_of_a_connection_shows_an_unexpected_error(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    """As for every failure that comes before anything is sent: once the access token has ended."""
    connection = await place.connect()
    grant = (await place.grant(connection))[1]
    await set_columns(place, connection, ConnectionGrantRow, expires_at=grant.obtained_at)
    breaks(monkeypatch, RefreshSpend, "request")
    result = await Activities(place).refresh(connection, 1, last_try())
    assert result.failure is ErrorCode.INTERNAL
    assert (await place.row(connection)).last_failure is ErrorCode.INTERNAL


async def set_columns(place: Installation, connection: Connection, table: Any, **values: Any) -> None:
    key = table.id if table is ConnectionRow else table.connection_id
    async with place.store.write() as tx:
        await tx.connection.execute(update(table).where(col(key) == connection.id).values(**values))


async def test_a_row_that_fails_validation_is_named_and_leaves_the_workflow_able_to_go_on(
    place: Installation, caplog: pytest.LogCaptureFixture
):
    connection = await place.connect(STRICT)
    await set_columns(place, connection, ConnectionGrantRow, scopes={"rt-secret": 1})
    async with asyncio.timeout(PATIENCE_S):
        assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.INTERNAL
        named = f"the row of {connection.id} in connection_grant can't be read: scopes"
        assert named in caplog.text
        assert "rt-secret" not in caplog.text
        ended = await place.revoked(connection)
    assert ended.revocation is RevocationOutcome.CONFIRMED


async def test_a_connection_row_that_fails_validation_stops_no_activity_for_ever(place: Installation):
    """What would be recorded of the failure can't be read either. Its revocation needs none of that."""
    connection = await place.connect()
    await set_columns(place, connection, ConnectionRow, flow="from_the_future")
    async with asyncio.timeout(PATIENCE_S):
        assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.INTERNAL
        await place.tell_revoke(connection)
        await place.until_audited(connection, AuditAction.REVOKED)
    assert (await place.row(connection)).revocation is RevocationOutcome.CONFIRMED


@pytest.mark.parametrize(
    "broken", [{"target": {"resources": 5}}, {"state": "zzz"}, {"requested_scopes": 5}, {}]
)
async def test_a_connection_that_cannot_be_read_is_revoked_at_the_provider(
    place: Installation, broken: dict[str, Any]
):
    """By its id, through the API. Its tokens are sealed beside what can't be read, and open."""
    connection = await place.connect(STRICT)
    await set_columns(place, connection, ConnectionGrantRow, facts=["no object"], options={"no": "list"})
    if broken:
        await set_columns(place, connection, ConnectionRow, **broken)
    async with place.api() as http:
        assert (await http.get(f"/v1/connections/{connection.id}")).status_code == 500
        asked = await http.post(f"/v1/connections/{connection.id}/revoke", json={"reason": "left"})
        assert (asked.status_code, asked.json()["state"]) == (202, "revoking"), asked.text
    await place.until_audited(connection, AuditAction.REVOKED)
    assert (await place.row(connection)).revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in place.idp.families)


async def test_another_type_of_workflow_under_the_id_keeps_no_revocation_from_the_provider(
    place: Installation, caplog: pytest.LogCaptureFixture
):
    """Temporal takes a signal to it, so the outbox would be empty and the connection `revoking` for good."""
    connection = await place.connect(STRICT)
    name = connection_workflow_id(TENANT, connection.id)
    await place.terminate(connection)
    foreign = await place.parts.client.start_workflow("AnotherWorkflow", id=name, task_queue="no-worker")
    async with asyncio.timeout(PATIENCE_S):
        ended = await place.revoked(connection)
    assert ended.revocation is RevocationOutcome.CONFIRMED
    assert f"foreign workflow: run {foreign.first_execution_run_id}" in caplog.text


async def test_the_recurring_pass_takes_the_id_back_from_another_type_of_workflow(place: Installation):
    connection = await place.connect()
    name = connection_workflow_id(TENANT, connection.id)
    await place.terminate(connection)
    await place.parts.client.start_workflow("AnotherWorkflow", id=name, task_queue="no-worker")
    assert await place.parts.reconciler.start_workflow(TENANT, connection.id)
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_doctor_names_a_connection_that_is_revoking_for_too_long(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    settings = place.parts.settings
    assert "no connection" in await database.revocations(settings)
    connection = await place.connect(STRICT)
    place.idp.script(*[status(503, {"Retry-After": "600"})] * 2, at="revoke")
    await place.revoke(connection)
    await place.until_audited(connection, AuditAction.REVOCATION_FAILED)
    assert "no connection" in await database.revocations(settings)
    monkeypatch.setattr(database, "REVOCATION_AGE_LIMIT", timedelta(0))
    await set_columns(
        place, connection, ConnectionRow, flow="from_the_future"
    )  # an unreadable row is named too
    with pytest.raises(CheckFailed) as found:
        await database.revocations(settings)
    assert connection.id in found.value.detail
    assert "last failure provider_error" in found.value.detail
