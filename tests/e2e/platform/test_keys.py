"""Keys and stories on the running platform: commands about keys, their schedule, a run that was erased."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client

from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.jobs import ROTATE_DUE_KEYS
from evergrant_server.core.messages.names import connection_workflow_id
from tests.e2e.world import COMMAND, run
from tests.fakes.patience import eventually
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

SUBJECT, REASON = "ann@wonder.example", "Ann has left the company"

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform for all of them: it takes seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningPlatform]:
    folder = tmp_path_factory.mktemp("keys")
    async with (
        ScriptedProvider() as idp,
        running_temporal(folder) as temporal,
        running_platform(
            folder, temporal.address, allow=(idp.allowance,), env={"EVERGRANT_KEY_ROTATION": "PT1S"}
        ) as platform,
    ):
        await platform.integration("crm", idp)
        yield platform


async def imported(platform: RunningPlatform, subject: str) -> str:
    """The id of a connection with tokens."""
    tokens = {"access_token": "at-1", "refresh_token": "rt-1", "expires": "unknown"}
    item = {"integration": "crm", "subject": subject, **tokens}
    async with platform.client() as admin:
        answer = await admin.post("/v1/connections/import", json={"items": [item], "verify": False})
        assert answer.is_success, answer.text
        rows = (await admin.get("/v1/connections")).json()["items"]
    return next(row["id"] for row in rows if row["subject"] == subject)


async def key_ids(platform: RunningPlatform) -> dict[str, str]:
    async with platform.client() as admin:
        keys = (await admin.get("/v1/keys")).json()["keys"]
    return {key["purpose"]: key["key_id"] for key in keys if key["key_id"]}


async def client(platform: RunningPlatform, *words: str) -> Any:
    """A command of the client's, as JSON."""
    status, output, errors = await run(platform.url, platform.admin_key, COMMAND, *words, "-o", "json")
    assert status == 0, errors
    return json.loads(output)


async def test_a_tenants_keys_and_its_connections_by_the_client(platform: RunningPlatform):
    await imported(platform, "bob")
    before = {key["purpose"]: key for key in await client(platform, "keys", "status")}
    assert before["refresh"]["connection_keys"] >= 1
    for kind in ("tenant", "connection"):
        rotation = await client(platform, "keys", "rotate", kind)
        assert (rotation["done"], rotation["left"]) == (True, 0)
        assert rotation["replaced"] >= 1
    after = {key["purpose"]: key for key in await client(platform, "keys", "status")}
    assert all(after[purpose]["key_id"] != key["key_id"] for purpose, key in before.items() if key["key_id"])
    for command in ("rewrap", "retire"):
        rotation = await client(platform, "keys", command, "connection")
        assert (rotation["command"], rotation["done"]) == (command, True)
    newest = {rotation["kind"]: rotation for rotation in await client(platform, "keys", "rotations")}
    assert (newest["tenant"]["command"], newest["connection"]["command"]) == ("rotate", "retire")
    status, _, errors = await run(platform.url, platform.admin_key, COMMAND, "keys", "pause", "tenant")
    assert status
    assert "No such rotation is running" in errors


async def test_an_apps_older_key_is_retired_by_the_client(platform: RunningPlatform):
    older = await platform.app("report", "crm", "token")
    newer = (await client(platform, "apps", "keys", "create", "report"))["key"]
    (secret,) = await client(platform, "keys", "secrets")
    assert (secret["kind"], secret["name"], secret["in_use"]) == ("app_key", "report", False)
    retired = await client(platform, "keys", "retire-secret", "app_key", "report")
    assert retired["key_id"] == secret["key_id"]
    assert await client(platform, "keys", "secrets") == []
    for key, status in ((older, 401), (newer, 200)):
        async with platform.caller(key) as http:
            assert (await http.get("/v1/connections")).status_code == status


async def test_roots_of_the_key_file_by_the_servers_commands(platform: RunningPlatform):
    await imported(platform, "carol")
    shown = json.loads(await platform.command("keys", "status", "-o", "json"))
    roots = {root["purpose"]: root for root in shown["roots"]}
    assert {root["state"] for root in roots.values()} == {"current"}
    assert roots["lease"]["tenant_keys"] >= 1
    assert {process["role"] for process in shown["processes"]} >= {"api", "worker"}
    rotation = json.loads(await platform.command("keys", "rewrap", "lease", "-o", "json"))
    assert rotation["progress"]["done"]
    assert rotation["progress"]["left"] == 0
    with pytest.raises(AssertionError, match="older backups open with them alone"):
        await platform.command("keys", "retire", "lease")


async def test_tenants_keys_are_rotated_when_they_are_due(platform: RunningPlatform):
    await imported(platform, "dora")
    before = await key_ids(platform)
    await asyncio.sleep(1.5)  # longer than EVERGRANT_KEY_ROTATION
    temporal = await Client.connect(platform.temporal)
    queue = platform.env["EVERGRANT_TEMPORAL_TASK_QUEUE"]
    await temporal.get_schedule_handle(f"{queue}:{ROTATE_DUE_KEYS.name}").trigger()
    after = await eventually(
        lambda: key_ids(platform), lambda ids: all(ids[purpose] != id for purpose, id in before.items())
    )
    assert after.keys() == before.keys()


def readable(history: str) -> str:
    """All of a history that can be read without a key."""
    data = re.findall(r'"data": ?"([A-Za-z0-9+/=]*)"', history)
    return history + "".join(base64.b64decode(text).decode(errors="replace") for text in data)


async def test_an_erased_run_says_nothing_in_temporal(platform: RunningPlatform):
    connection = await imported(platform, SUBJECT)
    temporal = await Client.connect(platform.temporal)
    handle = temporal.get_workflow_handle(connection_workflow_id(Tenant("default"), ConnectionId(connection)))
    async with platform.client() as admin:
        revoke = {"reason": REASON}
        assert (await admin.post(f"/v1/connections/{connection}/revoke", json=revoke)).is_success
        path = f"/v1/connections/{connection}"
        await eventually(lambda: admin.get(path), lambda answer: answer.json()["state"] == "revoked")
        history = await eventually(handle.fetch_history, lambda history: bool(history.events))
        opened = await decoded(platform, history.to_json())
        assert REASON in opened, "before the erasure an admin reads the story"
        ordered = await admin.post("/v1/erasures", json={"connection_id": connection, "reason": "INC-9"})
        assert ordered.is_success, ordered.text
        erasure = f"/v1/erasures/{ordered.json()['id']}"
        done = await eventually(lambda: admin.get(erasure), lambda answer: answer.json()["state"] == "done")
        assert done.json()["keys"] >= 1
        assert (await admin.get(f"{path}/history")).status_code == 404

    async def sealed() -> str:
        history = (await handle.fetch_history()).to_json()
        return readable(history) + await decoded(platform, history)

    story = await eventually(sealed, lambda text: REASON not in text)  # a process knows the key for a minute
    assert SUBJECT not in story
    assert connection in story, "ids stay"


async def decoded(platform: RunningPlatform, history: str) -> str:
    """What the codec server tells an admin of each payload in a history."""
    payloads: list[dict[str, Any]] = []

    def collect(value: Any) -> None:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            if name == "payloads":
                payloads.extend(part)
            elif isinstance(part, dict | list):
                collect(part)

    collect(json.loads(history))
    async with platform.client(**{"X-Namespace": "default"}) as admin:
        answer = await admin.post("/temporal/decode", json={"payloads": payloads})
    assert answer.is_success, answer.text
    return "".join(
        base64.b64decode(payload.get("data", "")).decode(errors="replace")
        for payload in answer.json()["payloads"]
    )
