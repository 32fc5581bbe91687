"""Every error is a problem document: no traceback, no echo of what was sent."""

import json

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.problems import QUOTA_EXCEEDED, problem_document
from tests.fakes.api import Api

MEMBERS = {"type", "title", "status", "detail", "code", "kind", "repairer", "repair"}


def assert_problem(answer: httpx2.Response, code: str) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) >= MEMBERS
    assert (body["code"], body["status"]) == (code, answer.status_code)
    assert answer.status_code == FAILURES[ErrorCode(code)].status
    assert answer.headers["cache-control"] == "no-store"
    return body


@pytest.mark.parametrize("code", list(ErrorCode))
def test_the_table_fills_every_document(code: ErrorCode):
    body = problem_document(Failure(code, "detail", provider="x", status="9", kind="no"), "https://e")
    assert (body["status"], body["code"], body["provider"]) == (FAILURES[code].status, code.value, "x")
    quota = code is ErrorCode.RATE_LIMITED  # a type of its own, from the draft of the RateLimit fields
    assert body["type"] == (QUOTA_EXCEEDED if quota else f"https://e/docs#{code.value}")


async def test_what_starlette_would_say_itself(api: Api):
    assert_problem(await api.get("/nowhere"), "not_found")
    assert_problem(await api.get("/v1/connections/"), "not_found")
    not_allowed = await api.call("PATCH", "/v1/lease")
    assert_problem(not_allowed, "method_not_allowed")
    assert not_allowed.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff", "body"),
        (b'{"integration": "crm"}', "subject"),
        (b'{"integration": "crm", "subject": 7}', "subject"),
        (b'{"integration": "CRM", "subject": "u"}', "integration"),
        (b'{"integration": "crm", "subject": "*"}', "subject"),
        (b'{"integration": "crm", "subject": "u", "canary-value": 1}', "canary-value"),
        (b'{"integration": "crm", "subject": "u", "<script>": 1}', "?"),
        (b'{"integration": "crm", "subject": "u", "scopes": ["canary value"]}', "scopes.0"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/lease", "/v1/connections"])
async def test_a_malformed_body_names_its_field_and_echoes_no_value(
    api: Api, path: str, body: bytes, field: str
):
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    headers = {"content-type": "application/json"}
    answer = await api.call("POST", path, key, content=body, headers=headers)
    said = assert_problem(answer, "invalid_request")
    assert field in {error["field"].split(":")[0] for error in said["errors"]} | {said["field"]}
    for echoed in ("<script>", "canary value", "Traceback", "CRM"):
        assert echoed not in answer.text


@pytest.mark.parametrize("path", ["/v1/lease", "/v1/connections"])
async def test_a_body_above_a_mebibyte_is_413_declared_or_not(api: Api, path: str):
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    big = json.dumps({"integration": "crm", "subject": "u" * (1 << 20)}).encode()

    async def chunks():
        for start in range(0, len(big), 65_536):
            yield big[start : start + 65_536]

    headers = {"content-type": "application/json"}
    assert_problem(await api.call("POST", path, key, content=big, headers=headers), "body_too_large")
    assert_problem(await api.call("POST", path, key, content=chunks(), headers=headers), "body_too_large")


async def test_a_bug_is_a_500_without_a_word_about_it(api: Api, caplog: pytest.LogCaptureFixture):
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("canary in a traceback")

    key = await api.app_with("pipeline", Action.TOKEN)
    api.parts.lease_rows.load = broken  # type: ignore[method-assign]  # a bug, on purpose
    answer = await api.post("/v1/connections/con_x/token", key, headers={"X-Request-Id": "find-me"})
    body = assert_problem(answer, "internal")
    assert body["request_id"] == "find-me"
    assert "canary" not in answer.text
    assert "find-me" in caplog.text


async def test_request_ids_come_back_and_hostile_ones_do_not(api: Api):
    good = await api.get("/livez", headers={"X-Request-Id": "abc-123"})
    assert good.headers["x-request-id"] == "abc-123"
    bad = await api.get("/livez", headers={"X-Request-Id": "a b<script>"})
    assert len(bad.headers["x-request-id"]) == 32
