"""A provider's definition is proposed, checked, approved and rolled out under load: no refresh fails.

Worker, Temporal, store and TLS are real; the provider has one good and one bad new token endpoint.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from evergrant_server.api.integrations import definitions
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.definition import CheckLevel, Definition, DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.integrations import DefinitionDecided
from evergrant_server.core.messages.names import SignalName, definition_rollout_workflow_id
from evergrant_server.core.single_use.attempt import AttemptOutcome
from tests.conformance.store.samples import an_attempt
from tests.fakes.certificates import LoopbackTls
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, status
from tests.fakes.rows import a_definition

# a stage without a length is held at its first look when no refresh has been seen by then
QUICK = Rollout(shares=(0.5, 1.0), stage_s=1, enough=12, most_bad=0.1)


def document(place: Installation, token: str = "token") -> dict[str, Any]:
    return place.document(name="acme-crm", token_endpoint=place.idp.url(token), pkce="S256")


class RolloutDriver:
    """Writes what the API writes for a version of a definition, and waits for the workflow's effect."""

    def __init__(self, place: Installation) -> None:
        self._place = place

    async def propose(self, document: dict[str, Any], rollout: Rollout = QUICK) -> Definition:
        now, name = self._place.parts.clock.now(), document["name"]
        async with self._place.store.write() as tx:
            said = {"version": await tx.definitions.next_version(TENANT, name), "rollout": rollout}
            new = {"state": DefinitionState.CHECKING, "share": 0.0}
            definition = a_definition(TENANT, document, now, **said, **new)
            await tx.definitions.add(definition)
            await tx.outbox.add(definitions.rollout_start_message(definition, ASKED, now))
        self._place.parts.relay.notify()
        return await self.until(definition, lambda it: it.state is not DefinitionState.CHECKING)

    async def decide(self, definition: Definition, *, approved: bool) -> None:
        now = self._place.parts.clock.now()
        async with self._place.store.write() as tx:
            decided = definition.with_decision("app:admin", "looked at it", now, approved=approved)
            saved = await tx.definitions.replace(decided, expected=definition.revision)
            await definitions.signal_rollout(
                tx, saved, SignalName.DEFINITION_DECIDED, DefinitionDecided(context=ASKED), now
            )
        self._place.parts.relay.notify()

    async def until(self, definition: Definition, condition: Callable[[Definition], bool]) -> Definition:
        async def read() -> Definition:
            async with self._place.store.read() as tx:
                found = await tx.definitions.get(TENANT, definition.id)
            assert found is not None
            return found

        return await eventually(read, condition)

    async def active(self, document: dict[str, Any]) -> Definition:
        proposed = await self.propose(document)
        assert proposed.state is DefinitionState.WAITING, proposed.findings
        await self.decide(proposed, approved=True)
        return await self.until(proposed, lambda it: it.state is DefinitionState.ACTIVE)


async def connections_of(place: Installation, number: int) -> list[Connection]:
    nothing_read = {"endpoints": None, "issuer": None}
    return await place.fleet(await place.integration(STRICT, provider="acme-crm", **nothing_read), number)


async def kept_fresh(
    place: Installation, connection: Connection, stop: asyncio.Event
) -> list[ErrorCode | None]:
    """Refresh one connection again and again, as a busy pipeline would."""
    said: list[ErrorCode | None] = []
    while not stop.is_set():
        said.append((await place.ensure_fresh(connection, len(said) + 1)).problem)
        await asyncio.sleep(0.1)  # its step with the token
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


@pytest.mark.soak
async def test_a_token_endpoint_moves_under_load_without_a_failed_refresh(place: Installation):
    place.idp.aliases["v2/token"] = "token"
    driver = RolloutDriver(place)
    first = await driver.active(document(place))
    connections = await connections_of(place, 6)
    proposed = await driver.propose(document(place, "v2/token"))
    await driver.decide(proposed, approved=True)
    moved, said = await under_load(
        place, connections, driver.until(proposed, lambda it: not it.state.in_progress)
    )
    assert moved.state is DefinitionState.ACTIVE
    assert len(said) >= 12
    assert set(said) == {None}
    assert (await driver.until(first, lambda it: True)).state is DefinitionState.REPLACED
    before = sum(call.target.startswith("/v2/") for call in place.idp.calls)
    await place.ensure_fresh(connections[0], (await place.row(connections[0])).generation)
    assert sum(call.target.startswith("/v2/") for call in place.idp.calls) == before + 1


async def test_an_endpoint_that_refuses_every_grant_is_rolled_back_and_ends_none(place: Installation):
    """The worst replacement: it calls living grants dead, in the words of RFC 6749 section 5.2."""
    driver = RolloutDriver(place)
    await driver.active(document(place))
    connections = await connections_of(place, 6)
    place.idp.script(*[error("invalid_grant") for _ in range(500)], at="broken")
    proposed = await driver.propose(document(place, "broken"))
    assert proposed.state is DefinitionState.WAITING
    await driver.decide(proposed, approved=True)
    moved, said = await under_load(
        place, connections, driver.until(proposed, lambda it: not it.state.in_progress)
    )
    assert moved.state is DefinitionState.ROLLED_BACK
    assert "worked only with the earlier version" in (moved.reason or "")
    assert set(said) == {None}
    assert [(await place.row(it)).state for it in connections] == [LifecycleState.ACTIVE] * 6
    tried = place.idp.count("broken")
    await place.ensure_fresh(connections[0], (await place.row(connections[0])).generation)
    assert place.idp.count("broken") == tried


async def test_a_url_without_a_token_endpoint_cannot_be_approved(place: Installation):
    proposed = await RolloutDriver(place).propose(document(place, "nowhere"))
    assert proposed.state is DefinitionState.UNSOUND
    wrong = [it for it in proposed.findings if it.level is CheckLevel.PROBLEM]
    assert [it.check for it in wrong] == ["token_endpoint"]
    assert "404" in wrong[0].detail


async def test_a_terminated_rollout_is_resumed_by_reconcile(place: Installation):
    """Its workflow is terminated before the decision, and the decision finds none; reconcile mends it."""
    driver = RolloutDriver(place)
    proposed = await driver.propose(document(place))
    handle = place.parts.client.get_workflow_handle(definition_rollout_workflow_id(TENANT, proposed.id))
    await handle.terminate()
    now = place.parts.clock.now()
    async with place.store.write() as tx:
        decided = proposed.with_decision("app:admin", "looked at it", now, approved=True)
        await tx.definitions.replace(decided, expected=proposed.revision)
    await place.parts.reconciler.reconcile_all()
    await driver.until(proposed, lambda it: it.state is DefinitionState.ACTIVE)


STAYS_STAGED = Rollout(shares=(0.999999, 1.0), stage_s=3600, most_bad=1)  # for practically every connection


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    return ScriptedProvider(tls=tls, expires_in=8)


async def staged(place: Installation, **wrong: Any) -> tuple[RolloutDriver, Definition, Connection]:
    """A connection that a good definition connected, and a staged one that is wrong about something."""
    driver = RolloutDriver(place)
    good = document(place) | {"revocation_endpoint": place.idp.url("revoke")}
    await driver.active(good)
    (connection,) = await connections_of(place, 1)
    proposed = await driver.propose(
        {name: value for name, value in (good | wrong).items() if value is not None}, STAYS_STAGED
    )
    assert proposed.state is DefinitionState.WAITING, proposed.findings
    await driver.decide(proposed, approved=True)
    proposed = await driver.until(proposed, lambda it: it.state is DefinitionState.STAGED)
    return driver, proposed, connection


WRONG = {
    "it reads the token where none is": {"response": {"access_token_path": "data.token"}},
    "it says that nothing can be refreshed": {"refresh_supported": False},
    "it needs a parameter that no integration has": {
        "token_endpoint": "https://{region}.api.example/token",
        "template_params": {"region": {"pattern": "^[a-z]{2}$"}},
    },
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_refreshes_fall_back_and_count_against_the_staged_version(place: Installation, wrong: str):
    driver, version, connection = await staged(place, **WRONG[wrong])
    for generation in (1, 2, 3):
        fresh = await place.ensure_fresh(connection, generation)
        assert (fresh.problem, fresh.generation) == (None, generation + 1)
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    counted = await driver.until(version, lambda it: it.failed >= 3)
    assert counted.succeeded == 0


async def test_an_open_breaker_of_the_staged_endpoint_leaves_the_previous_one_usable(place: Installation):
    place.idp.script(*[status(500) for _ in range(100)], at="broken")
    _, _, connection = await staged(place, token_endpoint=place.idp.url("broken"))
    await place.change_integration(connection, refresh=NEVER_ROTATES)
    before = place.idp.count("broken")
    for generation in range(1, 10):
        assert (await place.ensure_fresh(connection, generation)).problem is None
    assert place.idp.count("broken") - before < 9, "its circuit opened"


async def test_a_staged_endpoints_refusal_does_not_end_a_grant_sent_before(place: Installation):
    """The outcome of an earlier use is unknown, and the staged endpoint refuses every grant."""
    place.idp.script(*[error("invalid_grant") for _ in range(100)], at="broken")
    _, _, connection = await staged(place, token_endpoint=place.idp.url("broken"))
    async with place.store.write() as tx:
        lost = an_attempt(await place.row(connection))
        await tx.attempts.open(lost)
        await tx.attempts.close(lost, AttemptOutcome.SUPERSEDED, place.parts.clock.now())
    fresh = await place.ensure_fresh(connection, 1)
    assert (fresh.problem, fresh.generation) == (None, 2)
    assert (await place.row(connection)).state is LifecycleState.ACTIVE


async def test_a_staged_endpoint_never_gets_the_last_send_of_a_token(place: Installation):
    """Its 500 may have followed a commit, so a token that rotates strictly is sent once more at most."""
    place.idp.script(*[status(500) for _ in range(100)], at="broken")
    _, _, connection = await staged(place, token_endpoint=place.idp.url("broken"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REFRESH_PENDING
    row = await place.until(
        connection, lambda it: it.generation == 2 or it.state is not LifecycleState.ACTIVE, 40
    )
    assert row.state is LifecycleState.ACTIVE


async def test_a_staged_definition_without_a_revocation_endpoint_is_not_trusted(place: Installation):
    _, _, connection = await staged(place, revocation_endpoint=None)
    row = await place.revoked(connection)
    assert row.revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in place.idp.families if family.used or family.access_tokens)
