"""`doctor --role`: what a container must have and must not have, and whether its key file is an older one."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.cli.doctor import CheckFailed, host
from evergrant_server.cli.doctor import keys as doctor
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.store.store import require_matching_key_ring
from tests.fakes.databases import NOW, migrated_sqlite
from tests.fakes.failures import fails
from tests.fakes.rows import an_integration

FILES = (Role.OPERATOR, Role.API, Role.GATEWAY)  # whose key files there are
# the role of the container, and whose file lies there: what is wrong, and the repair
WRONG = {
    (Role.WORKER, Role.API): ("lacks the keys for refresh", "the full key file at"),
    (Role.WORKER, Role.GATEWAY): ("lacks the keys for intake, refresh", "the full key file at"),
    (Role.API, Role.OPERATOR): ("is for workers and operators: who takes this container", "keys export-api"),
    (Role.API, Role.GATEWAY): ("lacks the keys for intake", "keys export-api"),
    (Role.GATEWAY, Role.OPERATOR): ("is for workers and operators: who takes", "keys export-gateway"),
    (Role.GATEWAY, Role.API): ("is for the API: who takes this container", "keys export-gateway"),
}


@pytest_asyncio.fixture
async def settings(tmp_path: Path) -> Settings:
    await migrated_sqlite(tmp_path)
    full = KeyRing.create(tmp_path / "operator.json")
    for role in FILES[1:]:
        full.export(tmp_path / f"{role}.json", role)
    return load_settings(data_dir=tmp_path, key_file=tmp_path / "operator.json")


@pytest.fixture
def container() -> Iterator[None]:
    """What `--role` sets is a test's own."""
    before = doctor.ROLE.set(None)
    yield
    doctor.ROLE.reset(before)


def use(settings: Settings, whose: Role) -> None:
    settings.key_file = settings.data_dir / f"{whose}.json"


@pytest.mark.usefixtures("container")
@pytest.mark.parametrize("whose", FILES)
@pytest.mark.parametrize("role", [Role.WORKER, Role.API, Role.GATEWAY])
async def test_each_container_has_the_file_of_its_role_alone(settings: Settings, role: Role, whose: Role):
    use(settings, whose)
    doctor.ROLE.set(role)
    if (role, whose) not in WRONG:
        assert "with keys for" in await doctor.key_file(settings)
        return
    why, repair = WRONG[role, whose]
    with pytest.raises(CheckFailed, match=why) as problem:
        await doctor.key_file(settings)
    assert repair in problem.value.repair


@pytest.mark.usefixtures("container")
async def test_a_gateways_copy_of_an_older_version_is_named(settings: Settings):
    use(settings, Role.GATEWAY)
    text = settings.key_path.read_text()
    settings.key_path.write_text(text.replace('"mcp-session"', '"of before"'))
    for role in (None, Role.GATEWAY):
        doctor.ROLE.set(role)
        with pytest.raises(CheckFailed, match="lacks mcp-session") as problem:
            await doctor.key_file(settings)
        assert "keys export-gateway" in problem.value.repair


@pytest.mark.usefixtures("container")
async def test_a_key_file_that_a_service_has_replaced_is_left_in_no_apis_container(settings: Settings):
    settings.key_service = "vault:https://vault.example/transit/evergrant-{purpose}"
    for role in (None, Role.WORKER):
        doctor.ROLE.set(role)
        assert "not needed" in await doctor.key_file(settings)
    doctor.ROLE.set(Role.API)
    with pytest.raises(CheckFailed, match="the API need no file") as problem:
        await doctor.key_file(settings)
    assert problem.value.repair == f"rm {settings.key_path}"


async def seal(settings: Settings, tenant: str) -> None:
    """Seal a client secret of a new tenant, under the root that is current now."""
    ring = KeyRing.open(settings.data_dir / "operator.json", Role.WORKER)
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.write() as tx:
        await tx.integrations.put(
            an_integration(Tenant(tenant), NOW, provider="github"), Secret("hush"), expected=None
        )
    await store.close()


@pytest.mark.usefixtures("container")
async def test_a_file_that_is_older_than_the_installations_is_named_with_the_root_that_it_lacks(
    settings: Settings,
):
    """Also where the newest tenant is older: no start notices that."""
    full = settings.data_dir / "operator.json"
    old = full.read_bytes()
    await seal(settings, "acme")
    rotated = KeyRing.open(full, Role.OPERATOR).rotate(KeyPurpose.INTAKE)
    newest = full.read_bytes()
    await seal(settings, "umbrella")
    doctor.ROLE.set(Role.API)
    use(settings, Role.API)
    root = rotated.current_root_id(KeyPurpose.INTAKE)
    with pytest.raises(CheckFailed, match=f"api.json lacks the root {root} of the purpose intake") as problem:
        await doctor.keys_open(settings)
    assert "keys export-api" in problem.value.repair
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.API), SystemClock())
    with fails(ErrorCode.KEY_UNAVAILABLE, f"api.json.*{root}.*It has root_.*keys export-api"):
        await require_matching_key_ring(store, store.ring)
    await store.close()
    rotated.export(settings.key_path, Role.API)
    assert f"intake (seals with {root})" in await doctor.keys_open(settings)
    full.write_bytes(old)
    with fails(ErrorCode.KEY_UNAVAILABLE, "the full key file lacks"):
        KeyRing.open(full, Role.OPERATOR).export(settings.key_path, Role.API)
    use(settings, Role.OPERATOR)
    doctor.ROLE.set(Role.WORKER)
    with pytest.raises(CheckFailed, match=f"lacks the root {root}") as problem:
        await doctor.keys_open(settings)
    assert "Put the full key file" in problem.value.repair
    full.write_bytes(newest)
    assert "opened" in await doctor.keys_open(settings)


@pytest.mark.usefixtures("container")
@pytest.mark.parametrize("role", [Role.WORKER, Role.GATEWAY])
async def test_a_container_without_an_api_asks_for_none(settings: Settings, role: Role):
    settings.public_url = "http://127.0.0.1:9"
    with pytest.raises(CheckFailed):
        await host.public_url(settings)
    doctor.ROLE.set(role)
    assert "ask in an API's container" in await host.public_url(settings)


@pytest.mark.usefixtures("container")
async def test_a_process_that_was_not_restarted_after_a_rotation_is_named(settings: Settings):
    """It runs with the file of before, whatever lies on its disk by now."""
    ring = KeyRing.open(settings.key_path, Role.WORKER)
    store = await Store.open(settings.database_url, ring, SystemClock())
    roots = {"api": ["root_1", "root_2"], "gateway": ["root_1"], "worker": ["root_1", "root_2"]}
    for role, held in roots.items():
        async with store.write() as tx:
            names = {"role": role, "host": f"{role}-1", "version": "1"}
            await tx.processes.beat(f"prc_{role}", names, {"lease": held}, {"lease": held[-1]}, NOW)
    with pytest.raises(
        CheckFailed, match=r"the gateway on gateway-1 .*lacks root_2 of the purpose lease"
    ) as problem:
        await doctor.roots_of_processes(settings)
    assert "restart it" in problem.value.repair
    async with store.write() as tx:
        await tx.processes.end("prc_gateway")
    await store.close()
    assert "2 processes hold every root" in await doctor.roots_of_processes(settings)


@pytest.mark.usefixtures("container")
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_process_that_a_restart_has_followed_is_no_finding(settings: Settings, goes_on: bool):
    """Its row was written a moment ago, and it has ended: or it is another one, and writes again."""
    store = await Store.open(
        settings.database_url, KeyRing.open(settings.key_path, Role.WORKER), SystemClock()
    )
    names = {"role": "api", "host": "api-1", "version": "1"}

    async def beat(id: str, *held: str) -> None:
        began.setdefault(id, SystemClock().now())
        async with store.write() as tx:
            await tx.processes.beat(id, names, {"lease": list(held)}, {"lease": held[-1]}, began[id])

    began: dict[str, datetime] = {}
    await beat("prc_older", "root_1")
    await beat("prc_newer", "root_1", "root_2")
    if goes_on:
        await beat("prc_older", "root_1")
        with pytest.raises(CheckFailed, match="lacks root_2"):
            await doctor.roots_of_processes(settings)
    else:
        assert "1 processes hold every root" in await doctor.roots_of_processes(settings)
    await store.close()
