"""The doctor's checks are independent, end in time, name a repair, and compare clocks."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.cli.doctor import (
    CheckFailed,
    compare_clocks,
    configuration,
    database,
    host,
    keys,
    report,
)
from evergrant_server.cli.keys import create_keys, is_valid_key, make_admin_key
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.events import EventType, WebhookEvent
from evergrant_server.core.ids import DeliveryId, EventId, Tenant, TrustedIssuerId, new_id
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.core.webhooks import Delivery, DeliveryProblem
from evergrant_server.core.workloads.issuer import KEYS_SERVE, IssuerKind, TrustedIssuer
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.journal.journal import waiting_paths
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.wiring.platform import open_store
from tests.conformance.store.samples import a_key, an_attempt
from tests.fakes.databases import migrated_sqlite
from tests.fakes.events.webhook_receiver import listening
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.fakes.rows import a_connection, an_integration, put_app

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    KeyRing.create(tmp_path / "keys.json")
    tmp_path.chmod(0o700)
    return load_settings(data_dir=tmp_path)


async def fine(settings: Settings) -> str:
    return "fine"


def failing(error: Exception) -> report.Check:
    async def check(settings: Settings) -> str:
        raise error

    return check


async def hangs(settings: Settings) -> str:
    await asyncio.Event().wait()
    return "never"


async def test_a_failing_check_does_not_affect_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CHECK_TIMEOUT_S", PATIENCE_S)
    broken, gone = CheckFailed("it is broken", "repair it"), Failure(ErrorCode.STORE_UNAVAILABLE, "gone")
    checks = {"a": failing(broken), "b": failing(gone), "c": failing(KeyError("a secret, perhaps"))}
    found = await report.diagnose(settings, checks | {"d": fine}, {})
    assert {result.check: result.ok for result in found} == dict.fromkeys("abc", False) | {"d": True}
    assert found[0].repair == "repair it"
    assert "EVERGRANT_DATABASE_URL" in found[1].repair
    assert "secret" not in found[2].detail


async def test_a_hanging_check_ends_in_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.CHECK_TIMEOUT_S < 5
    monkeypatch.setattr(report, "CHECK_TIMEOUT_S", 0.05)
    async with asyncio.timeout(PATIENCE_S):
        found = await report.diagnose(settings, {"hangs": hangs, "fine": fine}, {})
    assert [it.ok for it in found] == [False, True]


async def test_every_problem_comes_with_a_repair(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installation has only a key file."""
    monkeypatch.setattr(report, "CHECK_TIMEOUT_S", PATIENCE_S)
    found = await report.diagnose(settings)
    assert len(found) == len(report.CHECKS)
    assert [it.check for it in found if not it.ok and not (it.repair or it.because)] == []
    passed = {it.check for it in found if it.ok}
    assert passed >= {"packages", "catalogue", "key file", "data folder", "journal"}


@pytest.mark.parametrize(
    ("mode", "repair"), [(0o640, "chmod 600"), (0o604, "chmod 600"), (0o400, ""), (0o600, "")]
)
async def test_key_file_modes(settings: Settings, mode: int, repair: str) -> None:
    settings.key_path.chmod(mode)
    if not repair:
        assert "refresh" in await keys.key_file(settings)
        return
    with pytest.raises(CheckFailed) as found:
        await keys.key_file(settings)
    assert found.value.repair == f"{repair} {settings.key_path}"


async def test_the_key_file_of_the_api_is_recognized(settings: Settings) -> None:
    exported = settings.data_dir / "api.json"
    KeyRing.open(settings.key_path, Role.OPERATOR).export(exported, Role.API)
    settings.key_file = exported
    assert "for the API" in await keys.key_file(settings)


async def test_an_open_data_folder_is_a_problem(settings: Settings) -> None:
    settings.data_dir.chmod(0o755)
    with pytest.raises(CheckFailed) as found:
        await host.data_folder(settings)
    assert found.value.repair == f"chmod 700 {settings.data_dir}"


async def test_the_journal_check_leaves_no_file(settings: Settings) -> None:
    before = sorted(os.listdir(settings.data_dir))
    await host.journal(settings)
    assert sorted(os.listdir(settings.data_dir)) == before


async def test_a_reply_that_waits_in_a_journal_is_named(settings: Settings) -> None:
    entry = settings.data_dir / "journals/one/att_1.entry"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"sealed")
    assert waiting_paths(settings.data_dir / "journals")[0] == [entry]
    assert "1 answers are not in the store yet" in await host.journal(settings)
    os.utime(entry, (0, 0))
    with pytest.raises(CheckFailed, match="the oldest since 1970-01-01") as problem:
        await host.journal(settings)
    assert "journal stuck" in problem.value.repair


@pytest.mark.parametrize(("seconds", "answered_after"), [(-4, 0), (0, 0), (3, 0), (4, 0), (10, 30)])
def test_clocks_agree_within_the_time_of_the_answer(seconds: int, answered_after: int) -> None:
    after = NOON + timedelta(seconds=answered_after)
    assert "agree" in compare_clocks(NOON + timedelta(seconds=seconds), NOON, after, "its")


@pytest.mark.parametrize(("seconds", "where"), [(-6, "6.0 s behind"), (300, "300.0 s ahead of")])
def test_clocks_that_differ(seconds: int, where: str) -> None:
    with pytest.raises(CheckFailed, match=where):
        compare_clocks(NOON + timedelta(seconds=seconds), NOON, NOON, "its")


async def test_an_app_without_a_key_for_the_next_weeks_is_named(settings: Settings) -> None:
    await migrated_sqlite(settings.data_dir)
    now, ring = datetime.now(UTC), KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    try:
        async with store.write() as tx:
            shown = await put_app(tx, Tenant("acme"), "billing", now)
            app = await tx.access.app_by_name(Tenant("acme"), "billing")
            assert app is not None
        assert "14 days" in await database.api_keys(settings)
        assert await is_valid_key(settings, shown)
        assert not await is_valid_key(settings, "")
        for lifetime, why in ((timedelta(days=13), "ends at"), (None, "an earlier version")):
            until = None if lifetime is None else now + lifetime
            async with store.write() as tx:
                for key in await tx.access.keys(app.tenant, app.id):
                    await tx.access.revoke_key(app.tenant, key.id, now)
                await tx.access.add_key(a_key(app, expires_at=until))
            with pytest.raises(CheckFailed, match=f"that of billing .* {why}") as found:
                await database.api_keys(settings)
            assert "/v1/apps/billing/keys" in found.value.repair
        assert not await is_valid_key(settings, shown)
    finally:
        await store.close()


async def test_an_integration_whose_subjects_can_not_log_in_is_named(settings: Settings) -> None:
    await migrated_sqlite(settings.data_dir)
    now, ring = datetime.now(UTC), KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    assert "0 integrations" in await configuration.logins(settings)
    issuer = "https://login.corp.example"
    bound = {"name": "crm", "binding": "oidc", "login": LoginRule(integration="staff", issuer=issuer)}
    urls = {"token_endpoint": f"{issuer}/token", "authorization_endpoint": f"{issuer}/authorize"}
    try:
        async with store.write() as tx:
            await tx.integrations.put(an_integration(Tenant("acme"), now, **bound), None, expected=None)
        with pytest.raises(
            CheckFailed, match=r"crm \(tenant acme\): .*integration staff: there is no"
        ) as found:
            await configuration.logins(settings)
        assert "binding.md" in found.value.repair
        async with store.write() as tx:
            staff = an_integration(
                Tenant("acme"), now, name="staff", issuer=issuer, endpoints=Endpoints(issuer=issuer, **urls)
            )
            staff = await tx.integrations.put(staff, None, expected=None)
        with pytest.raises(CheckFailed, match="names no jwks_uri"):
            await configuration.logins(settings)
        read = Endpoints(issuer=issuer, jwks_uri=f"{issuer}/keys", **urls)
        async with store.write() as tx:
            after = staff.model_copy(update={"endpoints": read})
            await tx.integrations.replace(after, expected=staff.revision)
        assert "1 integrations" in await configuration.logins(settings)
    finally:
        await store.close()


async def test_networks_behind_a_proxy_without_a_name_are_a_problem(tmp_path: Path):
    KeyRing.create(tmp_path / "keys.json")
    direct = load_settings(data_dir=tmp_path)
    await migrated_sqlite(tmp_path)
    behind = load_settings(data_dir=tmp_path, public_url="https://evergrant.example")
    named = load_settings(data_dir=tmp_path, public_url=behind.public_url, trusted_proxies=("10.0.0.1",))
    assert "0 permits" in await configuration.addresses(behind)
    store = await Store.open(direct.database_url, KeyRing.open(direct.key_path, Role.OPERATOR), SystemClock())
    async with store.write() as tx:
        permit = {"name": "p", "integration": "*", "actions": ("token",)}
        for app, more in (("a", {}), ("b", {"sources": ("10.1.0.0/16",)})):
            await put_app(tx, Tenant("acme"), app, NOON, permit | more)
    await store.close()
    assert "1 permits" in await configuration.addresses(direct)
    assert "10.0.0.1/32" in await configuration.addresses(named)
    with pytest.raises(CheckFailed, match="1 permits have sources"):
        await configuration.addresses(behind)


async def test_a_trusted_issuer_whose_keys_cannot_be_read_is_named_with_the_end_of_its_last_ones(
    settings: Settings,
):
    await migrated_sqlite(settings.data_dir)
    now, ring = datetime.now(UTC), KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    values: dict[str, Any] = {"tenant": Tenant("acme"), "created_at": now, "changed_at": now}
    issuer = TrustedIssuer(
        id=TrustedIssuerId(new_id("iss")),
        name="ci",
        kind=IssuerKind.OIDC,
        issuer="https://ci.example",
        **values,
    )
    try:
        async with store.write() as tx:
            good = issuer.with_keys(({"kid": "one"},), now, None)
            await tx.trusted_issuers.put(good, expected=None)
        assert "could be read" in await configuration.trusted_issuers(settings)
        async with store.write() as tx:
            await tx.trusted_issuers.put(good.with_problem("status 500", now), expected=good.revision)
        until = f"{now + KEYS_SERVE:%Y-%m-%d %H:%M} UTC"
        with pytest.raises(CheckFailed, match=rf"ci \(tenant acme\): status 500; .* {until}"):
            await configuration.trusted_issuers(settings)
    finally:
        await store.close()


async def test_a_webhook_that_fails_is_named_with_what_its_endpoint_answers(settings: Settings):
    await migrated_sqlite(settings.data_dir)
    now, ring = datetime.now(UTC), KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    url = "https://app.example/hooks"
    try:
        hooks = await listening(store, url, now)
        await listening(store, url, now, name="other")
        assert "every endpoint" in await configuration.webhooks(settings)
        async with store.write() as tx:
            await tx.webhooks.replace(hooks.failed(now, None, timedelta(days=5)), expected=hooks.revision)
            event, ping = EventId(new_id("evt")), EventType.PING
            told = WebhookEvent(
                tenant=hooks.tenant, id=event, type=ping, connection_id=None, at=now, body="{}"
            )
            await tx.deliveries.add_event(told)
            names = {"tenant": hooks.tenant, "webhook_id": hooks.id, "event_id": event}
            made = {"id": DeliveryId(new_id("dlv")), "event_type": ping, "created_at": now}
            delivery = Delivery(**names, **made, next_at=now)
            await tx.deliveries.add(delivery.failed(503, DeliveryProblem.REFUSED, now))
        with pytest.raises(CheckFailed, match=r"^hooks \(tenant \S+\): refused with 503 since") as found:
            await configuration.webhooks(settings)
        assert "evergrant webhooks deliveries hooks" in found.value.repair
    finally:
        await store.close()


async def test_no_new_keys_are_proposed_for_a_database_that_was_filled(tmp_path: Path):
    """They would open nothing of it."""
    settings = load_settings(data_dir=tmp_path)
    with pytest.raises(CheckFailed) as new:
        await keys.key_file(settings)
    assert "keys create" in new.value.repair
    await migrated_sqlite(tmp_path)
    await create_keys(settings)
    await make_admin_key(settings, again=False, out=tmp_path / "admin.key")
    settings.key_path.unlink()
    with pytest.raises(CheckFailed, match="the database needs it") as lost:
        await keys.key_file(settings)
    assert "keys create" not in lost.value.repair
    assert "from its backup" in lost.value.repair
    with fails(ErrorCode.KEY_UNAVAILABLE) as refused:
        async with open_store(settings, Role.API):
            pass
    assert "keys create" not in refused.value.detail


async def test_an_integration_whose_refreshes_use_the_limit_of_its_provider_is_named(settings: Settings):
    await migrated_sqlite(settings.data_dir)
    now, ring = datetime.now(UTC), KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    limited, free = (an_integration(Tenant("acme"), now, name=it, provider=it) for it in ("ebay", "generic"))
    connection = a_connection(limited, now)
    try:
        async with store.write() as tx:
            for integration in (limited, free):
                await tx.integrations.put(integration, None, expected=None)
            await tx.connections.add(connection)
        assert "1 integrations" in await configuration.token_limits(settings)
        async with store.write() as tx:
            for _ in range(30):
                attempt = an_attempt(connection, integration_id=limited.id)
                await tx.attempts.open(attempt)
                await tx.attempts.close(attempt, AttemptOutcome.INSTALLED, now)
        with pytest.raises(CheckFailed, match=r"postponed: ebay \(tenant acme\) at ebay, until"):
            await configuration.token_limits(settings)
    finally:
        await store.close()
