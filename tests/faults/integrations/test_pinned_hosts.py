"""A definition or metadata names another host: nothing that was granted goes there before an operator has
accepted it, on the host of a worker."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.configuration import hosts as doctor_check
from evergrant_server.cli.pinned_hosts.acceptance import accept_hosts
from evergrant_server.cli.pinned_hosts.waiting import print_waiting_hosts
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentKind, PushedAuthorization
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.rows import columns_equal
from providers.requests.hosts import host_of
from tests.fakes.certificates import LoopbackTls
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import a_consent
from tests.faults.support.activities import Activities


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    return ScriptedProvider(tls=tls)


@pytest_asyncio.fixture
async def evil(tls: LoopbackTls) -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider(tls=tls) as server:
        yield server


@pytest.fixture
def allow(evil: ScriptedProvider) -> tuple[str, ...]:
    return (evil.allowance,)


class Acme:
    """A provider of the tenant's own, whose next version names another server."""

    def __init__(self, place: Installation, evil: ScriptedProvider) -> None:
        self.place, self.evil = place, evil
        evil.client_secret = place.idp.client_secret
        self.document = place.document(revocation_endpoint=place.idp.url("revoke"))

    async def connect(self) -> Connection:
        integration = await self.place.integration_with(self.document)
        return await self.place.granted(await self.place.begin(integration))

    async def moves(self, *names: str, **changes: Any) -> None:
        """What whoever may write definitions, and approve them, does."""
        endpoints = {"token": "token", "revocation": "revoke"}
        there = {f"{name}_endpoint": self.evil.url(endpoints[name]) for name in names}
        await self.place.define(self.document | there, **{"version": 2, **changes})

    async def accept(self, connection: Connection) -> None:
        clock, host = self.place.parts.clock, host_of(self.evil.url(""))
        await accept_hosts(self.place.store, clock, connection.integration_id, [host])


@pytest.fixture
def acme(place: Installation, evil: ScriptedProvider) -> Acme:
    return Acme(place, evil)


async def test_a_definition_with_another_host_gets_no_refresh_token(
    acme: Acme, place: Installation, capsys: pytest.CaptureFixture[str]
):
    connection = await acme.connect()
    assert "only where" in await doctor_check(place.parts.settings)
    await acme.moves("token")
    refused = await Activities(place).refresh(connection, 1)
    assert (refused.failure, refused.generation) == (ErrorCode.HOST_NOT_ACCEPTED, None)
    assert acme.evil.calls == []
    assert (await place.row(connection)).last_failure is ErrorCode.HOST_NOT_ACCEPTED
    with pytest.raises(CheckFailed, match=rf"1 connections wait \({connection.id}\)") as found:
        await doctor_check(place.parts.settings)
    assert found.value.repair == "python -m evergrant_server authority hosts"
    await print_waiting_hosts(place.store, place.parts.registry)
    said = capsys.readouterr().out
    assert f"{host_of(acme.evil.url(''))} of crm-" in said
    assert f"  {connection.id}\n" in said
    await acme.accept(connection)
    assert (await Activities(place).refresh(connection, 1)).failure is not ErrorCode.HOST_NOT_ACCEPTED
    assert acme.evil.count("token") == 1
    (record,) = await place.records(AuditAction.HOSTS_ACCEPTED)
    assert (record.object, record.context.by) == (connection.integration_id, "operator")
    assert record.detail == {"hosts": [host_of(acme.evil.url(""))]}
    assert "only where" in await doctor_check(place.parts.settings)


async def test_connections_that_wait_try_again_once_the_host_is_accepted(acme: Acme, place: Installation):
    connection = await acme.connect()
    await acme.moves("token")
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.HOST_NOT_ACCEPTED
    await acme.accept(connection)
    place.parts.relay.notify()

    async def asked() -> int:
        return acme.evil.count("token")

    await eventually(asked, bool)


async def test_a_revocation_waits_for_the_host(acme: Acme, place: Installation):
    connection = await acme.connect()
    await acme.moves("revocation")
    await place.revoke(connection)
    (failed,) = await eventually(lambda: place.records(AuditAction.REVOCATION_FAILED), bool)
    assert failed.detail["reason"] == ErrorCode.HOST_NOT_ACCEPTED
    assert acme.evil.calls == []
    assert (await place.row(connection)).state is LifecycleState.REVOKING
    with pytest.raises(CheckFailed, match=connection.id):
        await doctor_check(place.parts.settings)
    await acme.accept(connection)
    place.parts.relay.notify()
    await place.until(connection, lambda it: it.state is LifecycleState.REVOKED)
    assert acme.evil.count("revoke")


async def test_an_endpoint_elsewhere_stops_none_of_the_others(acme: Acme, place: Installation):
    connection = await acme.connect()
    await acme.moves("revocation")
    assert (await Activities(place).refresh(connection, 1)).generation == 2
    assert acme.evil.calls == []


async def test_a_staged_definition_with_another_host_is_not_used(acme: Acme, place: Installation):
    connection = await acme.connect()
    await acme.moves("token", state=DefinitionState.STAGED, share=1.0)
    assert (await Activities(place).refresh(connection, 1)).generation == 2
    assert acme.evil.calls == []


async def test_no_code_and_no_client_secret_of_a_new_consent_goes_there(acme: Acme, place: Installation):
    connection = await acme.connect()
    await acme.moves("token")
    another = await place.begin(await place.integration_of(connection), subject="accomplice")
    consent = await place.consent(another, tell=False, token_endpoint=acme.evil.url("token"))
    refused = await Activities(place).exchange(another, consent)
    assert (refused.failure, refused.consent_over) == (ErrorCode.HOST_NOT_ACCEPTED, True)
    assert acme.evil.calls == []


async def test_a_new_grant_pins_what_it_was_made_at(acme: Acme, place: Installation):
    connection = await acme.connect()
    async with place.store.read() as tx:
        rows = await tx.context_rows.connection(connection.tenant, connection.id)
    assert rows is not None
    assert rows.pins == ((host_of(place.idp.url("")),),) * 2


async def test_metadata_that_moved_elsewhere_gets_no_refresh_token(
    place: Installation, evil: ScriptedProvider
):
    """A worker read it, so that its authenticator is good: of the same issuer, whoever publishes there."""
    connection = await place.connect(STRICT)
    integration = await place.integration_of(connection)
    there = Endpoints(token_endpoint=evil.url("token"), revocation_endpoint=evil.url("revoke"))
    async with place.store.write() as tx:
        after = integration.model_copy(update={"endpoints": there})
        await tx.integrations.replace(after, expected=integration.revision)
    assert (await Activities(place).refresh(connection, 1)).failure is ErrorCode.HOST_NOT_ACCEPTED
    await place.revoke(connection, tell=False)
    assert (await Activities(place).revoke(connection)).failure is ErrorCode.HOST_NOT_ACCEPTED
    assert evil.calls == []


@pytest.mark.parametrize("name", ["device", "par"])
async def test_a_request_for_a_consent_shows_no_client_secret_elsewhere(
    place: Installation, evil: ScriptedProvider, name: str
):
    fields = {"device": "device_authorization_endpoint", "par": "pushed_authorization_request_endpoint"}
    connection = await place.connect(STRICT)
    integration = await place.integration_of(connection)
    assert integration.endpoints is not None
    moved = integration.endpoints.model_copy(update={fields[name]: evil.url(name)})
    async with place.store.write() as tx:
        after = integration.model_copy(update={"endpoints": moved})
        integration = await tx.integrations.replace(after, expected=integration.revision)
    if name == "device":
        begun = await place.begin(integration, subject="user-2", flow=Flow.DEVICE_CODE)
        consent = await place.unasked(begun, ConsentKind.DEVICE)
        failure = (await Activities(place).poll(begun, consent)).failure
    else:
        begun = await place.begin(integration, subject="user-2")
        consent = a_consent(begun, begun.created_at)
        async with place.store.write() as tx:
            await tx.consents.add(consent, None)
            pushed = PushedAuthorization(fields=(("state", "open-sesame"),))
            consent = await tx.consents.replace(consent, expected=1, request=pushed)
        failure = (await Activities(place).push(begun, consent)).failure
    assert failure is ErrorCode.HOST_NOT_ACCEPTED
    assert evil.calls == []


async def test_hosts_that_were_pinned_by_hand_are_no_ones(place: Installation, evil: ScriptedProvider):
    connection = await place.connect(STRICT)
    mine = columns_equal(ConnectionGrantRow, tenant=TENANT, connection_id=connection.id)
    async with place.store.write() as tx:
        values = {"pinned_hosts": host_of(evil.url(""))}
        await tx.connection.execute(update(ConnectionGrantRow).where(mine).values(values))
    refused = await Activities(place).refresh(connection, 1)
    assert refused.failure is ErrorCode.AUTHORITY_BROKEN


async def test_only_an_integration_with_a_grant_has_hosts_to_accept(place: Installation):
    integration = await place.integration(STRICT)
    clock = place.parts.clock
    with fails(ErrorCode.INVALID_REQUEST, "its first one pins"):
        await accept_hosts(place.store, clock, integration.id, ["idp.example"])
    with fails(ErrorCode.INVALID_REQUEST, "is no host"):
        await accept_hosts(place.store, clock, integration.id, ["idp.example evil.example"])
    with fails(ErrorCode.NOT_FOUND, "int_9"):
        await accept_hosts(place.store, clock, "int_9", ["idp.example"])
