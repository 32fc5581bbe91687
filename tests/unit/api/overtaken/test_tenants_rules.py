"""A rule of which a tenant has one ends with its own record, also where two commands end rules at once."""

from typing import Any

import httpx2
import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.integrations import Endpoints
from evergrant_server.store.oauth.requests import ClientLogins
from evergrant_server.store.people.leavers import OffboardingRules
from evergrant_server.store.people.people import AdminLogins
from tests.fakes.api import Api
from tests.fakes.postgresql.overtaking import overtake

ISSUER = "https://login.example"
_ENDPOINTS = Endpoints(
    issuer=ISSUER,
    authorization_endpoint=f"{ISSUER}/authorize",
    token_endpoint=f"{ISSUER}/token",
    jwks_uri=f"{ISSUER}/jwks",
)
ADMIN_LOGIN = ("/v1/admin-login", AdminLogins, {"integration": "staff", "roles": {"auditor": ["board"]}})
CLIENT_LOGIN = ("/v1/client-login", ClientLogins, {"integration": "staff", "app": "admin"})
OFFBOARDING = ("/v1/offboarding-rule", OffboardingRules, {"subject_from": "user_name"})
CHANGES: dict[str, dict[str, Any]] = {
    "/v1/admin-login": {"groups_claim": "teams"},
    "/v1/client-login": {"device": True},
    "/v1/offboarding-rule": {"dry_run": True},
}
RULES = pytest.mark.parametrize(("path", "rules", "body"), [ADMIN_LOGIN, CLIENT_LOGIN, OFFBOARDING])
_PUT, _ENDED = (
    (AuditAction.ADMIN_LOGIN_PUT, AuditAction.CLIENT_LOGIN_PUT, AuditAction.OFFBOARDING_RULE_PUT),
    (AuditAction.ADMIN_LOGIN_DELETED, AuditAction.CLIENT_LOGIN_DELETED, AuditAction.OFFBOARDING_RULE_DELETED),
)


@pytest.fixture
async def put(api: Api, admin: str):
    """Puts a rule, with changes."""
    for name in ("staff", "staff-2"):
        await api.integration(name, provider="generic", issuer=ISSUER, endpoints=_ENDPOINTS)

    async def send(path: str, body: dict[str, Any], **changes: Any) -> httpx2.Response:
        return await api.call("PUT", path, admin, json={**body, **changes})

    return send


async def ids(api: Api, *actions: AuditAction) -> list[str]:
    return [record.object for record in await api.records(*actions)]


@RULES
async def test_a_deletion_that_is_overtaken_by_another_rule_ends_that_one(
    api: Api,
    admin: str,
    put: Any,
    path: str,
    rules: type,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    assert (await put(path, body)).status_code == 201
    other = overtake(monkeypatch, api.store, rules, "to_replace", lambda: put(path, body, **CHANGES[path]))
    assert (await api.call("DELETE", path, admin)).status_code == 204
    assert (await other.result()).status_code == 200
    begun, ended = await ids(api, *_PUT), await ids(api, *_ENDED)
    assert ended[-1] == begun[-1]
    assert (await api.get(path, admin)).status_code == 404
    if rules is not OffboardingRules:  # whose replaced rules have no end of their own
        assert sorted(ended) == sorted(begun)


@RULES
async def test_of_rules_that_replace_one_at_once_each_but_the_last_ends(
    api: Api,
    admin: str,
    put: Any,
    path: str,
    rules: type,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    assert (await put(path, body)).status_code == 201
    other = overtake(monkeypatch, api.store, rules, "to_replace", lambda: put(path, body, **CHANGES[path]))
    changed = await put(path, body, **({"integration": "staff-2"} if "integration" in body else {"grace": 5}))
    assert (changed.status_code, (await other.result()).status_code) == (200, 200), changed.text
    begun, ended = await ids(api, *_PUT), await ids(api, *_ENDED)
    assert len(begun) == 3
    if rules is not OffboardingRules:
        assert ended == begun[:-1]


@RULES
async def test_of_first_rules_at_once_the_second_replaces_the_first(
    api: Api, put: Any, path: str, rules: type, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    other = overtake(monkeypatch, api.store, rules, "to_replace", lambda: put(path, body, **CHANGES[path]))
    first = await put(path, body)
    assert (first.status_code, (await other.result()).status_code) == (200, 201), first.text
    begun, ended = await ids(api, *_PUT), await ids(api, *_ENDED)
    assert len(begun) == 2
    if rules is not OffboardingRules:
        assert ended == begun[:1]
