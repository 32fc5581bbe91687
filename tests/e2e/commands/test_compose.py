"""What docker-compose.yml says our services run, run here: from an empty database to a lease (`make soak`).

The short form is what runs before them and decides what each may do: secrets, keys, schema and roles.
"""

import json
import re
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from examples.demo.evergrant_api import EvergrantApi
from examples.demo.subject import Subject
from tests.e2e.world import at
from tests.fakes.key_services.openbao import OpenBaoWorld
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.compose import Running
from tests.fakes.platform.docker import Site, answers, site
from tests.fakes.platform.warm import warm_python
from tests.fakes.providers.scripted_provider import ScriptedProvider


def passwords_in(folder: Path) -> set[str]:
    return {file.read_text(encoding="utf-8") for file in folder.glob("secrets*/database-password")}


def _forks(place: Site) -> dict[str, str]:
    return {"PATH": f"{warm_python()}:{place.compose.environment('init')['PATH']}"}


@pytest.mark.soak
async def test_init_gives_each_role_its_keys_and_password_and_changes_nothing_the_second_time(tmp_path: Path):
    async with ScriptedProvider() as idp, site(tmp_path, idp) as place:
        extra = place.own("init") | _forks(place)
        assert "search attributes, retention 365 d" in await place.compose.run("init", extra=extra)
        keys = (tmp_path / "keys/worker/keys.json").read_bytes()
        await place.compose.run("init", extra=extra)
        assert (tmp_path / "keys/worker/keys.json").read_bytes() == keys
        of_api = tmp_path / "keys/api/keys.json"
        purposes = (set(json.loads(it)["purposes"]) for it in (keys, of_api.read_bytes()))
        assert set.difference(*purposes) == {"refresh"}
        assert len(passwords_in(tmp_path)) == 6
        assert stat.S_IMODE(of_api.stat().st_mode) == 0o600
        assert set(json.loads((tmp_path / "keys/gateway/keys.json").read_bytes())["purposes"]) == {"lease"}


@pytest.mark.soak
async def test_the_services_of_the_file_serve_a_lease(tmp_path: Path):
    async with AsyncExitStack() as stack:
        idp = await stack.enter_async_context(ScriptedProvider())
        place = await stack.enter_async_context(site(tmp_path, idp))
        compose = place.compose
        await compose.run("init", extra=place.own("init"))
        assert compose.arguments("worker-2") == compose.arguments("worker-1")
        assert compose.environment("worker-2") == compose.environment("worker-1")
        started = [await _worker(place, stack, "worker-1"), await _api(place, stack)]
        started.append(await _gateway(place, stack))
        admin = await place.compose.run("worker-1", "keys", "bootstrap", extra=place.own("worker-1"))
        await lease_as_alice(place.port, idp, admin.strip(), stack)
        await _doctor_is_content(place)
        assert [await process.stop() for process in started] == [0, 0, 0]


@pytest.mark.soak
async def test_with_a_key_service_no_service_has_a_key_file_and_each_role_its_own_principal(tmp_path: Path):
    """By the page's `.env` and `compose.override.yaml`, with a real OpenBao at another address."""
    page = (Path(__file__).parents[3] / "docs/guide/operations.md").read_text(encoding="utf-8")
    (variables,) = re.findall(r"```\n(KEY_SERVICE=.*?)```", page, re.DOTALL)
    (override,) = re.findall(r"```yaml principals\n(.*?)```", page, re.DOTALL)
    async with AsyncExitStack() as stack:
        (tmp_path / "bao").mkdir()
        bao = await stack.enter_async_context(OpenBaoWorld.running(tmp_path / "bao"))
        idp = await stack.enter_async_context(ScriptedProvider())
        place = await stack.enter_async_context(site(tmp_path, idp))
        desk = tmp_path / "desk"
        for role in ("worker", "api", "gateway"):
            (desk / "principals" / role).mkdir(parents=True)
            (desk / "principals" / role / "token").write_text(await bao.principal(role))
        address = bao.url.partition("/transit")[0]
        assert "vault:https://vault.example:8200" in variables
        (desk / ".env").write_text(variables.replace("vault:https://vault.example:8200", address))
        (desk / "compose.override.yaml").write_text(override)
        forks = _forks(place)
        first = await place.compose.run("init", extra=place.own("init") | forks)
        assert "authority: authority_" in first
        await place.compose.run("init", extra=place.own("init") | forks)
        assert [path for path in (tmp_path / "keys").rglob("*") if path.is_file()] == []
        assert (await place.command(["compose", "start", "worker-1", "api", "gateway"], b"")).status == 0
        admin = await place.compose.run("worker-1", "keys", "bootstrap", extra=place.own("worker-1"))
        await lease_as_alice(place.port, idp, admin.strip(), stack)
        for service, role in {"worker-1": "worker", "api": "api", "gateway": "gateway"}.items():
            words = ("doctor", "--role", role, "-o", "json")
            findings = json.loads(await place.compose.run(service, *words, extra=place.own(service)))
            assert [finding for finding in findings if not finding["ok"]] == []


async def _worker(place: Site, stack: AsyncExitStack, name: str) -> Running:
    process = await place.compose.start(name, place.folder / f"{name}.log", place.own(name))
    stack.push_async_callback(process.stop)
    await process.says("worker ready")
    return process


async def _api(place: Site, stack: AsyncExitStack) -> Running:
    own = place.own("api")
    process = await place.compose.start("api", place.folder / "api.log", own)
    stack.push_async_callback(process.stop)
    await process.until(lambda: answers(place.port))
    assert await place.compose.healthy("api", own)
    return process


async def _gateway(place: Site, stack: AsyncExitStack) -> Running:
    own = place.own("gateway")
    process = await place.compose.start("gateway", place.folder / "gateway.log", own)
    stack.push_async_callback(process.stop)
    await process.until(lambda: answers(place.gateway_port))
    assert await place.compose.healthy("gateway", own)
    return process


async def lease_as_alice(port: int, idp: ScriptedProvider, admin_key: str, stack: AsyncExitStack) -> None:
    """Integration, consent and lease, as an admin and a subject would."""
    api = await stack.enter_async_context(EvergrantApi(f"http://127.0.0.1:{port}", admin_key))
    await api.put("/v1/integrations/crm", at(idp, binding="none"))
    await eventually(lambda: api.get("/v1/integrations/crm"), lambda it: it["state"] == "ready")
    await api.put("/v1/apps/report", {})
    permit = {"integration": "crm", "subjects": ["alice"], "actions": ["token", "connect"]}
    await api.put("/v1/apps/report/permits/crm", permit)
    key = (await api.post("/v1/apps/report/keys"))["key"]
    app = await stack.enter_async_context(EvergrantApi(f"http://127.0.0.1:{port}", key))
    connection = await app.post("/v1/connections", {"integration": "crm", "subject": "alice"})
    async with Subject("alice", "") as alice:
        await alice.consent(connection["connect_url"])
    await app.state(connection["id"], "active", PATIENCE_S)
    lease = await app.lease("crm", "alice")
    assert idp.active(lease["access_token"])
    assert (lease["generation"], lease["scopes"]) == (1, ["read"])


async def _doctor_is_content(place: Site) -> None:
    """In a worker's container, in the API's, which has no folder to write to and no refresh purpose, and in
    the gateway's, whose role in the database writes no row of authority."""
    details: dict[str, dict[str, str]] = {}
    for service in ("worker-1", "api", "gateway"):
        words = ("doctor", "--role", service.removesuffix("-1"), "-o", "json")
        found = json.loads(await place.compose.run(service, *words, extra=place.own(service)))
        assert [it for it in found if not it["ok"]] == []
        details[service] = {it["check"]: it["detail"] for it in found}
    assert "refresh" not in details["api"]["keys of the database"]
    for role, checks in details.items():
        database_role = f"evergrant_{role.removesuffix('-1')}"
        assert checks["database role"].startswith(f"{database_role} reads every row"), checks["database role"]
