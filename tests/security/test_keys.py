"""API keys: shape, comparison, expiry, revocation, and where they may travel."""

import asyncio
import hashlib
import hmac
import re
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from evergrant_server.access import authentication
from evergrant_server.access.credentials import checksum
from evergrant_server.core.access import Action, AppKey
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import KeyId, new_id
from tests.fakes.api import TENANT, Api

# what a secret scanner is told to look for (docs/guide/operations.md)
SCANNED = re.compile(r"evg_key_[0-9a-z]{22}_[0-9a-f]{64}[0-9A-Za-z]{6}")
DAY_S = 86_400


def with_checksum(text: str) -> str:
    return text + checksum(text)


def with_secret(key: str, secret: str) -> str:
    """The key with another secret, and the checksum of that."""
    return with_checksum(key[: -len(secret) - 6] + secret)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic {key}",
        "Bearer x{key}",
        "Bearer {key}0",
        "Bearer {key} {key}",
        "Bearer " + with_checksum("evg_key_0000000000000000000000_" + "0" * 64),
        "Bearer evg__",
        "{key}",
    ],
)
async def test_anything_but_a_whole_key_is_401(api: Api, header: str | None):
    key = await api.app_with("pipeline", Action.TOKEN)
    headers = {} if header is None else {"Authorization": header.format(key=key)}
    for method, path in (("POST", "/v1/lease"), ("GET", "/v1/connections"), ("GET", "/v1/providers")):
        answer = await api.call(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_with_another_secret_is_401_also_from_memory(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == 200
    wrong = with_secret(key, "0" * 64)
    assert (await api.lease(wrong)).status_code == 401
    assert (await api.get("/v1/connections", wrong)).status_code == 401


async def test_rfc6750_2_3_a_key_in_the_query_or_twice_in_the_headers_is_no_key(api: Api):
    key = await api.app_with("pipeline", Action.TOKEN)
    assert (await api.get(f"/v1/providers?access_token={key}")).status_code == 401
    twice = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    assert (await api.client.get("/v1/providers", headers=twice)).status_code == 401


async def test_a_revoked_key_is_refused_at_once_though_it_is_cached(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    assert (await api.lease(key)).status_code == 200
    (shown,) = (await api.get("/v1/apps/pipeline/keys", admin)).json()["items"]
    assert (await api.call("DELETE", f"/v1/apps/pipeline/keys/{shown['id']}", admin)).status_code == 204
    refused = await api.lease(key)
    assert (refused.status_code, "was revoked at" in refused.json()["detail"]) == (401, True)
    assert (await api.get("/v1/connections", key)).status_code == 401


async def test_a_revoked_key_makes_nothing_happen_from_memory(api: Api):
    """A cached caller could still begin a connection or a refresh, were it not read again."""
    _, key = await api.active_for("pipeline", Action.TOKEN, Action.CONNECT)
    assert (await api.lease(key)).status_code == 200
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)
    api.clock.advance(3601)
    assert (await api.lease(key)).json()["code"] == "app_disabled"
    assert (await api.lease(key, subject="somebody-else")).json()["code"] == "app_disabled"
    assert api.link.asked == []
    async with api.worker.read() as tx:
        assert len(await tx.connections.page(app.tenant)) == 1


async def test_keys_are_compared_in_constant_time(api: Api, monkeypatch: pytest.MonkeyPatch):
    """Known and unknown keys alike go through hmac.compare_digest."""
    compared: list[tuple[str, str]] = []

    class Watched:
        @staticmethod
        def compare_digest(a: str, b: str) -> bool:
            compared.append((a, b))
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(authentication, "hmac", Watched)
    key = await api.app_with("pipeline", Action.TOKEN)
    unknown = with_checksum("evg_key_0000000000000000000000_" + "0" * 64)
    await api.get("/v1/providers", key)
    await api.get("/v1/providers", unknown)
    assert len(compared) == 2
    assert all(len(a) == len(b) == 64 for a, b in compared)


async def test_a_key_is_shown_once_and_only_its_mac_is_kept(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    await api.app_with("pipeline", Action.TOKEN)
    made = await api.post("/v1/apps/pipeline/keys", admin)
    key = made.json()["key"]
    secret = key.rsplit("_", 1)[1][:64]
    listed = await api.get("/v1/apps/pipeline/keys", admin)
    assert secret not in listed.text
    database = b"".join(file.read_bytes() for file in api.parts.settings.data_dir.glob("evergrant.db*"))
    assert secret.encode() not in database
    assert hashlib.sha256(secret.encode()).hexdigest().encode() not in database
    assert (await api.get("/v1/connections", key)).status_code == 200


async def test_a_key_has_a_checksum_and_a_mistyped_one_is_named(api: Api):
    key = await api.app_with("pipeline", Action.TOKEN)
    assert SCANNED.fullmatch(key)
    assert checksum("evg_key_0000000000000000000000_" + "0" * 64) == "21Ax32"
    mistyped = key[:40] + ("0" if key[40] != "0" else "1") + key[41:]
    answer = await api.get("/v1/connections", mistyped)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "checksum" in answer.json()["detail"]


async def test_a_key_of_an_earlier_version_is_refused_with_the_repair(api: Api):
    outdated = (await api.app_with("pipeline", Action.TOKEN))[:-6]
    answer = await api.get("/v1/connections", outdated)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    for repair in ("/v1/apps/{app}/keys", "keys bootstrap --again"):
        assert repair in answer.json()["detail"]


async def test_attack_14_a_key_row_that_was_written_by_hand_is_no_key(api: Api):
    """Whoever can write to the database plants no key, and prolongs or moves none."""
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    app = await api.app_named("pipeline")
    secret, id = "5" * 64, KeyId(new_id("key"))
    planted = AppKey(
        tenant=TENANT,
        id=id,
        app_id=app.id,
        secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=api.clock.now(),
        expires_at=api.clock.now() + timedelta(days=1),
    )
    async with api.worker.write() as tx:
        await tx.access.add_key(planted)
    assert (await api.lease(with_checksum(f"evg_{id}_{secret}"))).status_code == 401
    changes = {"moved": f"app_id = '{app.id}'", "prolonged": "expires_at = '2099-01-01 00:00:00.000000'"}
    for name, change in changes.items():
        other = await api.app_with(name, Action.TOKEN)
        assert (await api.get("/v1/connections", other)).status_code == 200
        async with api.worker.write() as tx:
            changed = text(f"UPDATE app_key SET {change} WHERE id = '{other[4:30]}'")
            assert (await tx.connection.execute(changed)).rowcount == 1
        assert (await api.lease(other)).status_code == 401
    assert (await api.lease(key)).status_code == 200
    assert len(await api.records(AuditAction.LEASE_ISSUED, of=connection.id)) == 1


async def test_an_expired_key_is_refused_also_from_memory_and_starts_nothing(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    made = await api.post("/v1/apps/pipeline/keys", admin, {"lifetime": 3400})
    assert datetime.fromisoformat(made.json()["expires_at"]) == api.clock.now() + timedelta(seconds=3400)
    short = made.json()["key"]
    api.clock.advance(3000)
    assert (await api.lease(short)).status_code == 200
    api.clock.advance(400)  # the token is due: a lease of its app would refresh it ahead of its expiry
    for answer in (await api.lease(short), await api.get("/v1/connections", short)):
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert "expired at" in answer.json()["detail"]
    assert api.link.asked == []
    assert (await api.lease(key)).status_code == 200


async def test_attack_15_a_key_that_expires_while_its_lease_waits_in_the_ledger(api: Api):
    connection, _ = await api.active_for("pipeline", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    key = (await api.post("/v1/apps/pipeline/keys", admin, {"lifetime": 60})).json()["key"]
    assert (await api.lease(key)).status_code == 200
    ledger, tried = api.parts.ledger, asyncio.Event()
    write = ledger._write

    async def late(*batch):
        """The batch gets its turn a minute later."""
        api.clock.advance(60)
        tried.set()
        return await write(*batch)

    ledger._write = late
    answer = await api.lease(key)
    assert tried.is_set()
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert len(await api.records(AuditAction.LEASE_ISSUED, of=connection.id)) == 1


async def test_two_keys_of_an_app_rotate_without_a_gap(api: Api):
    _, first = await api.active_for("pipeline", Action.TOKEN)
    admin, keys = await api.app_with("boss", Action.ADMIN), "/v1/apps/pipeline/keys"
    made = (await api.post(keys, admin)).json()
    second, days = made["key"], api.parts.settings.api_key_lifetime.days
    assert datetime.fromisoformat(made["expires_at"]) == api.clock.now() + timedelta(days=days)
    third = await api.post(keys, admin)
    assert (third.status_code, third.json()["code"]) == (409, "already_exists")
    assert "revoke" in third.json()["repair"].lower()
    for key in (first, second):
        assert (await api.lease(key)).status_code == 200
    api.clock.advance(59)
    assert (await api.lease(second)).status_code == 200
    (old,) = [it for it in (await api.get(keys, admin)).json()["items"] if it["id"] != made["id"]]
    assert (await api.call("DELETE", f"{keys}/{old['id']}", admin)).status_code == 204
    assert (await api.lease(second)).status_code == 200
    assert (await api.lease(first)).status_code == 401
    assert (await api.post(keys, admin)).status_code == 201
    (shown,) = [it for it in (await api.get(keys, admin)).json()["items"] if it["id"] == made["id"]]
    assert (shown["live"], shown["last_used_at"]) == (True, made["created_at"])


@pytest.mark.parametrize("lifetime", [0, 59, -1, 1e18, 5 * 365 * DAY_S + 1])
async def test_a_lifetime_outside_the_limits_is_refused(api: Api, lifetime: float):
    admin = await api.app_with("boss", Action.ADMIN)
    answer = await api.post("/v1/apps/boss/keys", admin, {"lifetime": lifetime})
    assert (answer.status_code, answer.json()["field"]) == (400, "lifetime")
