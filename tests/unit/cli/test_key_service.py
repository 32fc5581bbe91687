"""The operator's commands where a key service wraps the keys: no key file is made, and none is needed."""

from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.cli import keys as commands
from evergrant_server.cli import roots
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor import keys as doctor
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, KeyRing, Role, bundle
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.root_keys import RootState
from evergrant_server.settings import BadSettings, Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.store.store import require_matching_key_ring
from evergrant_server.wiring import platform
from tests.fakes.databases import NOW, migrated_sqlite
from tests.fakes.failures import fails
from tests.fakes.key_service import ScriptedKeys
from tests.fakes.rows import an_integration

URL = "vault:https://vault.example/transit/evergrant-{purpose}"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> ScriptedKeys:
    """What the settings name, as an operator calls it."""
    keys, opened = ScriptedKeys(), platform.open_key_service
    monkeypatch.setattr(
        platform,
        "open_key_service",
        lambda url, key_file: opened(url, key_file) if url == "file" else keys.of(Role.OPERATOR),
    )
    return keys


@pytest_asyncio.fixture
async def settings(tmp_path: Path) -> Settings:
    await migrated_sqlite(tmp_path)
    return load_settings(data_dir=tmp_path, key_service=URL)


async def fill(settings: Settings, ring: KeyRing) -> None:
    """Seal a client secret."""
    store = await Store.open(settings.database_url, ring, SystemClock())
    integration = an_integration(Tenant("default"), NOW, provider="github")
    async with store.write() as tx:
        await tx.integrations.put(integration, Secret("hush"), expected=None)
    await store.close()


async def test_the_first_roots_are_rows_and_every_role_opens_them_without_a_key_file(
    settings: Settings, service: ScriptedKeys
):
    assert await commands.create_wrapped_keys(settings)
    assert not await commands.create_wrapped_keys(settings), "there are rows already"
    await commands.make_admin_key(settings, again=False, out=settings.data_dir / "admin.key")
    for role in Role:
        async with platform.open_store(settings, role) as (store, _), store.read() as tx:
            rows = await tx.root_keys.all()
            assert {row.root.purpose for row in rows} == set(ServicePurpose)
            assert {row.root.state for row in rows} == {RootState.CURRENT}
            assert await tx.access.app_by_name(Tenant("default"), "admin")
    assert not settings.key_path.exists()
    with fails(ErrorCode.KEY_UNAVAILABLE, "needs no key file"):
        platform.new_ring(settings, Role.OPERATOR).export(settings.data_dir / "api.json", Role.API)


async def test_a_used_database_keeps_its_key_file_beside_the_service(
    settings: Settings, service: ScriptedKeys
):
    ring = KeyRing.create(settings.key_path)
    await fill(settings, ring)
    with fails(ErrorCode.KEY_UNAVAILABLE, "EVERGRANT_KEY_SERVICE_BEFORE to file"):
        await commands.create_wrapped_keys(settings)
    both = load_settings(data_dir=settings.data_dir, key_service=URL, key_service_before="file")
    assert await commands.create_wrapped_keys(both)
    for role in Role:
        async with platform.open_store(both, role) as (store, _):
            await require_matching_key_ring(store, store.ring)
            assert store.ring.subject_hash("acme", "ann") == ring.subject_hash("acme", "ann")
    said = await doctor.keys_open(both)
    assert "3 rows of root_key need EVERGRANT_KEY_SERVICE_BEFORE: python -m evergrant_server keys" in said
    with fails(ErrorCode.KEY_UNAVAILABLE, "lies in a key file.*EVERGRANT_KEY_SERVICE_BEFORE"):
        async with platform.open_store(settings, Role.OPERATOR):
            pass


async def test_the_key_file_of_the_way_back_is_made_beside_the_service_that_is_left(
    settings: Settings, service: ScriptedKeys
):
    await commands.create_wrapped_keys(settings)
    back = load_settings(data_dir=settings.data_dir, key_service="file", key_service_before=URL)
    with fails(ErrorCode.KEY_UNAVAILABLE, "doesn't exist"):
        platform.new_ring(back, Role.OPERATOR)
    KeyRing.create(back.key_path)  # as `keys create`
    assert await roots.has_rows(back)
    for role in Role:
        async with platform.open_store(back, role) as (store, _):
            assert store.ring.subject_hash("acme", "ann")
            held = {id for ids in store.ring.root_ids().values() for id in ids}
            assert store.ring.file is not None
            of_file = {id for keys in store.ring.file.purposes.values() for id in keys.keys}
            assert not held & of_file, "the file only wraps"
    assert "5 rows of root_key need EVERGRANT_KEY_SERVICE_BEFORE" in await doctor.keys_open(back)


@pytest.mark.parametrize("before", ["", URL])
async def test_a_rotation_of_the_key_file_looks_for_rows(settings: Settings, before: str):
    """Without rows, and without a database, the file is rotated by itself."""
    KeyRing.create(settings.key_path)
    alone = load_settings(data_dir=settings.data_dir, key_service="file", key_service_before=before)
    assert not await roots.has_rows(alone)
    (settings.data_dir / "evergrant.db").unlink()
    if before:
        with fails(ErrorCode.SCHEMA_MISMATCH):
            await roots.has_rows(alone)
    else:
        assert not await roots.has_rows(alone)


async def test_another_key_file_is_named_with_the_root_that_the_database_needs(settings: Settings):
    first = KeyRing.create(settings.key_path)
    await fill(settings, first)
    settings.key_path.unlink()
    other = KeyRing.create(settings.key_path)
    store = await Store.open(settings.database_url, other, SystemClock())
    with fails(ErrorCode.KEY_UNAVAILABLE) as caught:
        await require_matching_key_ring(store, other)
    await store.close()
    needed, held = (ring.root_ids()[KeyPurpose.INTAKE][0] for ring in (first, other))
    for named in (str(settings.key_path), needed, held):
        assert named in caught.value.detail


async def test_the_doctor_names_the_key_and_the_principal_that_may_not_use_it(
    settings: Settings, service: ScriptedKeys
):
    assert "scripted:refresh" in await doctor.key_service(settings)
    assert "as operator" in await doctor.key_service(settings)
    service.disabled = {ServicePurpose.INTAKE}
    with pytest.raises(CheckFailed, match=r"scripted:intake .as operator. is disabled"):
        await doctor.key_service(settings)
    service.disabled, service.away = set(), True
    with pytest.raises(CheckFailed, match="can't be reached"):
        await doctor.key_service(settings)


async def test_the_doctor_of_a_gateways_container_asks_for_what_a_gateway_may_use(
    settings: Settings, service: ScriptedKeys
):
    await commands.create_wrapped_keys(settings)
    token = doctor.ROLE.set(Role.GATEWAY)
    try:
        assert "refresh" not in await doctor.key_service(settings)
        async with doctor.open_store(settings) as store:
            assert store.ring.role is Role.GATEWAY
        service.disabled = {ServicePurpose.GATEWAY}
        with pytest.raises(CheckFailed, match=r"root_key gateway_\w+: .*scripted:gateway"):
            async with doctor.open_store(settings):
                pass
    finally:
        doctor.ROLE.reset(token)


@pytest.mark.parametrize("name", ["key_service", "key_service_before"])
async def test_a_setting_that_names_no_service_is_named(settings: Settings, name: str):
    wrong = load_settings(data_dir=settings.data_dir, **{"key_service": "file", name: "s3:bucket-{purpose}"})
    with pytest.raises(BadSettings, match=f"EVERGRANT_{name.upper()}: there is no key service 's3'"):
        platform.key_services(wrong)


async def test_an_upgrade_wraps_what_a_newer_version_derives_for_gateways(
    settings: Settings, service: ScriptedKeys, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as before:
        before.setattr(bundle, "GATEWAY_SECRETS", bundle.GATEWAY_SECRETS - {"mcp-session"})
        await commands.create_wrapped_keys(settings)
    async with platform.open_store(settings, Role.GATEWAY) as (store, _):
        with fails(ErrorCode.KEY_UNAVAILABLE, "mcp-session"):
            store.ring.derive("mcp-session")
    assert await commands.renew_gateway_bundle(settings)
    assert not await commands.renew_gateway_bundle(settings), "it has all"
    async with platform.open_store(settings, Role.GATEWAY) as (store, _):
        assert len(store.ring.derive("mcp-session")) == 32
