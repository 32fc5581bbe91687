"""The client against the real platform and a real authorization server, from consent to revocation."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant, ConsentRequired, Evergrant, Lease, ReconnectNeeded, State
from evergrant.temporal import EvergrantPlugin
from evergrant.temporal.workflow import EnsureToken
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.worker import Worker

from examples.demo.authorization_server import AuthorizationServer
from tests.e2e.world import COMMAND, World, at, running
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.unit.client.temporal_stand_ins import Waits

ROOT = Path(__file__).parents[3]
TOKEN_S = 8
ALICE = ("crm", "alice")


class ClientWorld(World):
    """With a real server, whose integration is called crm."""

    server: AuthorizationServer

    @property
    def target(self) -> dict[str, Any]:
        return {"url": self.platform.api, "api_key": self.key}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ClientWorld]:
    (tmp_path / "as").mkdir()
    seconds = ("--access-token-seconds", str(TOKEN_S), "--grace", "120")
    actions = ("token", "connect", "admin")
    async with (
        running_authorization_server(tmp_path / "as", *seconds) as server,
        running(ClientWorld, tmp_path / "data", server.issuer, actions=actions) as world,
    ):
        body = at(server, refresh={"rotation": "grace", "grace_s": 120})
        made = await world.integration("crm", body)
        await server.register(made["redirect_uri"])
        world.server = server
        yield world


def five_lines() -> str:
    """The README's program, with what it leaves out."""
    text = (ROOT / "README.md").read_text().partition("## Five lines of Python")[2]
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    said = program[1].replace("...  # call", "print('token', len(token))  # call", 1)
    return said.replace("...  # send", "print('open', url)  # send", 1)


async def test_from_consent_to_revocation_through_the_client(world: ClientWorld):
    status, out, err = await world.run(sys.executable, "-c", five_lines())
    assert (status, out.split()[0], err) == (0, "open", "")

    with Evergrant(**world.target) as blocking:
        needed = await asyncio.to_thread(blocking.lease, *ALICE)
        assert isinstance(needed, ConsentRequired)
        with pytest.raises(ReconnectNeeded) as missing:
            await asyncio.to_thread(blocking.token, *ALICE)
        assert missing.value.connection_id == needed.connection_id

        landing = await world.server.scripted_consent(needed.connect_url)
        assert landing.response is not None
        assert landing.response.status_code == 200
        waited = await asyncio.to_thread(
            blocking.wait_for_consent, needed.connection_id, timedelta(seconds=30)
        )
        assert waited.state is State.ACTIVE

        lease = await asyncio.to_thread(blocking.lease, *ALICE)
        assert isinstance(lease, Lease)
        assert (await world.server.whoami(lease.access_token)).json()["scopes"] == ["read"]
        assert blocking.lease(*ALICE) is lease  # from the cache: on this thread, without a request
        await step_up(world, blocking)

    status, out, err = await world.run(sys.executable, "-c", five_lines())
    assert (status, out.split()[0], err) == (0, "token", "")
    await asynchronously(world, needed.connection_id)


async def step_up(world: ClientWorld, blocking: Evergrant) -> None:
    """A scope beyond the grant: the subject consents to it, and the connection has both."""

    def wider() -> Lease | ConsentRequired:
        return blocking.lease(*ALICE, scopes=("write",))

    needed = await asyncio.to_thread(wider)
    assert isinstance(needed, ConsentRequired)
    assert needed.missing_scopes == ("write",)
    await world.server.scripted_consent(needed.connect_url)
    leased = await eventually(lambda: asyncio.to_thread(wider), lambda it: isinstance(it, Lease))
    assert isinstance(leased, Lease)
    assert leased.connection_id == needed.connection_id
    assert set((await world.server.whoami(leased.access_token)).json()["scopes"]) == {"read", "write"}


async def asynchronously(world: ClientWorld, connection_id: str) -> None:
    started = datetime.now(UTC)
    # this client's clock stands still, so that it hands out a token that the resource refuses
    async with AsyncEvergrant(**world.target, clock=lambda: started) as client:
        first = await client.lease(*ALICE)
        assert isinstance(first, Lease)
        await eventually(lambda: world.server.whoami(first.access_token), lambda it: it.status_code == 401)
        assert await client.lease(*ALICE) is first

        auth = client.auth(*ALICE, origins=world.server.issuer)
        async with httpx2.AsyncClient(auth=auth, trust_env=False, timeout=PATIENCE_S) as http:
            url = f"{world.server.issuer}/api/whoami"
            answers = await asyncio.gather(*(http.get(url) for _ in range(5)))
        assert [it.status_code for it in answers] == [200] * 5
        second = await client.lease(*ALICE)
        assert isinstance(second, Lease)
        assert second.generation > first.generation
        late = await client.report_refused(connection_id, first.generation)
        assert late.generation >= second.generation, "who reports an older one is given the newer"

        await compared(world, connection_id)
        assert (await client.revoke(connection_id, "the test is over")).state is State.REVOKING
        with pytest.raises(ReconnectNeeded):
            await client.token(*ALICE)
        await eventually(lambda: client.connection(connection_id), lambda it: it.state is State.REVOKED)
        assert "lease.issued" in [it.action async for it in client.audit(connection_id)]
    assert await world.server.introspect(second.access_token) == {"active": False}


async def test_a_workflow_of_another_namespace_waits_for_a_consent_and_goes_on(world: ClientWorld):
    """Its worker is the plugin's alone: it asks the API, and no workflow of Evergrant's namespace."""

    async def give(wanted: EnsureToken, required: ConsentRequired) -> None:
        await world.server.scripted_consent(required.connect_url)

    client = await Client.connect(world.platform.temporal, namespace="agents")
    kept = Duration(seconds=86_400)
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace="agents", workflow_execution_retention_period=kept)
    )
    plugin = EvergrantPlugin(**world.target, on_consent_required=give)
    async with Worker(client, task_queue="users", workflows=[Waits], plugins=[plugin]):
        ready = await client.execute_workflow(
            Waits.run, args=[["read"], PATIENCE_S], id="waits", task_queue="users"
        )
    assert (ready.generation, ready.scopes) == (1, ("read",))


async def compared(world: ClientWorld, connection_id: str) -> None:
    """`connections get --live` says what the workflow says; a wrong key is one line."""
    status, out, err = await world.run(COMMAND, "connections", "get", connection_id, "--live", "-o", "json")
    assert (status, err) == (0, "")
    shown = json.loads(out)
    assert shown["live"]["state"] == "active"
    assert "state" not in shown["differs"]
    status, out, err = await world.run("env", "EVERGRANT_API_KEY=evg_wrong", COMMAND, "token", *ALICE)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("evergrant: unauthenticated: ")
