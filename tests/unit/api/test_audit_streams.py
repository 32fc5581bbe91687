"""`/v1/audit/streams` and `/v1/audit/export` over HTTP: what is shown or sealed, and pages without a gap."""

import json
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit_streams.stream import StreamProblem
from evergrant_server.store.connections.histories import HistoryExport
from tests.fakes.api import TENANT, Api

URL = "https://siem.example.com/in?token=canary-in-the-url"
STREAM = "/v1/audit/streams/siem"


async def put(api: Api, key: str, name: str = "siem", **body: Any) -> httpx2.Response:
    return await api.call("PUT", f"/v1/audit/streams/{name}", key, json={"url": URL, **body})


async def test_the_secret_is_shown_once_and_what_is_sealed_never(api: Api, admin: str):
    made = await put(api, admin, format="ocsf", headers={"Authorization": "Splunk canary"})
    assert made.status_code == 201
    secret = made.json()["secret"]
    assert secret.startswith("whsec_")
    assert made.json()["header_names"] == ["Authorization"]
    changed = await put(api, admin, url="https://siem.example.com/in?***", format="otlp")
    assert (changed.status_code, changed.json()["secret"]) == (200, None)
    for path in (STREAM, "/v1/audit/streams", "/v1/audit"):
        answer = await api.get(path, admin)
        assert answer.status_code == 200
        assert secret not in answer.text
        assert "canary" not in answer.text
    async with api.worker.read() as tx:
        stream = await tx.audit_streams.by_name(TENANT, "siem")
        assert stream is not None
        access = await tx.audit_streams.access(stream)
    assert access.url.reveal() == URL
    assert {name: value.reveal() for name, value in access.headers.items()} == {
        "Authorization": "Splunk canary"
    }
    assert [one.reveal() for one in access.secrets] == [secret]
    rotated = await api.post(f"{STREAM}/rotate-secret", admin)
    assert rotated.json()["secret"] not in (None, secret)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://siem.example.com/in"}, "url"),
        ({"url": "https://10.0.0.1/in"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"format": "syslog"}, "format"),
        ({"headers": {"Host": "elsewhere.example"}}, "headers"),
        ({"headers": {"Webhook-Signature": "v1,forged"}}, "headers"),
        ({"headers": {"X-Split": "a\r\nX-Other: b"}}, "headers"),
        ({"headers": {"": "a"}}, "headers"),
    ],
)
async def test_a_receiver_that_cant_be_is_refused_by_the_name_of_its_member(
    api: Api, admin: str, body: dict[str, Any], field: str
):
    answer = await put(api, admin, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert field in answer.json()["detail"]


async def test_a_stream_begins_behind_what_is_there_or_at_the_oldest_record(api: Api, admin: str):
    await put(api, admin, "new")
    await put(api, admin, "whole", begin="oldest")
    counts = {
        one["name"]: one["unsent"] for one in (await api.get("/v1/audit/streams", admin)).json()["items"]
    }
    records = (await api.get("/v1/audit", admin)).json()["items"]
    assert counts == {"new": 2, "whole": len(records)}, "of the first its own record and the second's"


async def test_a_change_ends_a_pause(api: Api, admin: str):
    await put(api, admin)
    async with api.worker.write() as tx:
        stream = await tx.audit_streams.by_name(TENANT, "siem")
        assert stream is not None
        state = await tx.stream_states.get(TENANT, stream.id)
        assert state is not None
        failed = state.failed(StreamProblem.REFUSED, 401, None, api.clock.now())
        await tx.stream_states.replace(failed, expected=state.revision)
    shown = (await api.get(STREAM, admin)).json()
    assert (shown["failures"], shown["problem"], shown["response_status"]) == (1, "refused", 401)
    changed = (await put(api, admin, headers={"Authorization": "right"})).json()
    assert (changed["failures"], changed["problem"], changed["paused_until"]) == (0, None, None)


async def test_a_tenant_has_few_streams_and_a_deleted_one_is_gone(api: Api, admin: str):
    for number in range(5):
        assert (await put(api, admin, f"siem-{number}")).status_code == 201
    assert (await put(api, admin, "one-more")).status_code == 400
    assert (await api.call("DELETE", "/v1/audit/streams/siem-0", admin)).status_code == 204
    assert (await api.get("/v1/audit/streams/siem-0", admin)).status_code == 404
    assert (await put(api, admin, "one-more")).status_code == 201


async def exported(api: Api, key: str, **query: Any) -> tuple[list[dict[str, Any]], int]:
    """Every line but the ends of pages, and how many pages there were."""
    lines: list[dict[str, Any]] = []
    pages, cursor = 0, None
    while pages == 0 or cursor is not None:
        parameters = {**query, **({} if cursor is None else {"cursor": cursor})}
        answer = await api.get("/v1/audit/export", key, params=parameters)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/jsonl")
        *page, end = [json.loads(line) for line in answer.text.splitlines()]
        lines += page
        pages, cursor = pages + 1, end["page"]["next"]
    return lines, pages


async def test_an_export_has_every_record_once_by_shard_and_number(api: Api):
    auditor = await api.app_with("auditor", Action.AUDIT)
    integration = await api.integration()
    for number in range(3):
        connection = await api.active(integration, f"access-{number}", subject=f"subject-{number}")
        boss = await api.app_with(f"app-{number}", Action.TOKEN)
        assert (await api.post(f"/v1/connections/{connection.id}/token", boss)).status_code == 200
    lines, pages = await exported(api, auditor, limit=1)
    whole, one_page = await exported(api, auditor)
    records = (await api.get("/v1/audit", auditor, params={"limit": 500})).json()["items"]
    assert lines == whole
    assert (pages > 2, one_page) == (True, 1)
    places = [(line["shard"], line["index"]) for line in lines]
    assert places == sorted({(record["shard"], record["seq"]) for record in records})
    by_place = {(record["shard"], record["seq"]): record for record in records}
    for line in lines:
        record, body = by_place[line["shard"], line["index"]], json.loads(line["body"])
        assert (body["action"], body["object"], line["hash"]) == (
            record["action"],
            record["object"],
            record["hash"],
        )


async def test_an_export_has_the_histories_where_asked(api: Api):
    auditor = await api.app_with("auditor", Action.AUDIT)
    connection = await api.active(await api.integration())
    runs = [f"run-{number}" for number in range(7)]
    async with api.worker.write() as tx:
        for run in runs:
            history = HistoryExport(
                tenant=TENANT,
                connection_id=connection.id,
                workflow_id="connection:acme:con",
                run_id=run,
                exported_at=api.clock.now(),
                closed=True,
                last_event_id=1,
                events=[{"eventId": "1", "eventType": "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED"}],
            )
            await tx.histories.add(history)
    lines, _ = await exported(api, auditor, histories="true")
    assert [line["history"]["run_id"] for line in lines if "history" in line] == runs
    assert not [line for line in (await exported(api, auditor))[0] if "history" in line]


async def test_only_who_audits_the_whole_tenant_exports(api: Api):
    app = await api.app_with("app", Action.TOKEN)
    assert (await api.get("/v1/audit/export", app)).status_code == 403
    auditor = await api.app_with("auditor", Action.AUDIT)
    forged = await api.get("/v1/audit/export", auditor, params={"cursor": "AAAA"})
    assert forged.json()["code"] == "invalid_request"
