"""API keys: shape, comparison, revocation, and where they may travel."""

import hmac

import pytest

from evergrant_server.api.http import authentication
from evergrant_server.core.access import Action
from tests.fakes.api import Api


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
        "Bearer evg_key_0000000000000000000000_" + "0" * 64,
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
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
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
    assert (await api.lease(key)).status_code == 401
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
    unknown = "evg_key_0000000000000000000000_" + "0" * 64
    await api.get("/v1/providers", key)
    await api.get("/v1/providers", unknown)
    assert len(compared) == 2
    assert all(len(a) == len(b) == 64 for a, b in compared)


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    await api.app_with("pipeline", Action.TOKEN)
    made = await api.post("/v1/apps/pipeline/keys", admin)
    key = made.json()["key"]
    secret = key.rsplit("_", 1)[1]
    listed = await api.get("/v1/apps/pipeline/keys", admin)
    assert secret not in listed.text
    assert authentication.hash_secret(secret) not in listed.text
    database = api.parts.settings.data_dir.glob("evergrant.db*")
    assert all(secret.encode() not in file.read_bytes() for file in database)
    assert (await api.get("/v1/connections", key)).status_code == 200
