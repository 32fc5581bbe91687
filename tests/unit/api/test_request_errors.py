"""A malformed request is answered in plain words, with the name that was probably meant."""

from typing import Any

import pytest

from evergrant_server.core.access import Action
from tests.fakes.api import Api

LEASE, PERMIT = {"integration": "crm", "subject": "u"}, {"integration": "crm", "subjects": ["u"]}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/lease", {**LEASE, "scope": "read"}, "scope: there is no such member; did you mean scopes?"),
        ("/v1/lease", {**LEASE, "scopes": "read"}, 'scopes: must be a list, such as ["…"]'),
        ("/v1/lease", {"integration": "crm", "user": "u"}, "subject: is missing"),
        (
            "/v1/connections",
            {**LEASE, "returnTo": "x"},
            "returnTo: there is no such member; did you mean return_to?",
        ),
        ("/v1/connections", {**LEASE, "scopes": "read"}, 'scopes: must be a list, such as ["…"]'),
        (
            "/v1/connections",
            {**LEASE, "return_to": "app.example"},
            "return_to: must be a whole URL: begin it",
        ),
    ],
)
async def test_a_member_is_named_with_what_is_wrong(api: Api, path: str, body: dict[str, Any], said: str):
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    answer = await api.call("POST", path, key, json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(said)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("permits/crm", {**PERMIT, "actions": ["tokens"]}, "did you mean token?"),
        ("", {"return_to": ["https://*.example.com/"]}, "name each host by itself"),
        ("", {"disabled": "no"}, "must be true or false"),
        ("", {"lease_limit": 0}, "must be at least 1"),
        ("permits/crm", {**PERMIT, "actions": ["token"], "sources": ["10.0.0.1/8"]}, "write 10.0.0.0/8"),
        (
            "permits/crm",
            {**PERMIT, "actions": ["token"], "expires_at": "2027"},
            "with a zone, such as 2026-",
        ),
    ],
)
async def test_a_value_is_told_what_may_stand_there(
    api: Api, admin: str, path: str, body: dict[str, Any], said: str
):
    await api.call("PUT", "/v1/apps/web", admin, json={})
    answer = await api.call("PUT", f"/v1/apps/web/{path}".rstrip("/"), admin, json=body)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


async def test_a_form_is_told_to_be_json(api: Api, admin: str):
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = await api.call("PUT", "/v1/apps/web", admin, content=b"disabled=true", headers=form)
    assert "send JSON, with Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize(("query", "said"), [("state=actve", "did you mean active?"),
                                             ("stat=active", "did you mean state?"),
                                             ("user=canary", "this route has accounts, ")])  # fmt: skip
async def test_a_query_that_would_be_ignored_is_refused(api: Api, query: str, said: str):
    key = await api.app_with("pipeline", Action.TOKEN)
    answer = await api.get(f"/v1/connections?{query}", key)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert "canary" not in answer.text


@pytest.mark.parametrize("path", ["/v1/lease", "/v1/connections"])
@pytest.mark.parametrize("body", [b"{'integration': 'crm'}", b'{"integration": "crm",}'])
async def test_what_is_no_json_is_told_where(api: Api, path: str, body: bytes):
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    answer = await api.call("POST", path, key, content=body, headers={"content-type": "application/json"})
    detail = answer.json()["detail"]
    assert detail.startswith("body: not valid JSON: ")
    assert any(letter.isdigit() for letter in detail)
    assert "crm" not in detail


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-api-key": "canary"}, "needs one Authorization header, and none came"),
        ({"authorization": "canary"}, "doesn't begin with Bearer"),
        ({"authorization": "Basic canary"}, "doesn't begin with Bearer"),
        ({"authorization": "Bearer report.key"}, "That is no API key"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/lease", "/v1/connections"])
async def test_what_is_wrong_with_a_credential_is_said(
    api: Api, path: str, headers: dict[str, str], said: str
):
    answer = await api.call("POST", path, json=LEASE, headers=headers)
    assert answer.status_code == 401
    assert said in answer.json()["detail"]
    assert "canary" not in answer.text


async def test_a_path_and_a_method_that_are_near_are_named(api: Api):
    assert "Did you mean /v1/lease?" in (await api.call("POST", "/lease", json={})).json()["detail"]
    assert "Did you mean /v1/connections?" in (await api.get("/v1/connections/")).json()["detail"]
    by_id = await api.call("POST", "/connections/con_canary/token", json={})
    assert "Did you mean /v1/connections/{connection_id}/token?" in by_id.json()["detail"]
    assert "POST alone" in (await api.get("/v1/lease")).json()["detail"]


async def test_a_page_that_is_not_listed_names_the_command_that_lists_it(api: Api):
    key = await api.app_with("web", Action.CONNECT)
    await api.integration("crm")
    body = {**LEASE, "return_to": "https://app.example/"}
    answer = (await api.call("POST", "/v1/connections", key, json=body)).json()
    assert "evergrant apps put web --return-to URL" in answer["repair"]
