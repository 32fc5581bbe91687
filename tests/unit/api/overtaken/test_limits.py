"""Limits that are counted before a row is added hold for commands that come at once."""

from typing import Any

import httpx2
import pytest

from evergrant_server.api import audit_streams, questions, webhooks
from evergrant_server.store.audit_streams import AuditStreams
from evergrant_server.store.questions.questions import Questions
from evergrant_server.store.webhooks import Webhooks
from tests.fakes.api import Api
from tests.fakes.postgresql.overtaking import overtake

_HOOK = {"url": "https://hooks.example/evergrant"}
_STREAM = {"url": "https://siem.example/records", "format": "cloudevents"}
_LIMITS: list[Any] = [
    pytest.param(webhooks, "MAX_WEBHOOKS", Webhooks, "page", "PUT /v1/webhooks/{name}", _HOOK, id="webhooks"),
    pytest.param(
        audit_streams,
        "MAX_STREAMS",
        AuditStreams,
        "page",
        "PUT /v1/audit/streams/{name}",
        _STREAM,
        id="streams",
    ),
    pytest.param(
        questions,
        "MOST_OPEN",
        Questions,
        "count_running",
        "POST /v1/questions",
        {"question": "log"},
        id="questions",
    ),
]


@pytest.mark.parametrize(("module", "limit", "repository", "counts", "command", "body"), _LIMITS)
async def test_of_two_that_come_at_once_the_last_place_has_one(
    api: Api,
    admin: str,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    limit: str,
    repository: type[Any],
    counts: str,
    command: str,
    body: dict[str, object],
):
    monkeypatch.setattr(module, limit, 1)
    method, path = command.split()

    async def add(name: str) -> httpx2.Response:
        return await api.call(method, path.format(name=name), admin, json=body)

    second = overtake(monkeypatch, api.store, repository, counts, lambda: add("second"))
    first, refused = await add("first"), await second.result()
    assert (first.is_success, refused.is_success) == (True, False), (first.text, refused.text)
