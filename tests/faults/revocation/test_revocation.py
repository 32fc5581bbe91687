"""A revocation is never given up, says what it can't do, and leaves no key behind."""

from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from evergrant_server.api.integrations.changes import retry_failing_connections
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store.connections.grants import Grants
from evergrant_server.store.keys import KeyRow
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import Answer, error, ok, status
from tests.faults.integrations.test_secret_rotation import rotate
from tests.faults.support.activities import Activities

UNSUPPORTED = error("unsupported_token_type")
REFRESH, ACCESS = "refresh_token", "access_token"


async def keys_of(place: Installation, connection: Connection) -> dict[str, int]:
    query = (
        select(col(KeyRow.purpose), func.count())
        .where(col(KeyRow.connection_id) == connection.id)
        .group_by(col(KeyRow.purpose))
    )
    async with place.store.read() as tx:
        return {purpose: count for purpose, count in await tx.connection.execute(query)}


async def last(place: Installation, connection: Connection, action: AuditAction) -> AuditRecord:
    return (await place.audited(connection, action))[-1]


@pytest.mark.parametrize(
    ("answers", "how", "told"),
    [
        ([ok(), ok()], RevocationOutcome.CONFIRMED, [REFRESH, ACCESS]),
        ([ok(), UNSUPPORTED], RevocationOutcome.CONFIRMED, [REFRESH, ACCESS]),
        # Better Auth: the access token is gone with its refresh token
        ([ok(), error("invalid_request")], RevocationOutcome.CONFIRMED, [REFRESH, ACCESS]),
        ([UNSUPPORTED, ok()], RevocationOutcome.ACCESS_TOKEN_ONLY, [REFRESH, ACCESS]),
        ([UNSUPPORTED, UNSUPPORTED], RevocationOutcome.NOT_SUPPORTED, [REFRESH, ACCESS]),
    ],
)
async def test_rfc7009_2_2_1_the_outcome_names_what_the_provider_revoked(
    place: Installation, answers: list[Answer], how: RevocationOutcome, told: list[str]
):
    connection = await place.connect(STRICT)
    place.idp.script(*answers, at="revoke")
    ended = await place.revoked(connection)
    assert ended.revocation is how
    hints = [call.params["token_type_hint"] for call in place.idp.calls if call.endpoint == "revoke"]
    assert hints == told
    assert (await last(place, connection, AuditAction.REVOKED)).detail["how"] == how


async def test_a_revoked_connection_keeps_no_key_but_its_storys(place: Installation):
    connection = await place.connect(STRICT)
    backup = await place.grant(connection)
    story = {KeyPurpose.STORY: 1}
    assert await keys_of(place, connection) == {KeyPurpose.LEASE: 1, KeyPurpose.REFRESH: 1, **story}
    await place.revoked(connection)
    assert await keys_of(place, connection) == story
    assert (await last(place, connection, AuditAction.REVOKED)).detail["keys_destroyed"] == 2
    async with place.store.read() as tx:
        with fails(ErrorCode.CONSENT_REQUIRED):
            await tx.grants.access_token(await place.row(connection))
    assert backup[1].generation == 1


async def test_an_unexpected_error_is_retried_with_growing_pauses(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    """Temporal's own retries would hide it and are spaced by at most thirty seconds."""
    connection = await place.connect(STRICT)
    told: list[str] = []

    async def broken(self: Grants, *_: object) -> None:
        told.append("read")
        raise RuntimeError("rt-secret")

    with monkeypatch.context() as broke:
        broke.setattr(Grants, "refresh_token", broken)
        await place.revoke(connection)
        await place.until_audited(connection, AuditAction.REVOCATION_FAILED)
        await place.until_described(connection, lambda it: it.revocation_failure is ErrorCode.INTERNAL)
    failed = await last(place, connection, AuditAction.REVOCATION_FAILED)
    assert failed.detail == {"reason": ErrorCode.INTERNAL}
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    history = str(await place.parts.link.history(connection_workflow_id(TENANT, connection.id)))
    assert "rt-secret" not in history
    assert "ACTIVITY_TASK_FAILED" not in history
    assert told


async def test_a_repaired_client_secret_retries_the_revocation_at_once(place: Installation):
    """No refresh of it has failed, and it would be tried again after a quarter of an hour."""
    connection = await place.connect(STRICT)
    place.idp.client_secret = "a secret that was not rotated here"
    await place.revoke(connection)
    refused = ErrorCode.CLIENT_REJECTED
    await place.until_described(connection, lambda it: it.revocation_failure is refused)
    integration = await place.integration_of(connection)
    await rotate(place, integration, place.idp.client_secret)
    async with place.store.write() as tx:
        await retry_failing_connections(tx, integration, ASKED, place.parts.clock.now())
    place.parts.relay.notify()
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)


async def test_a_restored_store_does_not_stop_a_revocation(place: Installation):
    """A backup was restored while the workflow was telling the provider."""
    connection = await place.connect(STRICT)
    active = await place.row(connection)
    place.idp.script(*[status(503, {"Retry-After": "1"})] * 2, at="revoke")
    await place.revoke(connection)
    await place.idp.until("revoke", 1)
    async with place.store.write() as tx:
        await tx.connections.replace(active, expected=(await place.row(connection)).revision)
    ended = await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert ended.revocation is RevocationOutcome.CONFIRMED


async def test_no_token_is_leased_while_the_provider_is_asked(place: Installation):
    """The store could not take the request when it was made: its workflow goes on to the provider."""
    connection = await place.connect(STRICT)
    place.idp.script(status(503), at="revoke")
    result = await Activities(place).revoke(connection)
    assert result.failure is ErrorCode.PROVIDER_ERROR
    assert (await place.row(connection)).state is LifecycleState.REVOKING
    assert len(await place.audited(connection, AuditAction.REVOCATION_REQUESTED)) == 1


async def test_the_api_shows_since_when_a_revocation_fails_and_why(place: Installation):
    where = f"/v1/connections/{(await place.connect()).id}"
    place.idp.script(*[status(503, {"Retry-After": "3"})] * 2, at="revoke")
    async with place.api() as caller:

        async def read() -> Any:
            return (await caller.get(where)).json()

        asked = (await caller.post(f"{where}/revoke", json={})).json()
        assert asked["revoking"]["since"] is not None
        assert asked["revoking"]["failure"] is None
        told = await eventually(read, lambda it: it["revoking"]["failure"] is not None)
        assert told["revoking"]["failure"] == "provider_error"
        assert told["revoking"]["since"] == asked["revoking"]["since"] < told["revoking"]["failed_at"]
        live = (await caller.get(where, params={"live": "true"})).json()["live"]
        assert (live["failed"], live["state"]) == ("provider_error", "revoking")
        assert (await eventually(read, lambda it: it["state"] == "revoked"))["revoking"] is None
