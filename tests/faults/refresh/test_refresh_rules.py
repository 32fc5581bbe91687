"""What a connection's refreshes go by: the definition of now, the admin's word, the operator's settings."""

import base64
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.support.context_loader import ProviderContextLoader
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.definition import DefinitionState, Rollout
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.connection import ConnectionStart, ConnectionState
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import STRICT, TENANT, Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok


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
        life = begun_with((await running.fetch_history()).to_json_dict()["events"])
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
