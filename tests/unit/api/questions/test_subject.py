"""Everything about a subject: each table that names it, each record, no token and no secret."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from activities import questions
from evergrant_server.core.audit import AuditAction
from evergrant_server.store.database.columns import METADATA
from evergrant_server.store.questions.questions import LEFT_OUT
from tests.fakes.api import TENANT
from tests.security.erasure.life import Life, life
from tests.security.secrets.canaries import forms
from tests.unit.api.questions.asking import answered, asked, worked


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def person(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Life]:
    async with life(request.param, tmp_path) as alice:
        yield alice


async def test_an_answer_has_all_that_names_the_subject_and_opens_nothing(
    person: Life, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(questions, "_RECORDS", 3)  # several pages of the log
    connection = await person.live()
    other = {"integration": "crm", "subject": "bob"}
    bob = (await person.api.post("/v1/connections", person.app, other)).json()["id"]
    await person.api.outbox()
    lines = await answered(person.api, person.admin, "subject", subject=person.subject)
    kinds = {line["kind"] for line in lines}
    assert {"connection", "consent", "connection_grant", "delegation", "token_family"} <= kinds
    assert {"call_approval", "subject_session", "client_consent", "lease_use", "record"} <= kinds
    text = json.dumps(lines)
    for kind in ("subject", "label", "scope", "account", "reason", "session"):
        assert person.values[kind] in text, kind
    assert bob not in text
    for token in person.tokens.values():
        assert not any(form.decode("latin-1") in text for form in forms(token).values())
    recorded = {line["facts"]["object"] for line in lines if line["kind"] == "record"}
    assert {connection.id, person.subject, "dlg_of_last_year"} <= recorded
    actions = {line["facts"]["action"] for line in lines if line["kind"] == "record"}
    assert {"lease.issued", "subject.logged_in", "question.asked"} <= actions
    for line in lines:
        opening = [name for name in line["facts"] if "hash" in name or "sealed" in name or name == "mac"]
        assert opening == [], line["kind"]


async def test_every_table_that_names_people_is_answered_or_left_out_for_a_reason():
    naming = {
        table.name for table in METADATA.sorted_tables if {"connection_id", "subject"} & set(table.c.keys())
    }
    assert set(LEFT_OUT) <= naming | {"connection"}
    told = naming - set(LEFT_OUT)
    assert {"connection", "connection_grant", "consent", "delegation", "token_family"} <= told


async def test_an_erasure_takes_the_answers_with_it(person: Life):
    connection = await person.live()
    lines = await answered(person.api, person.admin, "subject", subject=person.subject)
    assert lines
    uses = await answered(person.api, person.admin, "connection_uses", connection_id=connection.id)
    assert [line["facts"]["subject"] for line in uses] == [person.subject]
    await person.erased(connection, subject=person.subject)
    async with person.api.worker.read() as tx:
        for table in ("question", "question_answer", "detection"):
            rows = (await tx.connection.execute(METADATA.tables[table].select())).all()
            assert person.subject not in str(rows), table
            assert connection.id not in str(rows), table
    records = await person.api.records(AuditAction.QUESTION_ASKED)
    assert person.subject not in str(records)


async def test_an_answer_is_kept_for_a_week(person: Life):
    question = await asked(person.api, person.admin, "subject", subject="alice")
    assert (await worked(person.api, question)).done
    now = person.api.clock.now()
    async with person.api.worker.write() as tx:
        stored = await tx.questions.get(TENANT, question["id"])
        assert stored is not None
        assert await tx.questions.prune(now) == 0
        assert await tx.questions.prune(stored.expires_at.replace(year=2027)) == 1
        assert await tx.questions.get(TENANT, question["id"]) is None
        assert (await tx.connection.execute(METADATA.tables["question_answer"].select())).all() == []
