"""A connection is erased by a real worker: revoked at the provider first, then gone, with its histories."""

from datetime import timedelta
from pathlib import Path

import pytest

from evergrant_server import audit
from evergrant_server.access.erasure import Order, erase
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.erasure import Erasure, ErasureState, TargetKind
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.store import Transaction
from tests.fakes.databases import lent
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, Installation, installation
from tests.fakes.platform.observations import TENANT
from tests.fakes.providers.scripted_provider import ScriptedProvider, echo


async def ordered(place: Installation, kind: TargetKind, target: str) -> Erasure:
    async def approved(_: Transaction) -> dict[str, str]:
        return {}

    order = Order(TENANT, kind, target, "INC-9", ASKED, place.parts.clock.now())
    erasure = await erase(place.store, order, timedelta(days=30), approved)
    place.parts.relay.notify()
    return erasure


async def until_done(place: Installation, erasure: Erasure) -> Erasure:
    async def read() -> Erasure:
        async with place.store.read() as tx:
            row = await tx.erasures.get(TENANT, erasure.id)
        assert row is not None
        return row

    return await eventually(read, lambda row: row.state is ErasureState.DONE)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_connection_and_its_subject_are_erased_once_the_provider_has_revoked(
    kind: str, temporal_address: str, tmp_path: Path
):
    async with (
        lent(kind, tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        first, second = await place.fleet(await place.integration(), 2)
        idp.script(echo("server_error", 503), at="revoke")
        of_one = await until_done(place, await ordered(place, TargetKind.CONNECTION, first.id))
        assert (of_one.connections, of_one.unconfirmed) == (1, 0)
        of_subject = await until_done(place, await ordered(place, TargetKind.SUBJECT, second.subject))
        assert of_subject.connections == 1
        assert not any(family.alive for family in idp.families)
        async with place.store.read() as tx:
            for connection in (first, second):
                assert await tx.connections.get(TENANT, connection.id) is None
                assert await tx.histories.of_connection(TENANT, connection.id) == []
                record = await audit.newest_record(tx, TENANT, connection.id, AuditAction.CONNECTION_ERASED)
                assert record is not None
                assert record.detail["revocation"] == "confirmed"
        run = await place.parts.link.newest_run(connection_workflow_id(TENANT, first.id))
        assert run is not None
        assert not run.running
        assert (await audit.verify_log(place.store, TENANT)).problem is None
