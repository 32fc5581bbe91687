"""Is the audit log whole: a worker verifies it page by page, and leaves a record."""

from typing import Any

import pytest
from sqlalchemy import update

from activities import questions
from evergrant_server.api import audit as routes
from evergrant_server.audit.verification import walks
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.store.database.columns import METADATA
from tests.fakes.api import TENANT, Api
from tests.unit.api.questions.asking import QUESTIONS, answered, asked, lines_of, worked


async def with_leases(api: Api) -> tuple[str, str]:
    """The keys of an auditor and of an admin of a tenant with twelve leases."""
    _, key = await api.active_for("reader", Action.TOKEN)
    for _ in range(12):
        assert (await api.lease(key)).status_code == 200
    return await api.app_with("auditor", Action.AUDIT), await api.app_with("boss", Action.ADMIN)


async def test_the_answer_has_the_head_of_each_shard_and_the_verdict_is_recorded(api: Api):
    auditor, admin = await with_leases(api)
    lines = await answered(api, auditor, "log")
    assert {line["kind"] for line in lines} == {"shard"}
    heads = {line["facts"]["shard"]: line["facts"] for line in lines}
    verdict = (await api.get("/v1/audit/verify", admin)).json()
    assert verdict["ok"] is True
    same = {"size": heads["api-test"]["size"], "root": heads["api-test"]["root"]}
    assert verdict["heads"]["api-test"] == same
    (record,) = await api.records(AuditAction.LOG_VERIFIED)
    assert (record.object, record.context.by, record.detail["ok"]) == (TENANT, "app:auditor", True)
    assert record.detail["records"] >= 12


async def test_the_first_record_that_isnt_good_is_named(api: Api):
    auditor, _ = await with_leases(api)
    table = METADATA.tables["audit"]
    async with api.worker.write() as tx:
        mine = (table.c.tenant == TENANT) & (table.c.shard == "api-test") & (table.c.seq == 5)
        await tx.connection.execute(update(table).where(mine).values(object="con_other"))
    lines = await answered(api, auditor, "log")
    (flaw,) = [line["facts"] for line in lines if line["kind"] == "flaw"]
    assert (flaw["shard"], flaw["index"], flaw["kind"]) == ("api-test", 5, "edited")
    (record,) = await api.records(AuditAction.LOG_VERIFIED)
    assert (record.detail["ok"], record.detail["index"]) == (False, 5)


async def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(walks, "_STRIDE", 4)
    monkeypatch.setattr(questions, "_VERIFIED_AT_ONCE", 6)
    auditor, _ = await with_leases(api)
    question = await asked(api, auditor, "log")
    outbox = await api.outbox()
    write, pages = questions.QuestionActivities._write, list[Any]()

    async def killed(self: Any, *page: Any) -> None:
        await write(self, *page)
        pages.append(page)
        raise ConnectionAbortedError

    async def same_outbox() -> Any:
        return outbox

    monkeypatch.setattr(questions.QuestionActivities, "_write", killed)
    monkeypatch.setattr(api, "outbox", same_outbox)
    looked_at = [0]
    for _ in range(40):
        try:
            progress = await worked(api, question)
        except ConnectionAbortedError:
            half = (await api.get(f"{QUESTIONS}/{question['id']}", auditor)).json()
            assert half["state"] == "running"
            looked_at.append(half["records"])
        else:
            break
    assert progress.done
    assert len(looked_at) >= 3
    assert looked_at == sorted(looked_at)
    shards = [line["facts"]["shard"] for line in await lines_of(api, auditor, question)]
    assert len(shards) == len(set(shards)) >= 2
    (record,) = await api.records(AuditAction.LOG_VERIFIED)
    assert record.detail["ok"] is True


async def test_a_request_verifies_a_small_log_only_and_names_the_question(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    _, admin = await with_leases(api)
    monkeypatch.setattr(routes, "_MOST_AT_ONCE", 10)
    refused = await api.get("/v1/audit/verify", admin)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "/v1/questions" in refused.text
