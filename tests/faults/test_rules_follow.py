"""What a connection's refreshes go by: the definition of now, the admin's word, the operator's settings."""

from dataclasses import replace
from typing import Any

import pytest

from activities.holdings import Holder
from evergrant_server.core.connection import Connection
from evergrant_server.core.definition import Definition, DefinitionState, Rollout
from evergrant_server.core.ids import DefinitionId, new_id
from evergrant_server.core.provider import RefreshRules, Rotation
from tests.fakes.installation import TENANT, Installation
from tests.fakes.scripted_provider import ScriptedProvider


async def version(
    place: Installation, idp: ScriptedProvider, number: int, state: DefinitionState, **says: Any
) -> None:
    now = place.parts.clock.now()
    document = {
        "name": "acme-crm",
        "display_name": "Acme CRM",
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": "https://crm.acme.example/authorize",
        "token_endpoint": "https://crm.acme.example/token",
        **says,
    }
    definition = Definition(
        tenant=TENANT, id=DefinitionId(new_id("def")), name="acme-crm", version=number, document=document,
        state=state, share=1.0, rollout=Rollout(), approved=True, proposed_by="app:admin",
        created_at=now, changed_at=now,
    )  # fmt: skip
    async with place.store.write() as tx:
        await tx.definitions.add(definition)


async def connection_of(
    place: Installation, idp: ScriptedProvider, said: dict[str, Any] | None
) -> Connection:
    written = await place.integration(idp, RefreshRules(rotation=Rotation.STRICT))
    changed = written.model_copy(update={"provider": "acme-crm", "endpoints": None, "refresh_said": said})
    async with place.store.write() as tx:
        kept = await tx.integrations.put(changed, None, expected=written.revision)
    return await place.begin(kept)


async def rules_for(place: Installation, connection: Connection) -> RefreshRules:
    holder = Holder(place.store, place.parts.registry, "https://evergrant.example", place.parts.clock)
    return (await holder.take(TENANT, connection.id)).integration.refresh


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        ({}, Rotation.STRICT, Rotation.NONE),
        ({"rotation": "grace", "grace_s": 5.0}, Rotation.GRACE, Rotation.GRACE),
        (None, Rotation.STRICT, Rotation.STRICT),  # of before it was kept what was said
    ],
)
async def test_refresh_rules_follow_the_definition_and_the_admin_s_word_stays(
    place: Installation,
    idp: ScriptedProvider,
    said: dict[str, Any] | None,
    before: Rotation,
    after: Rotation,
):
    await version(place, idp, 1, DefinitionState.ACTIVE, refresh_rotates=True)
    connection = await connection_of(place, idp, said)
    assert (await rules_for(place, connection)).rotation is before
    await version(place, idp, 2, DefinitionState.STAGED, refresh_rotates=False)
    assert (await rules_for(place, connection)).rotation is before  # it isn't relied on yet
    await version(place, idp, 3, DefinitionState.ACTIVE, refresh_rotates=False)
    assert (await rules_for(place, connection)).rotation is after


async def test_the_days_of_an_announcement_come_with_the_facts_of_a_grant(
    place: Installation, idp: ScriptedProvider
):
    connection = await place.connect(idp)
    held = await Holder(
        place.store, place.parts.registry, "https://evergrant.example", place.parts.clock, (9, 2)
    ).take(TENANT, connection.id)
    assert held.grant is not None
    assert held.news(held.connection, held.grant).announce_days == (9, 2)
    unset = replace(held, announce_days=None)
    assert unset.news(held.connection, held.grant).announce_days is None
