"""What a connection's refreshes go by: the definition of now, the admin's word, the operator's settings; and
the grant that cannot be refreshed, of which API and workflow answer a report at once.
"""

import asyncio
import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant

from activities.support.provider_context import ProviderContextLoader
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.definition import DefinitionState, Rollout
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.connection import ConnectionStart, ConnectionState
from evergrant_server.core.secret import Secret
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import STRICT, TENANT, Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok, raw
from tests.faults.support.activities import Activities


async def version(place: Installation, number: int, state: DefinitionState, **says: Any) -> None:
    elsewhere = {
        "authorization_endpoint": "https://crm.acme.example/authorize",
        "token_endpoint": "https://crm.acme.example/token",
    }
    document = place.document(name="acme-crm", refresh_rotates=None, **elsewhere) | says
    await place.define(document, version=number, state=state, rollout=Rollout(), approved=True)


async def connection_of(place: Installation, said: dict[str, Any] | None) -> Connection:
    own = {"provider": "acme-crm", "endpoints": None, "refresh_overrides": said}
    return await place.begin(await place.integration(STRICT, **own))


async def rules_for(place: Installation, connection: Connection) -> RefreshRules:
    holder = ProviderContextLoader(
        place.store, place.parts.registry, "https://evergrant.example", place.parts.clock
    )
    return (await holder.load(TENANT, connection.id)).integration.refresh


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        ({}, Rotation.STRICT, Rotation.NONE),
        ({"rotation": "grace", "grace_s": 5.0}, Rotation.GRACE, Rotation.GRACE),
        (None, Rotation.STRICT, Rotation.STRICT),  # of before it was kept what was said
    ],
)
async def test_refresh_rules_follow_the_definition_unless_the_admin_set_them(
    place: Installation, said: dict[str, Any] | None, before: Rotation, after: Rotation
):
    await version(place, 1, DefinitionState.ACTIVE, refresh_rotates=True)
    connection = await connection_of(place, said)
    assert (await rules_for(place, connection)).rotation is before
    await version(place, 2, DefinitionState.STAGED, refresh_rotates=False)
    assert (await rules_for(place, connection)).rotation is before  # it isn't relied on yet
    await version(place, 3, DefinitionState.ACTIVE, refresh_rotates=False)
    assert (await rules_for(place, connection)).rotation is after


async def test_a_new_run_uses_the_current_rules_and_settings(
    temporal_address: str, database_url: str, tmp_path: Path, idp: ScriptedProvider
):
    """It was terminated, and the definition has learnt that this provider refuses early refreshes."""
    days = (9, 2)
    async with installation(
        temporal_address, database_url, tmp_path, idp, expiry_announce_days=days
    ) as place:
        idp.script(ok(expires_in=600))
        connection = await place.connect(policy="warm")
        await follows(place, connection, {"refresh_token_idle_s": 86_400.0})
        await version(place, 1, DefinitionState.ACTIVE, min_refresh_age_s=570)
        await version(place, 2, DefinitionState.STAGED, min_refresh_age_s=60)  # not relied on yet
        running = place.workflow(connection)
        await running.terminate()
        assert await place.parts.reconciler.start_workflow(TENANT, connection.id)
        life = begun_with(await place.parts.link.history(running.id))
        assert (life.refresh_token_idle_s, life.min_age_s, life.announce_days) == (86_400.0, 570, days)
        described = await place.parts.link.describe(TENANT, connection.id, timeout=PATIENCE_S)
        assert described.next_at is not None
        assert life.obtained_at is not None
        assert described.next_at >= life.obtained_at + timedelta(seconds=570)


async def follows(place: Installation, connection: Connection, said: dict[str, Any]) -> None:
    """From now on its integration is one of the tenant's own provider."""
    await place.change_integration(connection, provider="acme-crm", refresh_overrides=said)


def begun_with(history: list[dict[str, Any]]) -> ConnectionState:
    (given,) = history[0]["workflowExecutionStartedEventAttributes"]["input"]["payloads"]
    return ConnectionStart.model_validate_json(base64.b64decode(given["data"])).state


async def test_a_bearer_grant_outlives_a_server_that_binds_nothing(place: Installation):
    connection = await place.connect()
    await place.change_integration(connection, dpop=True)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert "dpop" in place.idp.calls[-1].headers  # it was asked for
    assert (await place.grant(connection))[1].token_type == "Bearer"
    place.idp.script(ok(token_type="DPoP"))
    assert (await place.ensure_fresh(connection, 2)).generation == 3
    assert (await place.grant(connection))[1].token_type == "DPoP"
    assert place.idp.refreshes == 2


REPORT = {"generation": 1, "reason": "unauthorized"}
JSON = {"Content-Type": "application/json"}
BARE = {"access_token": "at-1", "token_type": "Bearer"}


async def takes_nothing(scope: Any, receive: Any, send: Any) -> None:
    """A resource server that refuses every token."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("says", [{}, {"expires_in": 3600}])
async def test_a_report_is_answered_with_the_generation_there_is(place: Installation, says: dict[str, Any]):
    place.idp.script(raw(json.dumps({**BARE, **says}).encode(), 200, JSON))
    connection = await place.connect()
    sent = place.idp.count("token")
    async with place.api() as http, served(takes_nothing) as resource:
        for body in (REPORT, {"generation": 1}, {}):
            answer = await http.post(f"/v1/connections/{connection.id}/refresh", json=body)
            assert (answer.status_code, answer.json().get("generation")) == (200, 1), answer.text
        key = http.headers["Authorization"].removeprefix("Bearer ")
        async with AsyncEvergrant(str(http.base_url), key, deadline=timedelta(seconds=PATIENCE_S)) as client:
            auth = client.auth(connection.integration, connection.subject, origins=resource)
            async with (
                httpx2.AsyncClient(auth=auth, trust_env=False, timeout=PATIENCE_S) as user,
                asyncio.timeout(PATIENCE_S),
            ):
                assert (await user.get(f"{resource}/me")).status_code == 401
    assert place.idp.count("token") == sent


@pytest.mark.parametrize("ends", [True, False])
async def test_a_refresh_token_that_the_definition_has_no_use_for_is_no_reason_to_wait(
    place: Installation, ends: bool
):
    if not ends:
        bare = {**BARE, "refresh_token": place.idp.grant()["refresh_token"]}
        place.idp.script(raw(json.dumps(bare).encode(), 200, JSON))
    connection = await place.connect()
    await version(place, 1, DefinitionState.ACTIVE, refresh_supported=False)
    await follows(place, connection, {})
    sent = place.idp.count("token")
    async with place.api() as http:
        for _ in range(3):
            answer = await http.post(f"/v1/connections/{connection.id}/refresh", json=REPORT)
            assert (answer.status_code, answer.json().get("generation")) == (200, 1), answer.text
    assert place.idp.count("token") == sent
    again = (await place.described(connection)).next_at
    assert ends or again is None, "nothing is due, so no timer is set"


async def test_rfc6749_6_a_new_consent_is_never_refreshed_with_the_token_of_the_one_before(
    place: Installation,
):
    """The subject may have consented with another account: the token before is that other one's."""
    place.idp.script(raw(json.dumps({**place.idp.grant(), "id_token": "no.id-token"}).encode(), 200, JSON))
    connection = await place.connect()
    place.idp.script(raw(json.dumps({**BARE, "expires_in": 3600}).encode(), 200, JSON))
    await place.consent(connection)
    await place.until(connection, lambda row: row.generation == 2)
    row, grant = await place.grant(connection)
    async with place.store.read() as tx:
        kept = await tx.grants.refresh_token(row), await tx.grants.id_token(row)
    async with place.api() as http:
        report = {"generation": 2, "reason": "unauthorized"}
        answer = await http.post(f"/v1/connections/{connection.id}/refresh", json=report)
    assert (answer.status_code, answer.json().get("generation")) == (200, 2), answer.text
    assert place.idp.count("token", grant_type="refresh_token") == 0
    assert (kept, grant.refreshable) == ((None, None), False)


async def test_an_interim_token_that_nothing_exchanges_is_not_tried_without_a_pause(place: Installation):
    """Its definition has lost the exchange: what it holds is all there is."""
    place.idp.script(raw(json.dumps(BARE).encode(), 200, JSON))
    connection = await place.connect()
    row, grant = await place.grant(connection)
    interim = grant.model_copy(update={"generation": 2, "short_lived": True})
    tokens = TokenSet(access_token=Secret("at-2"))
    await place.install(interim, tokens, row.refreshed(row.changed_at), Origin.REFRESH)
    news = await Activities(place).refresh(connection, 2)
    assert (news.failure, news.generation, news.not_leased) == (None, 2, False)
