"""Connections over HTTP: begin, look, list, refresh, reauthorize, revoke; each idempotent."""

import pytest
from sqlalchemy import update
from sqlmodel import col

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.connection import ConnectionStart
from evergrant_server.core.outbox import OutboxKind
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from tests.fakes.api import Api

NEW = {"integration": "crm", "subject": "user-1"}


async def actions(api: Api, what: str) -> list[AuditAction]:
    return [it.action for it in await api.records(of=what)]


async def test_begin_writes_rows_outbox_and_audit_together(api: Api):
    key = await api.app_for("asker", Action.CONNECT)
    answer = await api.post("/v1/connections", key, NEW)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert (body["state"], body["generation"], body["label"]) == ("pending_consent", 0, "default")
    assert body["connect_url"].startswith("https://evergrant.test/connect/")
    assert body["expires_at"] == body["connect_expires_at"] == "2026-01-02T04:04:05.678901Z"
    assert body["requested_scopes"] == ["read_user"]
    (message,) = await api.outbox()
    assert (message.kind, message.target) == (OutboxKind.START_WORKFLOW, f"connection:acme:{body['id']}")
    start = ConnectionStart.model_validate(message.payload)
    assert (start.connection_id, start.context.by) == (body["id"], "app:asker")
    assert "user-1" not in str(message.payload)
    assert await actions(api, body["id"]) == [AuditAction.CONNECTION_CREATED]
    assert api.relay.nudges == 1


async def test_begin_again_gives_what_there_is(api: Api):
    integration = await api.integration()
    key = await api.app_with("asker", Action.CONNECT)
    first = (await api.post("/v1/connections", key, NEW)).json()
    again = await api.post("/v1/connections", key, NEW)
    assert again.status_code == 200
    assert (again.json()["id"], again.json()["connect_url"]) == (first["id"], first["connect_url"])
    active = await api.active(integration, subject="user-2")
    there = await api.post("/v1/connections", key, {**NEW, "subject": "user-2"})
    assert (there.status_code, there.json()["id"], there.json()["state"]) == (200, active.id, "active")
    assert there.json()["connect_url"] is None


async def test_begin_again_while_refreshes_fail_says_what_the_next_try_decides(api: Api):
    """An app that waits knows for what, and until when: `active` alone said nothing."""
    connection, key = await api.active_for("asker", Action.CONNECT)
    well = (await api.post("/v1/connections", key, NEW)).json()
    assert (well["next_action"], well["next_at"]) == (None, None)
    down = ErrorCode.PROVIDER_ERROR
    await api.change(connection, lambda row: row.refresh_failed(down, api.clock.now(), token_over=True))
    failing = (await api.post("/v1/connections", key, NEW)).json()
    assert (failing["state"], failing["repairer"], failing["connect_url"]) == ("active", "time", None)
    assert (failing["next_action"], failing["next_at"]) == ("refresh due", "2026-01-02T03:04:05.678901Z")
    api.link.up = False
    away = await api.post("/v1/connections", key, NEW)
    assert (away.status_code, away.json()["next_action"]) == (200, None)


async def test_after_a_revocation_a_new_connection_begins(api: Api):
    connection, key = await api.active_for("asker", Action.CONNECT)
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))
    still = await api.post("/v1/connections", key, NEW)
    assert (still.status_code, still.json()["state"]) == (200, "revoking")
    await api.change(connection, lambda it: it.revocation_ended(RevocationOutcome.CONFIRMED, api.clock.now()))
    assert (await api.post("/v1/connections", key, NEW)).status_code == 201


async def test_look_says_what_comes_next_and_never_a_secret(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN)
    body = (await api.get(f"/v1/connections/{connection.id}", key)).json()
    assert (body["state"], body["generation"], body["scopes"]) == ("active", 1, ["read_user"])
    assert (body["expires_at"], body["next_action"]) == ("2026-01-02T04:04:05.678901Z", "refresh due")
    assert "at-1" not in str(body)
    api.link.up = False
    assert (await api.get(f"/v1/connections/{connection.id}", key)).json()["state"] == "active"
    for answer in (await api.get("/livez", ""), await api.get("/v1/connections", "no key")):
        assert answer.headers["evergrant-version"] == api.app.version


async def test_a_grant_that_is_probably_over_names_its_last_try(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN)
    over = ErrorCode.GRANT_PROBABLY_OVER
    await api.change(connection, lambda row: row.rejected(over, api.clock.now()))
    path = f"/v1/connections/{connection.id}"
    body = (await api.get(path, key)).json()
    assert (body["state"], body["reason"], body["repairer"]) == ("needs_reauth", over, "subject")
    assert (body["next_action"], body["next_at"]) == ("reauthorize", "2026-01-03T03:04:05.678901Z")
    api.clock.advance(86_400)
    late = (await api.get(path, key)).json()
    assert (late["next_action"], late["next_at"]) == ("reauthorize", None)


async def test_live_is_the_workflows_own_word_and_says_where_it_differs(api: Api):
    connection, key = await api.active_for("reader", Action.TOKEN)
    path = f"/v1/connections/{connection.id}"
    assert (await api.get(path, key)).json()["live"] is None
    body = (await api.get(f"{path}?live=true", key)).json()
    assert (body["live"]["state"], body["live"]["generation"]) == ("active", 1)
    assert (body["live"]["next_step"], body["next_action"]) == ("refresh due", "refresh due")
    assert body["differs"] == ["expires_at"]  # the scripted workflow knows of none
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))
    assert (await api.get(f"{path}?live=true", key)).json()["differs"][0] == "state"
    api.link.ended = True
    ended = (await api.get(f"{path}?live=true", key)).json()
    assert (ended["state"], ended["live"], ended["differs"]) == ("revoking", None, None)
    api.link.up = False
    away = (await api.get(f"{path}?live=true", key)).json()
    assert (away["state"], away["live"], away["differs"]) == ("revoking", None, None)


async def test_lists_filter_and_show_only_what_a_permit_covers(api: Api):
    integration = await api.integration()
    for subject in ("a", "b", "c"):
        await api.active(integration, subject=subject)
    pending = await api.connection(integration, subject="d")
    everyone = await api.app_with("everyone", Action.TOKEN)
    some = await api.app_with("some", Action.TOKEN, subjects=("a", "d"))

    async def subjects(key: str, query: str = "") -> set[str]:
        return {it["subject"] for it in (await api.get(f"/v1/connections{query}", key)).json()["items"]}

    assert await subjects(everyone) == {"a", "b", "c", "d"}
    assert await subjects(some) == {"a", "d"}
    assert await subjects(everyone, "?state=active&subject=b") == {"b"}
    assert await subjects(everyone, "?state=pending_consent") == {pending.subject}
    assert await subjects(everyone, "?expiring_before=2026-01-02T05:00:00Z") == {"a", "b", "c"}
    assert (await api.get("/v1/connections?state=nonsense", everyone)).status_code == 400


MOMENTS = ["2026-01-02T06:00:00%2B01:00", "9999-12-31T23:59:59Z"]
NO_MOMENTS = ["2026-03-01", "2026-03-01T00:00:00", "0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-12:00"]


async def test_a_list_takes_a_moment_of_any_zone_and_nothing_that_is_none_somewhere(api: Api):
    _, key = await api.active_for("reader", Action.TOKEN)
    for before in [*MOMENTS, *NO_MOMENTS, "soon"]:
        answer = await api.get(f"/v1/connections?expiring_before={before}", key)
        if before in MOMENTS:
            assert [it["subject"] for it in answer.json()["items"]] == ["user-1"]
        else:
            assert (answer.status_code, answer.json()["field"]) == (400, "expiring_before"), before


@pytest.mark.parametrize("secret", ["\ud800", "a\0b"])
@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"flow": "api_key"}, "credential.api_key"),
        ({"flow": "basic"}, "credential.password"),
        ({"flow": "token_exchange"}, "subject_token"),
    ],
)
async def test_a_secret_that_no_request_can_carry_is_refused(api: Api, body: dict, name: str, secret: str):
    key = await api.app_for("boss", Action.CONNECT)
    place, _, member = name.partition(".")
    given = {"username": "a", member: secret} if member else secret
    answer = await api.post("/v1/connections", key, {**NEW, **body, place: given})
    assert (answer.status_code, answer.json()["field"]) == (400, name)


async def test_refresh_waits_for_the_workflow(api: Api):
    connection, key = await api.active_for("asker", Action.CONNECT)
    api.refreshes_with("at-2")
    at = f"/v1/connections/{connection.id}/refresh"
    answer = await api.post(at, key)
    assert (answer.status_code, answer.json()["generation"]) == (200, 2)
    # a caller that saw an older generation needs no refresh
    assert (await api.post(at, key, {"seen_generation": 1})).json()["generation"] == 2
    assert len(api.link.asked) == 1
    api.refreshes_fail(ErrorCode.CLIENT_REJECTED)
    failed = await api.post(at, key)
    assert (failed.status_code, failed.json()["code"]) == (424, "client_rejected")


async def test_reauthorize_opens_a_new_link_and_keeps_the_token(api: Api):
    connection, key = await api.active_for("asker", Action.CONNECT, Action.TOKEN)
    answer = await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"scopes": ["api"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["connect_url"]
    assert answer.json()["state"] == "active"
    assert (await api.lease(key)).status_code == 200
    assert AuditAction.REAUTHORIZATION_REQUESTED in await actions(api, connection.id)


@pytest.mark.parametrize("how", ["revoke", "delete"])
async def test_revoke_once_and_again(api: Api, how: str):
    connection, key = await api.active_for("asker", Action.ADMIN)
    for _ in range(2):
        if how == "revoke":
            answer = await api.post(f"/v1/connections/{connection.id}/revoke", key, {"reason": "left"})
        else:
            answer = await api.call("DELETE", f"/v1/connections/{connection.id}", key)
        assert (answer.status_code, answer.json()["state"]) == (202, "revoking")
    assert (await actions(api, connection.id)).count(AuditAction.REVOCATION_REQUESTED) == 1
    assert len(await api.outbox()) == 1
    again = await api.app_with("again", Action.CONNECT)
    refused = await api.post(f"/v1/connections/{connection.id}/reauthorize", again)
    assert (refused.status_code, refused.json()["code"]) == (409, "connection_revoked")


async def test_an_integration_that_is_not_ready_connects_nobody(api: Api):
    await api.integration(provider="generic", issuer="https://idp.example", state="discovering")
    await api.integration("bad", provider="generic", issuer="https://x.example", state="failed", problem="no")
    key = await api.app_with("asker", Action.CONNECT)
    for name in ("crm", "bad"):
        answer = await api.post("/v1/connections", key, {**NEW, "integration": name})
        assert (answer.status_code, answer.json()["code"]) == (424, "discovery_failed")
    assert await api.outbox() == []


async def test_a_list_goes_on_beyond_rows_that_cant_be_read_and_names_them(
    api: Api, caplog: pytest.LogCaptureFixture
):
    integration = await api.integration()
    rows = [await api.active(integration, subject=f"user-{n}") for n in range(4)]
    hidden = await api.active(integration, subject="another")
    first, second, third, last = sorted(rows, key=lambda it: it.id)
    async with api.worker.write() as tx:
        broken = update(ConnectionRow).where(col(ConnectionRow.id).in_([first.id, hidden.id]))
        await tx.connection.execute(broken.values(flow="from_the_future"))
        grant = update(ConnectionGrantRow).where(col(ConnectionGrantRow.connection_id) == third.id)
        await tx.connection.execute(grant.values(scopes={"a": 1}))
    key = await api.app_with("reader", Action.TOKEN, subjects=("user-0", "user-1", "user-2", "user-3"))
    page = (await api.get("/v1/connections?limit=3", key)).json()
    assert [it["id"] for it in page["items"]] == [second.id]
    assert page["unreadable"] == [first.id, third.id]
    rest = (await api.get(f"/v1/connections?limit=3&cursor={page['next_cursor']}", key)).json()
    assert ([it["id"] for it in rest["items"]], rest["unreadable"]) == ([last.id], [])
    assert f"row unreadable: the row of {first.id} in connection can't be read: flow" in caplog.text
    assert hidden.id not in caplog.text
