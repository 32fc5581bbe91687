"""Receipts by the API: who reads which, and that a reader beyond the tree learns nothing."""

import base64
from typing import Any

import pytest
from evergrant.audit.notes import Checkpoint, VerifierKey
from evergrant.audit.receipts import Receipt

from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.core.access import Action
from tests.fakes.api import OTHER, TENANT, Api


@pytest.fixture
def log(api: Api) -> HeadsLog:
    return HeadsLog(api.worker, api.clock, "evergrant.example/audit")


async def a_lease(api: Api) -> tuple[str, str]:
    """The key of an app that has leased, and the place of the record."""
    _, key = await api.active_for("pipeline", Action.TOKEN)
    answer = await api.lease(key)
    assert answer.status_code == 200, answer.text
    return key, answer.json()["audit"]


async def proof(api: Api, key: str, record: str, **headers: str) -> Any:
    return await api.get("/v1/audit/proof", key, params={"record": record}, headers=headers)


async def test_an_app_has_the_receipt_of_its_own_lease(api: Api, log: HeadsLog):
    key, place = await a_lease(api)
    assert (await proof(api, key, place)).status_code == 404, "no checkpoint covers it yet"
    await log.advance()
    answer = await proof(api, key, place)
    assert answer.status_code == 200
    auditor = await api.app_with("auditor", Action.AUDIT)
    checkpoint = (await api.get("/v1/audit/checkpoint", auditor)).json()
    log_key = VerifierKey.parse(checkpoint["log"])
    verified = Receipt.parse(answer.text).verified(log_key, tenant=TENANT, record=place)
    assert verified.body is not None
    assert (verified.body["action"], verified.body["by"]) == ("lease.issued", "app:pipeline")
    assert (await proof(api, auditor, place)).json() == answer.json()


async def test_nobody_else_learns_that_there_is_a_record(api: Api, log: HeadsLog):
    _, place = await a_lease(api)
    await log.advance()
    other_app = await api.app_with("other", Action.TOKEN)
    other_tenant = await api.app_with("auditor", Action.AUDIT, tenant=OTHER)
    refused = [await proof(api, key, place) for key in (other_app, other_tenant)]
    auditor = await api.app_with("auditor", Action.AUDIT)
    shard, _, index = place.partition("/")
    refused += [await proof(api, auditor, record) for record in (f"{shard}/{int(index) + 1}", "nothing/0")]
    refused += [await proof(api, auditor, f"{shard}/999999999999999999")]
    answers = {(answer.status_code, answer.json()["detail"]) for answer in refused}
    assert len(answers) == 1
    assert answers.pop()[0] == 404


async def test_a_later_app_of_the_same_name_has_no_receipt_of_the_earlier_one(api: Api, log: HeadsLog):
    _, place = await a_lease(api)
    await log.advance()
    admin = await api.app_with("boss", Action.ADMIN)
    assert (await api.call("DELETE", "/v1/apps/pipeline", admin)).is_success
    later = await api.app_with("pipeline", Action.TOKEN)
    assert (await proof(api, later, place)).status_code == 404


@pytest.mark.parametrize("record", ["", "main-1", "main-1/", "main-1/01", "main-1/-1", "../1/2", "m 1/2"])
async def test_what_is_no_place(api: Api, record: str):
    key = await api.app_for("auditor", Action.AUDIT)
    assert (await proof(api, key, record)).status_code == 400


async def test_a_cose_receipt_by_accept(api: Api, log: HeadsLog):
    key, place = await a_lease(api)
    await log.advance()
    answer = await proof(api, key, place, accept="application/cose")
    assert answer.headers["content-type"] == "application/cose"
    assert answer.content[0] == 0xD2, "a COSE_Sign1 (RFC 9052 section 4.2)"
    assert b"evergrant-head" in answer.content


async def test_a_checkpoint_extends_an_older_one(api: Api, log: HeadsLog):
    auditor = await api.app_with("auditor", Action.AUDIT)
    assert (await api.get("/v1/audit/checkpoint", auditor)).status_code == 404, "no worker has signed yet"
    await a_lease(api)
    await log.advance()
    first = (await api.get("/v1/audit/checkpoint", auditor)).json()
    key = VerifierKey.parse(first["log"])
    older = Checkpoint.parse(first["checkpoint"])
    older.require_signed(key)
    admin = await api.app_with("admin", Action.ADMIN)
    assert (await api.call("PUT", "/v1/apps/new", admin, json={})).is_success
    await log.advance()
    answer = await api.get("/v1/audit/checkpoint", auditor, params={"since": older.size})
    newer = Checkpoint.parse(answer.json()["checkpoint"])
    assert newer.size > older.size
    newer.require_extends(older, answer.json()["consistency"])
    beyond = await api.get("/v1/audit/checkpoint", auditor, params={"since": newer.size + 1})
    assert beyond.status_code == 404
    assert base64.b64encode(newer.root).decode() in answer.json()["checkpoint"]


async def test_a_checkpoint_is_for_auditors(api: Api, log: HeadsLog):
    key, _ = await a_lease(api)
    await log.advance()
    assert (await api.get("/v1/audit/checkpoint", key)).status_code == 403
