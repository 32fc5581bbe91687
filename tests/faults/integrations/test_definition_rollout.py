"""A provider's definition is proposed, checked, approved and rolled out under load: no refresh fails.

Worker, Temporal, store and TLS are real; the provider has one good and one bad new token endpoint.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.api.integrations import definition_rollout
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.definition import CheckLevel, Definition, DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import DefinitionId, IntegrationId, new_id
from evergrant_server.core.integrations import Integration, RefreshRules, Rotation
from evergrant_server.core.messages.base import SignalName, definition_rollout_workflow_id
from evergrant_server.core.messages.definition_rollout import DefinitionDecided
from evergrant_server.core.secret import Secret
from tests.fakes.certificates import loopback_tls
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error

STRICT = RefreshRules(rotation=Rotation.STRICT)
# a stage without a length is held at its first look when no refresh has been seen by then
QUICK = Rollout(shares=(0.5, 1.0), stage_s=1, enough=12, most_bad=0.1)


@pytest_asyncio.fixture
async def idp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedProvider]:
    tls = loopback_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authorities))
    async with ScriptedProvider(tls=tls) as provider:
        yield provider


def document(idp: ScriptedProvider, token: str = "token") -> dict[str, Any]:
    return {
        "name": "acme-crm",
        "display_name": "Acme CRM",
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": idp.url("authorize"),
        "token_endpoint": idp.url(token),
        "pkce": "S256",
        "refresh_rotates": True,
    }


class RolloutDriver:
    """Writes what the API writes for a version of a definition, and waits for the workflow's effect."""

    def __init__(self, place: Installation) -> None:
        self._place = place

    async def propose(self, document: dict[str, Any], rollout: Rollout = QUICK) -> Definition:
        now = self._place.parts.clock.now()
        async with self._place.store.write() as tx:
            definition = Definition(
                tenant=TENANT,
                id=DefinitionId(new_id("def")),
                name=document["name"],
                version=await tx.definitions.next_version(TENANT, document["name"]),
                document=document,
                rollout=rollout,
                proposed_by=ASKED.by,
                created_at=now,
                changed_at=now,
            )
            await tx.definitions.add(definition)
            await tx.outbox.add(definition_rollout.rollout_start_message(definition, ASKED, now))
        self._place.parts.relay.notify()
        return await self.until(definition, lambda it: it.state is not DefinitionState.CHECKING)

    async def decide(self, definition: Definition, *, approved: bool) -> None:
        now = self._place.parts.clock.now()
        async with self._place.store.write() as tx:
            decided = definition.with_decision("app:admin", "looked at it", now, approved=approved)
            saved = await tx.definitions.replace(decided, expected=definition.revision)
            await definition_rollout.signal_rollout(
                tx, saved, SignalName.DEFINITION_DECIDED, DefinitionDecided(context=ASKED), ASKED, now
            )
        self._place.parts.relay.notify()

    async def until(self, definition: Definition, condition: Callable[[Definition], bool]) -> Definition:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self._place.store.read() as tx:
                    found = await tx.definitions.get(TENANT, definition.id)
                assert found is not None
                if condition(found):
                    return found
                await asyncio.sleep(0.05)

    async def active(self, document: dict[str, Any]) -> Definition:
        proposed = await self.propose(document)
        assert proposed.state is DefinitionState.WAITING, proposed.findings
        await self.decide(proposed, approved=True)
        return await self.until(proposed, lambda it: it.state is DefinitionState.ACTIVE)


async def connections_of(place: Installation, idp: ScriptedProvider, number: int) -> list[Connection]:
    now = place.parts.clock.now()
    integration = Integration(
        tenant=TENANT,
        id=IntegrationId(new_id("int")),
        name="crm",
        provider="acme-crm",
        client_id=idp.client_id,
        default_scopes=("read",),
        refresh=STRICT,
        created_at=now,
        changed_at=now,
    )
    async with place.store.write() as tx:
        await tx.integrations.put(integration, Secret(idp.client_secret), expected=None)
    begun = [await place.begin(integration, subject=f"user-{n}") for n in range(number)]
    for connection in begun:
        await place.consent(idp, integration, connection)
    return [await place.until(it, lambda c: c.state is LifecycleState.ACTIVE) for it in begun]


async def kept_fresh(
    place: Installation, connection: Connection, stop: asyncio.Event
) -> list[ErrorCode | None]:
    """Refresh one connection again and again, as a busy pipeline would."""
    said: list[ErrorCode | None] = []
    while not stop.is_set():
        said.append((await place.ensure_fresh(connection, len(said) + 1)).problem)
    return said


async def under_load(
    place: Installation, connections: list[Connection], work: Any
) -> tuple[Definition, list[ErrorCode | None]]:
    """What `work` gives, and what every refresh meanwhile said."""
    stop = asyncio.Event()
    running = [asyncio.create_task(kept_fresh(place, it, stop)) for it in connections]
    try:
        done = await work
    finally:
        stop.set()
        said = [problem for one in await asyncio.gather(*running) for problem in one]
    return done, said


async def test_a_token_endpoint_moves_under_load_without_a_failed_refresh(
    place: Installation, idp: ScriptedProvider
):
    idp.aliases["v2/token"] = "token"
    driver = RolloutDriver(place)
    first = await driver.active(document(idp))
    connections = await connections_of(place, idp, 6)
    proposed = await driver.propose(document(idp, "v2/token"))
    await driver.decide(proposed, approved=True)
    moved, said = await under_load(
        place, connections, driver.until(proposed, lambda it: not it.state.in_progress)
    )
    assert moved.state is DefinitionState.ACTIVE
    assert len(said) >= 12
    assert set(said) == {None}
    assert (await driver.until(first, lambda it: True)).state is DefinitionState.REPLACED
    before = sum(call.target.startswith("/v2/") for call in idp.calls)
    await place.ensure_fresh(connections[0], (await place.row(connections[0])).generation)
    assert sum(call.target.startswith("/v2/") for call in idp.calls) == before + 1


async def test_an_endpoint_that_refuses_every_grant_is_rolled_back_and_ends_none(
    place: Installation, idp: ScriptedProvider
):
    """The worst replacement: it calls living grants dead, in the words of RFC 6749 section 5.2."""
    driver = RolloutDriver(place)
    await driver.active(document(idp))
    connections = await connections_of(place, idp, 6)
    idp.script(*[error("invalid_grant") for _ in range(500)], at="broken")
    proposed = await driver.propose(document(idp, "broken"))
    assert proposed.state is DefinitionState.WAITING
    await driver.decide(proposed, approved=True)
    moved, said = await under_load(
        place, connections, driver.until(proposed, lambda it: not it.state.in_progress)
    )
    assert moved.state is DefinitionState.ROLLED_BACK
    assert "worked only with the earlier version" in (moved.reason or "")
    assert set(said) == {None}
    assert [(await place.row(it)).state for it in connections] == [LifecycleState.ACTIVE] * 6
    tried = idp.count("broken")
    await place.ensure_fresh(connections[0], (await place.row(connections[0])).generation)
    assert idp.count("broken") == tried


async def test_a_url_without_a_token_endpoint_cannot_be_approved(place: Installation, idp: ScriptedProvider):
    proposed = await RolloutDriver(place).propose(document(idp, "nowhere"))
    assert proposed.state is DefinitionState.UNSOUND
    wrong = [it for it in proposed.findings if it.level is CheckLevel.PROBLEM]
    assert [it.check for it in wrong] == ["token_endpoint"]
    assert "404" in wrong[0].detail


async def test_a_rejected_version_never_serves_and_all_of_it_is_on_record(
    place: Installation, idp: ScriptedProvider
):
    driver = RolloutDriver(place)
    proposed = await driver.propose(document(idp))
    await driver.decide(proposed, approved=False)
    ended = await driver.until(proposed, lambda it: not it.state.in_progress)
    assert (ended.state, ended.reason) == (DefinitionState.REJECTED, "looked at it")
    async with place.store.read() as tx:
        assert await tx.definitions.serving(TENANT, "acme-crm") == []
    assert await place.actions_on(proposed.id) == [
        AuditAction.DEFINITION_CHECKED,
        AuditAction.DEFINITION_REJECTED,
    ]


async def test_a_terminated_rollout_is_resumed_by_reconcile(place: Installation, idp: ScriptedProvider):
    """Its workflow is terminated before the decision, and the decision finds none; reconcile mends it."""
    driver = RolloutDriver(place)
    proposed = await driver.propose(document(idp))
    handle = place.parts.client.get_workflow_handle(definition_rollout_workflow_id(TENANT, proposed.id))
    await handle.terminate()
    now = place.parts.clock.now()
    async with place.store.write() as tx:
        decided = proposed.with_decision("app:admin", "looked at it", now, approved=True)
        await tx.definitions.replace(decided, expected=proposed.revision)
    await place.parts.reconciler.reconcile_all()
    await driver.until(proposed, lambda it: it.state is DefinitionState.ACTIVE)
