"""Who used this connection, what did this app reach, which tokens were handed out between two moments."""

from datetime import timedelta
from typing import Any

import pytest

from activities import questions
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.store.database.columns import METADATA
from evergrant_server.store.questions import questions as store
from tests.fakes.api import OTHER, Api
from tests.unit.api.questions.asking import QUESTIONS, answered, asked, lines_of, worked

HOUR = timedelta(hours=1)


async def three_connections(api: Api) -> tuple[list[str], dict[str, str]]:
    """One used by two apps, one by the first app, one by nobody; ids, and keys by name."""
    integration = await api.integration()
    keys = {
        "first": await api.app_with("first", Action.TOKEN),
        "second": await api.app_with("second", Action.TOKEN),
        "auditor": await api.app_with("auditor", Action.AUDIT),
    }
    ids: list[str] = [(await api.active(integration, f"at-{n}", subject=f"user-{n}")).id for n in (1, 2, 3)]
    for _ in range(3):
        assert (await api.lease(keys["first"])).status_code == 200
    assert (await api.lease(keys["second"])).status_code == 200
    assert (await api.lease(keys["first"], subject="user-2")).status_code == 200
    await api.parts.ledger.stop()  # what was used is written with the next batch
    return ids, keys


async def test_who_used_a_connection_is_each_app_with_what_it_was_handed(api: Api):
    (one, _, three), keys = await three_connections(api)
    lines = await answered(api, keys["auditor"], "connection_uses", connection_id=one)
    uses = {line["facts"]["app"]: line["facts"] for line in lines}
    assert {app: facts["uses"] for app, facts in uses.items()} == {"first": 3, "second": 1}
    first = uses["first"]
    assert first["actions"] == {"lease.issued": 3}
    assert first["by"] == {"app:first": 3}
    assert (first["subject"], first["integration"], first["scopes"]) == ("user-1", "crm", ["read_user"])
    assert (first["first_generation"], first["last_generation"]) == (1, 1)
    assert await answered(api, keys["auditor"], "connection_uses", connection_id=three) == []
    (line,) = await answered(api, keys["auditor"], "connection_uses", connection_id=one, app="second")
    assert line["facts"]["app"] == "second"


async def test_an_apps_reach_is_of_the_time_that_was_named(api: Api):
    (one, two, _), keys = await three_connections(api)
    now = api.clock.now()
    lines = await answered(api, keys["auditor"], "app_reach", app="first")
    assert {line["connection_id"] for line in lines} == {one, two}
    window = {"since": (now - HOUR).isoformat(), "until": (now + HOUR).isoformat()}
    assert len(await answered(api, keys["auditor"], "app_reach", app="first", **window)) == 2
    before = {"since": (now - 2 * HOUR).isoformat(), "until": (now - HOUR).isoformat()}
    assert await answered(api, keys["auditor"], "app_reach", app="first", **before) == []
    elsewhere = await answered(api, keys["auditor"], "app_reach", app="first", integration="other")
    assert elsewhere == []


async def test_an_incident_has_every_token_and_every_export_of_its_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(questions, "_CONNECTIONS", 1)  # several pages
    monkeypatch.setattr(questions, "_RECORDS", 2)
    ids, keys = await three_connections(api)
    since = (api.clock.now() - HOUR).isoformat()
    lines = await answered(api, keys["auditor"], "incident", since=since)
    of = sorted((line["facts"]["app"], line["connection_id"]) for line in lines)
    assert of == sorted([("first", ids[0]), ("second", ids[0]), ("first", ids[1])])
    (line,) = await answered(api, keys["auditor"], "incident", since=since, app="second")
    assert line["facts"]["app"] == "second"
    later = (api.clock.now() + 3 * HOUR).isoformat()
    assert await answered(api, keys["auditor"], "incident", since=later) == []


async def test_an_incident_has_a_token_whose_last_use_was_not_written(api: Api):
    """The process was killed between the lease and the batch after it, which writes last uses."""
    (one, two, _), keys = await three_connections(api)
    async with api.worker.write() as tx:
        await tx.connection.execute(METADATA.tables["lease_use"].delete())
    since = (api.clock.now() - HOUR).isoformat()
    lines = await answered(api, keys["auditor"], "incident", since=since, app="first")
    assert {line["connection_id"] for line in lines} == {one, two}
    assert await answered(api, keys["auditor"], "incident", since=since, integration="other") == []


async def test_an_app_that_is_gone_is_named_by_its_id(api: Api):
    (one, *_), keys = await three_connections(api)
    gone = (await api.app_named("second")).id
    admin = await api.app_with("boss", Action.ADMIN)
    assert (await api.call("DELETE", "/v1/apps/second", admin)).status_code == 204
    (line,) = await answered(api, keys["auditor"], "app_reach", app=gone)
    assert (line["connection_id"], line["facts"]["app"], line["facts"]["app_id"]) == (one, None, gone)


async def test_a_worker_that_comes_second_goes_on_where_the_first_was(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    """The first is killed after a page: no line is there twice."""
    monkeypatch.setattr(questions, "_CONNECTIONS", 1)
    _, keys = await three_connections(api)
    question = await asked(api, keys["auditor"], "app_reach", app="first")
    outbox = await api.outbox()
    write, pages = questions.QuestionActivities._write, []

    async def killed(self: Any, *more: Any) -> None:
        await write(self, *more)
        pages.append(more)
        if len(pages) == 1:
            raise ConnectionAbortedError

    async def same_outbox() -> Any:
        return outbox

    monkeypatch.setattr(questions.QuestionActivities, "_write", killed)
    monkeypatch.setattr(api, "outbox", same_outbox)
    with pytest.raises(ConnectionAbortedError):
        await worked(api, question)
    half = (await api.get(f"{QUESTIONS}/{question['id']}", keys["auditor"])).json()
    assert (half["state"], half["items"]) == ("running", 1)
    assert (await worked(api, question)).done
    lines = await lines_of(api, keys["auditor"], question)
    assert [line["number"] for line in lines] == [1, 2]
    assert (await worked(api, question)).items == 2, "nothing is left to do"


async def test_that_a_question_was_asked_is_recorded(api: Api):
    (one, *_), keys = await three_connections(api)
    question = await asked(api, keys["auditor"], "connection_uses", connection_id=one)
    (record,) = await api.records(AuditAction.QUESTION_ASKED)
    assert (record.object, record.context.by) == (question["id"], "app:auditor")
    assert record.detail == {"question": "connection_uses", "connection_id": one}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"question": "everything"}, "question"),
    ({"question": "connection_uses"}, "connection_id"),
    ({"question": "incident"}, "since"),
    ({"question": "subject"}, "subject"),
    ({"question": "subject", "subject": "alice", "app": "first"}, "app"),
    ({"question": "subject", "subject": "*"}, "subject"),
    ({"question": "incident", "since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "until"),
    ({"question": "incident", "since": "yesterday"}, "since"),
    ({"question": "incident", "since": 1767225600}, "since"),
    ({"question": "app_reach", "app": "a" * 65}, "app"),
    ({"question": "app_reach", "app": "First App"}, "app"),
    ({"question": "app_reach", "app": "first", "limit": 5}, "limit"),
]


@pytest.mark.parametrize(("body", "named"), BAD)
async def test_a_bad_question_names_what_is_wrong(api: Api, body: dict[str, Any], named: str):
    auditor = await api.app_with("auditor", Action.AUDIT)
    answer = await api.post(QUESTIONS, auditor, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert named in answer.text


async def test_what_isnt_there_is_not_found(api: Api):
    auditor = await api.app_with("auditor", Action.AUDIT)
    other = await api.active(await api.integration(tenant=OTHER), tenant=OTHER)
    for about in (
        {"question": "connection_uses", "connection_id": other.id},
        {"question": "connection_uses", "connection_id": "con_\x00"},
        {"question": "app_reach", "app": "nobody"},
    ):
        answer = await api.post(QUESTIONS, auditor, about)
        assert answer.status_code in (400, 404), answer.text
    for path in ("qst_0000000000000000000000", "x", "qst_0000000000000000000000/answer"):
        assert (await api.get(f"{QUESTIONS}/{path}", auditor)).status_code == 404
    bad = await api.get(f"{QUESTIONS}/qst_1/answer", auditor, params={"cursor": "x"})
    assert bad.status_code == 400


async def test_only_admins_and_auditors_ask_and_of_their_own_tenant(api: Api):
    (one, *_), keys = await three_connections(api)
    question = await asked(api, keys["auditor"], "connection_uses", connection_id=one)
    stranger = await api.app_with("auditor", Action.AUDIT, tenant=OTHER)
    for key in (keys["first"], await api.app_with("connecting", Action.CONNECT)):
        assert (await api.post(QUESTIONS, key, {"question": "subject", "subject": "a"})).status_code == 403
        assert (await api.get(f"{QUESTIONS}/{question['id']}", key)).status_code == 403
        for path in ("/v1/access/unused", "/v1/detections", QUESTIONS):
            assert (await api.get(path, key)).status_code == 403
    assert (await api.get(f"{QUESTIONS}/{question['id']}", stranger)).status_code == 404
    assert (await api.get(f"{QUESTIONS}/{question['id']}/answer", stranger)).status_code == 404
    assert (await api.get(QUESTIONS, stranger)).json()["items"] == []


async def test_ten_questions_are_answered_at_a_time(api: Api):
    auditor = await api.app_with("auditor", Action.AUDIT)
    for _ in range(10):
        await asked(api, auditor, "subject", subject="alice")
    answer = await api.post(QUESTIONS, auditor, {"question": "subject", "subject": "alice"})
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) > 0


async def test_unused_connections_are_those_that_nothing_has_leased(api: Api):
    ids, keys = await three_connections(api)

    async def unused(**more: Any) -> list[str]:
        page = (await api.get("/v1/access/unused", keys["auditor"], params=more)).json()
        return [connection["id"] for connection in page["items"]]

    assert await unused() == [ids[2]]
    now = api.clock.now()
    assert await unused(since=(now - HOUR).isoformat()) == [], "each is younger"
    later = (now + timedelta(days=90)).isoformat()
    assert await unused(since=later) == sorted(ids)
    first = (await api.get("/v1/access/unused", keys["auditor"], params={"since": later, "limit": 2})).json()
    rest = {"since": later, "limit": 2, "cursor": first["next_cursor"]}
    second = (await api.get("/v1/access/unused", keys["auditor"], params=rest)).json()
    assert [each["id"] for each in (*first["items"], *second["items"])] == sorted(ids)
    assert {each["used_at"] is None for each in first["items"] + second["items"]} == {True, False}


async def test_a_page_of_unused_connections_looks_at_a_bounded_number(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "MOST_LOOKED_AT", 2)
    ids, keys = await three_connections(api)
    pages, more = 0, dict[str, Any]()
    found: list[str] = []
    while True:
        page = (await api.get("/v1/access/unused", keys["auditor"], params=more)).json()
        pages, found = pages + 1, found + [connection["id"] for connection in page["items"]]
        if page["next_cursor"] is None:
            break
        more = {"cursor": page["next_cursor"]}
    assert (pages, found) == (2, [ids[2]])


async def test_changes_of_access_have_rules_and_logins_too(api: Api, admin: str):
    body = {"issuer": "https://idp.example", "kind": "oidc", "jwks_uri": "https://idp.example/keys"}
    await api.call("PUT", "/v1/issuers/idp", admin, json=body)
    changes = (await api.get("/v1/access/changes", admin)).json()["items"]
    assert any(change["action"].startswith("trusted_issuer.") for change in changes), changes
