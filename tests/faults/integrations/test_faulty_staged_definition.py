"""A staged definition that is wrong in ways that no status code shows costs no grant."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.definition import Definition, DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import IntegrationId
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import AttemptOutcome
from tests.conformance.store.samples import an_attempt
from tests.fakes.certificates import loopback_tls
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, status
from tests.faults.integrations.test_definition_rollout import RolloutDriver, connections_of, document

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)
STAYS_STAGED = Rollout(shares=(0.999999, 1.0), stage_s=3600, most_bad=1)  # for practically every connection


@pytest_asyncio.fixture
async def idp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedProvider]:
    tls = loopback_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authorities))
    async with ScriptedProvider(tls=tls, expires_in=8) as provider:
        yield provider


async def staged(
    place: Installation, idp: ScriptedProvider, **wrong: Any
) -> tuple[RolloutDriver, Definition, Connection]:
    """A connection that a good definition connected, and a staged one that is wrong about something."""
    driver = RolloutDriver(place)
    good = document(idp) | {"revocation_endpoint": idp.url("revoke")}
    await driver.active(good)
    (connection,) = await connections_of(place, idp, 1)
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
async def test_refreshes_fall_back_and_count_against_the_staged_version(
    place: Installation, idp: ScriptedProvider, wrong: str
):
    driver, version, connection = await staged(place, idp, **WRONG[wrong])
    for generation in (1, 2, 3):
        fresh = await place.ensure_fresh(connection, generation)
        assert (fresh.problem, fresh.generation) == (None, generation + 1)
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    counted = await driver.until(version, lambda it: it.failed >= 3)
    assert counted.succeeded == 0


async def test_an_open_breaker_of_the_staged_endpoint_leaves_the_previous_one_usable(
    place: Installation, idp: ScriptedProvider
):
    idp.script(*[status(500) for _ in range(100)], at="broken")
    _, _, connection = await staged(place, idp, token_endpoint=idp.url("broken"))
    async with place.store.write() as tx:
        held = await tx.integrations.get(TENANT, IntegrationId(connection.integration_id))
        assert held is not None
        lenient = held.model_copy(update={"refresh": NEVER_ROTATES})
        await tx.integrations.put(lenient, None, expected=held.revision)
    before = idp.count("broken")
    for generation in range(1, 10):
        assert (await place.ensure_fresh(connection, generation)).problem is None
    assert idp.count("broken") - before < 9, "its circuit opened"


async def test_a_staged_endpoints_refusal_does_not_end_a_grant_sent_before(
    place: Installation, idp: ScriptedProvider
):
    """The outcome of an earlier use is unknown, and the staged endpoint refuses every grant."""
    idp.script(*[error("invalid_grant") for _ in range(100)], at="broken")
    _, _, connection = await staged(place, idp, token_endpoint=idp.url("broken"))
    async with place.store.write() as tx:
        lost = an_attempt(await place.row(connection))
        await tx.attempts.open(lost)
        await tx.attempts.close(lost, AttemptOutcome.SUPERSEDED, place.parts.clock.now())
    fresh = await place.ensure_fresh(connection, 1)
    assert (fresh.problem, fresh.generation) == (None, 2)
    assert (await place.row(connection)).state is LifecycleState.ACTIVE


async def test_a_staged_endpoint_never_gets_the_last_send_of_a_token(
    place: Installation, idp: ScriptedProvider
):
    """Its 500 may have followed a commit, so a token that rotates strictly is sent once more at most."""
    idp.script(*[status(500) for _ in range(100)], at="broken")
    _, _, connection = await staged(place, idp, token_endpoint=idp.url("broken"))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REFRESH_PENDING
    row = await place.until(
        connection, lambda it: it.generation == 2 or it.state is not LifecycleState.ACTIVE, 40
    )
    assert row.state is LifecycleState.ACTIVE


async def test_a_staged_definition_without_a_revocation_endpoint_is_not_trusted(
    place: Installation, idp: ScriptedProvider
):
    _, _, connection = await staged(place, idp, revocation_endpoint=None)
    await place.revoke(connection)
    row = await place.until(connection, lambda it: it.state is LifecycleState.REVOKED)
    assert row.revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in idp.families if family.used or family.access_tokens)
