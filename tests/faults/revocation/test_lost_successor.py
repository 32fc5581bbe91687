"""A refresh whose answer was lost may have made a token that nobody holds: `confirmed` means it has ended.

A server answers 200 also for a token that it doesn't know, such as a spent one (RFC 7009 section 2.2).
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, RevocationOutcome
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints, Integration, RefreshRules, Rotation
from evergrant_server.core.secret import Secret
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from tests.fakes.platform.skipped_time import TENANT, LoneWorker, lone_worker
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.providers.scripted_server import Answer, drop_after_commit, error, html

CONFIRMED, UNKNOWN = RevocationOutcome.CONFIRMED, RevocationOutcome.UNKNOWN


@pytest_asyncio.fixture
async def idp() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as idp:
        yield idp


@pytest.fixture
def revocation() -> dict[str, Any] | None:
    """What the definition says of it."""
    return None


@pytest_asyncio.fixture
async def place(
    idp: ScriptedProvider, tmp_path: Path, revocation: dict[str, Any] | None
) -> AsyncIterator[LoneWorker]:
    spec = Registry.load().get("generic").model_dump(mode="json", exclude_unset=True)
    definition = ProviderSpec.model_validate({**spec, "revocation": revocation})
    registry = Registry({definition.name: definition})
    async with lone_worker(tmp_path, idp.allowance, registry=registry) as place:
        yield place


async def connected(place: LoneWorker, idp: ScriptedProvider, rotation: Rotation) -> Connection:
    integration = await the_integration(place, idp, rotation)
    reply = idp.grant()
    tokens = TokenSet(
        access_token=Secret(reply["access_token"]),
        refresh_token=Secret(reply["refresh_token"]),
        expires_in=3600,
    )
    return await place.connected(integration, tokens=tokens)


async def the_integration(place: LoneWorker, idp: ScriptedProvider, rotation: Rotation) -> Integration:
    endpoints = Endpoints(
        issuer=idp.issuer, token_endpoint=idp.url("token"), revocation_endpoint=idp.url("revoke")
    )
    return await place.integration(
        idp.client_secret,
        refresh=RefreshRules(rotation=rotation),
        endpoints=endpoints,
        issuer=idp.issuer,
        client_id=idp.client_id,
    )


async def record_of(place: LoneWorker, connection: Connection) -> dict[str, Any]:
    async with place.store.read() as tx:
        record = await audit.newest_record(tx, TENANT, connection.id, AuditAction.REVOKED)
    assert record is not None
    return dict(record.detail)


LOST = [drop_after_commit()]
TAKEN = [drop_after_commit(), error("invalid_grant")]  # sent again, and refused: the first use was served


@pytest.mark.parametrize("answers", [LOST, TAKEN], ids=["unanswered", "refused when sent again"])
async def test_a_successor_that_nobody_holds_isnt_said_to_be_revoked(
    place: LoneWorker, idp: ScriptedProvider, answers: list[Answer]
):
    connection = await connected(place, idp, Rotation.STRICT)
    idp.script(*answers, at="token")
    for _ in answers:
        await place.refresh(connection)
        place.clock.advance(3 * 3600)
    idp.script(Answer(acts=False), Answer(acts=False), at="revoke")  # it forgets what is spent
    result = await place.revoke(connection)
    assert result.revocation is UNKNOWN
    row = await place.row(connection)
    assert row.revocation is UNKNOWN
    assert idp.active(idp.families[0].refresh_token), "it does live on"
    record = await record_of(place, connection)
    assert (record["how"], record["reason"]) == (UNKNOWN, ErrorCode.OUTCOME_UNKNOWN)
    assert record["unread_attempt"].startswith("att_")


async def test_an_answered_refresh_is_confirmed(place: LoneWorker, idp: ScriptedProvider):
    connection = await connected(place, idp, Rotation.STRICT)
    assert (await place.refresh(connection)).failure is None
    assert (await place.revoke(connection)).revocation is CONFIRMED
    assert "unread_attempt" not in await record_of(place, connection)


async def test_a_use_that_worked_when_it_was_sent_again_was_not_lost(
    place: LoneWorker, idp: ScriptedProvider
):
    connection = await connected(place, idp, Rotation.STRICT)
    idp.script(html(500), at="token")
    assert (await place.refresh(connection)).failure is ErrorCode.PROVIDER_ERROR
    place.clock.advance(3 * 3600)
    assert (await place.refresh(connection)).failure is None
    assert (await place.revoke(connection)).revocation is CONFIRMED


async def test_a_token_that_never_rotates_has_no_successor(place: LoneWorker, idp: ScriptedProvider):
    idp.rotation = "none"
    connection = await connected(place, idp, Rotation.NONE)
    idp.script(*LOST, at="token")
    await place.refresh(connection)
    place.clock.advance(3 * 3600)
    assert (await place.revoke(connection)).revocation is CONFIRMED


BY_GRANT = {"reach": "grant"}
BY_ACCESS_TOKEN = {"token": "access_token", "hint_param": None}


@pytest.mark.parametrize("revocation", [BY_GRANT, BY_ACCESS_TOKEN])
async def test_a_provider_that_revokes_by_grant_ends_the_successor_with_a_live_token(
    place: LoneWorker, idp: ScriptedProvider
):
    connection = await connected(place, idp, Rotation.STRICT)
    idp.script(*LOST, at="token")
    await place.refresh(connection)
    place.clock.advance(600)
    async with place.store.read() as tx:
        access = (await tx.grants.access_token(await place.row(connection))).reveal()
    assert (await place.revoke(connection)).revocation is CONFIRMED
    first, second = [call.params["token"] for call in idp.calls if call.endpoint == "revoke"]
    assert first == access, "the one that lives"
    assert second in idp.families[0].used
    assert not idp.active(idp.families[0].refresh_token)
    assert (await record_of(place, connection))["unread_attempt"].startswith("att_")


@pytest.mark.parametrize("revocation", [BY_GRANT, BY_ACCESS_TOKEN, {"reach": "token"}])
async def test_a_token_that_has_ended_ends_no_grant(place: LoneWorker, idp: ScriptedProvider):
    connection = await connected(place, idp, Rotation.STRICT)
    idp.script(*LOST, at="token")
    await place.refresh(connection)
    place.clock.advance(3 * 3600)
    assert (await place.revoke(connection)).revocation is UNKNOWN


async def test_a_code_whose_answer_was_lost_may_have_made_tokens(place: LoneWorker, idp: ScriptedProvider):
    """Nothing is held, and that isn't all that there may be."""
    integration = await the_integration(place, idp, Rotation.STRICT)
    idp.script(Answer(acts=False, answers=False), at="token")
    _, consent = await place.exchange(integration, {})
    async with place.store.read() as tx:
        connection = await tx.connections.get(TENANT, consent.connection_id)
    assert connection is not None
    place.clock.advance(3 * 3600)
    assert (await place.revoke(connection)).revocation is UNKNOWN
