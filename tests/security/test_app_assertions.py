"""Assertions at the token endpoint, as an attacker sends them (draft-ietf-oauth-rfc7523bis, RFC 8725)."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from evergrant_server.access.credentials import new_app_token
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action, AppCredential
from evergrant_server.core.audit import AuditAction
from evergrant_server.store import Store
from evergrant_server.store.access import AppCredentialRow
from evergrant_server.store.authentication import AppAssertionRow, AppTokenRow
from evergrant_server.store.database.rows import columns_equal
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.assertions import TYPE, AssertingApp, asserting_app, new_key, signed
from tests.fakes.databases import database_url, postgres_server

__all__ = ["database_url", "postgres_server"]


Attack = Callable[[AssertingApp], str]


async def prepared(api: Api) -> AssertingApp:
    admin = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
    await api.active_for("sync", Action.TOKEN)
    return await asserting_app(api, admin, "sync")


@pytest.fixture
async def app(api: Api) -> AssertingApp:
    return await prepared(api)


NOW = 1767323045  # `tests.fakes.databases.NOW` in seconds


def _with_own_key(app: AssertingApp) -> str:
    key = new_key()
    return app.assertion({"jwk": key.as_dict(private=False)}, key)


def _altered(app: AssertingApp) -> str:
    head, _, signature = app.assertion().rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


def _claiming(payload: bytes) -> Attack:
    return lambda it: signed(it.key, {"alg": "ES256", "typ": TYPE}, payload)


ATTACKS: dict[str, dict[str, Attack]] = {
    "audience": {
        "two aud": lambda it: it.assertion(aud=["https://evergrant.test", "https://other.example"]),
        "one aud in a list": lambda it: it.assertion(aud=["https://evergrant.test"]),
        "the token endpoint": lambda it: it.assertion(aud="https://evergrant.test/oauth/token"),
        "the issuer with a slash": lambda it: it.assertion(aud="https://evergrant.test/"),
        "none": lambda it: it.assertion(aud=None),
    },
    "typ": {
        "at+jwt": lambda it: it.assertion({"typ": "at+jwt"}),
        "JWT": lambda it: it.assertion({"typ": "JWT"}),
        "none": lambda it: it.assertion({"typ": None}),
    },
    "signature": {
        "alg none": lambda it: it.assertion({"alg": "none"}, b""),
        "alg none in other letters": lambda it: it.assertion({"alg": "nOnE"}, b""),
        "HS256 by our public key": lambda it: it.assertion({"alg": "HS256"}, it.key.as_pem(private=False)),
        "HS256 by its JSON": lambda it: it.assertion(
            {"alg": "HS256"}, json.dumps(it.key.as_dict(private=False)).encode()
        ),
        "a key of its own in the header": _with_own_key,
        "another key": lambda it: it.assertion(key=new_key()),
        "another alg": lambda it: it.assertion({"alg": "RS256"}, new_key("RS256")),
        "kid of no key": lambda it: it.assertion({"kid": "other"}),
        "kid no text": lambda it: it.assertion({"kid": 7}),
        "altered": _altered,
        "cut": lambda it: it.assertion().rpartition(".")[0] + ".",
        "four parts": lambda it: it.assertion() + ".x",
    },
    "critical headers": {
        "unknown": lambda it: it.assertion({"crit": ["x"], "x": 1}),
        "known elsewhere": lambda it: it.assertion({"crit": ["b64"], "b64": True}),
        "none": lambda it: it.assertion({"crit": []}),
    },
    "iss and sub": {
        "iss of another": lambda it: it.assertion(iss="app_0000000000000000000000"),
        "sub of another": lambda it: it.assertion(sub="app_0000000000000000000000"),
        "the app's name": lambda it: it.assertion(iss="sync", sub="sync"),
        "no sub": lambda it: it.assertion(sub=None),
        "lists": lambda it: it.assertion(iss=[it.id], sub=[it.id]),
    },
    "times": {
        "no exp": lambda it: it.assertion(exp=None),
        "expired": lambda it: it.assertion(exp=NOW),
        "an hour": lambda it: it.assertion(exp=NOW + 3600),
        "infinite": lambda it: it.assertion(exp=float("inf")),
        "no number": lambda it: it.assertion(exp=float("nan")),
        "huge": lambda it: it.assertion(exp=10**400),
        "a text": lambda it: it.assertion(exp=str(NOW + 60)),
        "true": lambda it: it.assertion(exp=True),
        "iat true": lambda it: it.assertion(iat=True),
        "not yet": lambda it: it.assertion(nbf=NOW + 60),
        "issued in the future": lambda it: it.assertion(iat=NOW + 60),
    },
    "jti": {
        "none": lambda it: it.assertion(jti=None),
        "empty": lambda it: it.assertion(jti=""),
        "long": lambda it: it.assertion(jti="x" * 256),
        "half a character": lambda it: it.assertion(jti="\ud800"),
        "no text": lambda it: it.assertion(jti=7),
    },
    "claims": {"no object": _claiming(b"[]"), "nested": _claiming(b"[" * 20_000), "no JSON": _claiming(b"x")},
}


@pytest.mark.parametrize("rule", ATTACKS)
async def test_attack_9_an_assertion_that_breaks_a_rule_buys_nothing(api: Api, app: AssertingApp, rule: str):
    for name, attack in ATTACKS[rule].items():
        answer = await app.ask(attack(app))
        told = answer.status_code, answer.json().get("error")
        assert told == (401, "invalid_client"), (name, answer.text)
        assert "access_token" not in answer.json()
    assert (await app.ask()).status_code == 200  # the same app, with nothing wrong


async def test_a_refusal_says_how_far_the_clocks_are_apart(app: AssertingApp):
    for claims, apart in (
        ({"iat": NOW + 600}, "(599|600) s ahead of"),
        ({"exp": NOW - 90}, "9[01] s behind"),
    ):
        told = (await app.ask(app.assertion(**claims))).json()["error_description"]
        assert re.search(f"it is {apart} this server's clock, which shows 20", told), told
        assert "NTP" in told


async def test_a_slow_or_fast_clock_within_the_limits_is_fine(app: AssertingApp):
    for claims in ({"exp": NOW + 300}, {"nbf": NOW + 20, "iat": NOW + 20}, {"iat": None}, {"jti": "x" * 255}):
        assert (await app.ask(app.assertion(**claims))).status_code == 200
    assert (await app.ask(app.assertion({"typ": "application/Client-Authentication+JWT"}))).status_code == 200


@pytest.fixture
async def copies(tmp_path: Path, database_url: str) -> AsyncIterator[tuple[Api, Api]]:
    """Two copies of the API over one database."""
    async with running_api(tmp_path, database_url=database_url) as first:
        store = await Store.open(database_url, first.parts.ring, first.clock)
        yield first, Api(replace(first.parts, store=store), first.worker, first.clock)
        await store.close()


async def test_attack_10_one_jti_at_two_copies_of_the_api_at_once_buys_one_token(copies: tuple[Api, Api]):
    app = await prepared(copies[0])
    for assertion in (app.assertion() for _ in range(3)):
        answers = await asyncio.gather(*(app.ask(assertion, api=api) for api in copies * 5))
        assert sorted(it.status_code for it in answers) == [200] + [401] * 9
    assert len(await copies[0].records(AuditAction.TOKEN_ISSUED)) == 3
    async with copies[0].worker.read() as tx:
        assert len((await tx.connection.execute(select(AppAssertionRow))).all()) == 3
        assert len((await tx.connection.execute(select(AppTokenRow))).all()) == 3


async def test_a_deleted_credential_stops_the_next_lease_in_every_copy(copies: tuple[Api, Api]):
    """Both have the caller and the row in memory."""
    app = await prepared(copies[0])
    admin = await copies[0].app_with("boss", Action.ADMIN)
    token = await app.token()
    for api in copies * 2:
        assert (await api.lease(token)).status_code == 200
    assert (await copies[0].call("DELETE", "/v1/apps/sync/credentials/main", admin)).status_code == 204
    for api in reversed(copies):
        answer = await api.lease(token)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_a_jti_is_used_up_for_its_app_alone(api: Api, app: AssertingApp):
    jti = "once"
    assert (await app.ask(app.assertion(jti=jti))).status_code == 200
    again = await app.ask(app.assertion(jti=jti))
    assert (again.status_code, "jti" in again.json()["error_description"]) == (401, True)
    admin = await api.app_with("boss", Action.ADMIN)
    await api.app_with("other", Action.TOKEN)
    other = await asserting_app(api, admin, "other")
    assert (await other.ask(other.assertion(jti=jti))).status_code == 200


async def test_a_token_row_that_was_changed_by_hand_is_no_token(api: Api, app: AssertingApp):
    """Whoever can write to the database prolongs or moves no token."""
    await api.app_with("rich", Action.ADMIN)
    changes: dict[str, Any] = {
        "app_id": (await api.app_named("rich")).id,
        "expires_at": api.clock.now().replace(year=2099),
        "confirmation": {"x5t#S256": "x"},
        "secret_hash": "0" * 64,
        "credential_revision": 2,
        "method": "api_key",
    }
    for name, value in changes.items():
        token = await app.token()
        assert (await api.get("/v1/connections", token)).status_code == 200
        async with api.worker.write() as tx:
            mine = update(AppTokenRow).where(columns_equal(AppTokenRow, id=token[4:30]))
            assert (await tx.connection.execute(mine.values({name: value}))).rowcount == 1
        assert (await api.get("/v1/connections", token)).status_code == 401, name
        assert (await api.lease(token)).status_code == 401, name


async def made_by_hand(
    api: Api, credential: AppCredential, cnf: dict[str, str] | None = None, **values: Any
) -> str:
    """A token that Evergrant made, whose row is changed afterwards."""
    now = api.clock.now()
    token, text = new_app_token(api.parts.ring, credential, now, now + timedelta(minutes=10), cnf)
    async with api.worker.write() as tx:
        await tx.tokens.add(token)
        if values:
            mine = update(AppTokenRow).where(columns_equal(AppTokenRow, id=token.id))
            await tx.connection.execute(mine.values(values))
    return text


async def test_a_token_that_is_made_while_its_credential_is_replaced_never_counts(
    api: Api, app: AssertingApp
):
    found = await api.app_named("sync")
    async with api.worker.write() as tx:
        (before,) = await tx.credentials.of_app(TENANT, found.id)
        await tx.credentials.put(before, expected=before.revision)
    assert (await api.lease(await made_by_hand(api, before))).status_code == 401
    assert (await api.lease(await made_by_hand(api, before, credential_revision=2))).status_code == 401
    assert (await api.lease(await app.token())).status_code == 200


async def test_a_bound_token_needs_its_proof_also_where_its_row_says_it_is_unbound(
    api: Api, app: AssertingApp
):
    found = await api.app_named("sync")
    async with api.worker.read() as tx:
        (credential,) = await tx.credentials.of_app(TENANT, found.id)
    bound = {"x5t#S256": "thumbprint"}
    for values in ({}, {"confirmation": None}):
        token = await made_by_hand(api, credential, bound, **values)
        for answer in (await api.lease(token), await api.get("/v1/connections", token)):
            assert answer.status_code == 401
    assert (await api.lease(await made_by_hand(api, credential))).status_code == 200


async def test_a_key_that_was_registered_by_hand_proves_nothing(
    api: Api, app: AssertingApp, caplog: pytest.LogCaptureFixture
):
    token = await app.token()
    planted = new_key()
    keys = {"keys": [planted.as_dict(private=False, alg="ES256")]}
    async with api.worker.write() as tx:
        changed = update(AppCredentialRow).values(parameters={"jwks": keys})
        assert (await tx.connection.execute(changed)).rowcount == 1
    assert (await app.ask(app.assertion(key=planted))).status_code == 401
    assert (await app.ask()).status_code == 401
    assert (await api.lease(token)).status_code == 401
    assert any(it.message.startswith("authority broken") for it in caplog.records)


async def test_a_token_stands_in_the_header_alone_and_none_is_in_the_database(api: Api, app: AssertingApp):
    token = await app.token()
    assert (await api.get(f"/v1/connections?access_token={token}")).status_code == 401
    mistyped = await api.get("/v1/connections", token[:40] + ("0" if token[40] != "0" else "1") + token[41:])
    assert (mistyped.status_code, "checksum" in mistyped.json()["detail"]) == (401, True)
    database = b"".join(file.read_bytes() for file in api.parts.settings.data_dir.glob("evergrant.db*"))
    assert token[31:95].encode() not in database
