"""`?dry_run=true` of a PUT: judged and answered as if it were made, and nothing of it is kept."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api, running_api
from tests.fakes.databases import database_url, postgres_server

__all__ = ["database_url", "postgres_server"]

DRY = {"dry_run": "true"}
INTEGRATION = {"provider": "github", "client_id": "Iv1.abc", "client_secret": "canary-1"}
WEBHOOK = {"url": "https://hooks.example.com/in?token=canary-2"}
STREAM = {"url": "https://siem.example.com/in", "headers": {"Authorization": "Bearer canary-3"}}
RECEIVER = {"kind": "github", "secret": "canary-4-of-32-characters-is-long"}
ISSUER = {"kind": "oidc", "issuer": "https://login.example.com"}
THUMBPRINT = {"thumbprint": "A" * 43}
# each PUT with a dry run, in the order that they need: a body, a change of it, and the changed members
CHANGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/integrations/github", INTEGRATION, {"default_scopes": ["repo"]}),
    ("/v1/integrations/github/security-events", RECEIVER, {"account_in": "sub"}),
    ("/v1/apps/report", {"lease_limit": 60}, {"lease_limit": 61}),
    ("/v1/apps/report/permits/read", {"integration": "github", "actions": ["token"]}, {"purpose": "weekly"}),
    (
        "/v1/apps/report/credentials/main",
        {"method": "self_signed_tls_client_auth", "parameters": THUMBPRINT},
        {"parameters": {"thumbprint": "B" * 42 + "A"}},
    ),
    (
        "/v1/agents/report",
        {"purpose": "writes reports", "ends_at": "2026-06-01T00:00:00Z", "sponsor": "app:other"},
        {"purpose": "reads reports"},
    ),
    ("/v1/issuers/staff", ISSUER, {"jwks_uri": "https://login.example.com/keys"}),
    (
        "/v1/delegation-rules/web",
        {"issuer": "staff", "token_type": "id_token", "audience": "web", "actors": ["other"]},
        {"audience": "shop"},
    ),
    ("/v1/webhooks/on-call", WEBHOOK, {"events": ["connection.revoked"]}),
    ("/v1/audit/streams/siem", STREAM, {"format": "ocsf"}),
]


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    """On both databases: each rolls back in its own way."""
    async with running_api(tmp_path, database_url=database_url) as api:
        yield api


def shown(view: dict[str, Any]) -> dict[str, Any]:
    """A view without what each change has anew."""
    anew = {"id", "revision", "created_at", "secret", "secret_changed_at", "redirect_uri", "url"}
    anew |= {"changed_at", "unsent"}
    return {name: value for name, value in view.items() if name not in anew}


def test_every_put_with_a_dry_run_is_tried(api: Api):
    paths = api.app.openapi()["paths"]
    declared = {
        path
        for path, methods in paths.items()
        if "dry_run" in {parameter["name"] for parameter in methods.get("put", {}).get("parameters", ())}
    }
    assert len(declared) == len(CHANGES)


async def test_a_dry_run_answers_as_the_change_and_keeps_nothing(api: Api, admin: str):
    await api.call("PUT", "/v1/apps/other", admin, json={})
    for path, body, change in CHANGES:
        before = await api.records()
        dry = await api.call("PUT", path, admin, json=body, params=DRY)
        status = 200 if "/agents/" in path else 201  # of an app that is there
        assert dry.status_code == status, (path, dry.text)
        assert (await api.get(path, admin)).status_code == 404, path
        assert await api.records() == before
        made = await api.call("PUT", path, admin, json=body)
        assert (made.status_code, shown(made.json())) == (status, shown(dry.json())), path
        assert dry.json().get("secret") is None

        stored, records = (await api.get(path, admin)).json(), await api.records()
        changed = await api.call("PUT", path, admin, json=body | change, params=DRY)
        assert changed.status_code == 200, (path, changed.text)
        for name, value in change.items():
            assert changed.json()[name] == value != stored[name], path
        same = await api.call("PUT", path, admin, json=body, params=DRY)
        assert {name: stored[name] for name in shown(same.json())} == shown(same.json()), path
        assert "evergrant-changed-secret" not in same.headers
        assert (await api.get(path, admin)).json() == stored
        assert await api.records() == records


@pytest.mark.parametrize(
    ("number", "secret", "named"),
    [
        (0, {"client_secret": "canary-9"}, "client_secret"),
        (1, {"secret": "canary-9-of-32-characters-is-long"}, "secret"),
        (8, {"url": "https://hooks.example.com/in?token=canary-9"}, "url"),
        (9, {"headers": {"Authorization": "Bearer canary-9"}}, "headers"),
        (9, {"url": "https://siem.example.com/in?key=canary-9"}, "url"),
    ],
)
async def test_a_dry_run_tells_an_admin_alone_that_a_secret_is_another_one(
    api: Api, admin: str, number: int, secret: dict[str, Any], named: str
):
    auditor = await api.app_with("auditor", Action.AUDIT)
    await api.call("PUT", CHANGES[0][0], admin, json=CHANGES[0][1])
    path, body, change = CHANGES[number]
    await api.call("PUT", path, admin, json=body)
    records = len(await api.records())
    told = await api.call("PUT", path, admin, json=body | secret, params=DRY)
    assert (told.status_code, told.headers["evergrant-changed-secret"]) == (200, named)
    assert "canary" not in told.text
    for sent in (body, body | secret):
        refused = await api.call("PUT", path, auditor, json=sent, params=DRY)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    public = {name: value for name, value in (body | change).items() if "canary" not in str(value)}
    if "url" in body:
        public["url"] = (await api.get(path, admin)).json()["url"]  # as an auditor sees it
    seen = await api.call("PUT", path, auditor, json=public, params=DRY)
    assert seen.status_code == 200, seen.text
    assert (await api.call("PUT", path, auditor, json=public)).status_code == 403
    assert len(await api.records()) == records


async def test_a_dry_run_says_that_a_second_admin_has_to_approve_and_asks_none(api: Api, admin: str):
    api.parts.settings.four_eyes = True
    path, body, _ = CHANGES[0]
    dry = await api.call("PUT", path, admin, json=body, params=DRY)
    assert (dry.status_code, dry.headers["evergrant-needs-approval"]) == (201, "true")
    assert (await api.get("/v1/approvals", admin)).json()["items"] == []
    plain = await api.call("PUT", "/v1/apps/report", admin, json={}, params=DRY)
    assert "evergrant-needs-approval" not in plain.headers


async def test_what_a_change_would_refuse_its_dry_run_refuses(api: Api, admin: str):
    body = {"provider": "github", "client_id": "a", "client_secret": "b", "login": {"integration": "absent"}}
    dry = await api.call("PUT", "/v1/integrations/github", admin, json=body, params=DRY)
    real = await api.call("PUT", "/v1/integrations/github", admin, json=body)
    assert dry.json() == real.json()
    assert dry.status_code == 400


async def test_a_route_without_a_dry_run_refuses_the_parameter(api: Api, admin: str):
    body = {"integration": "github", "roles": {"admin": ["staff"]}}
    refused = await api.call("PUT", "/v1/admin-login", admin, json=body, params=DRY)
    assert (refused.status_code, refused.json()["field"]) == (400, "query")


async def test_the_owner_of_a_change_is_in_its_audit_record(api: Api, admin: str):
    for path, body, _ in CHANGES[2:4]:
        await api.call("PUT", path, admin, json=body, params={"managed_by": "platform-team"})
    app = (await api.records(AuditAction.APP_PUT))[-1]
    permit = (await api.records(AuditAction.PERMIT_PUT))[-1]
    assert app.detail["managed_by"] == permit.detail["managed_by"] == "platform-team"
    refused = await api.call("PUT", "/v1/apps/report", admin, json={}, params={"managed_by": "Not A Name"})
    assert refused.status_code == 400
