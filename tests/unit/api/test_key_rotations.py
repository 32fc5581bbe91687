"""The tenant's keys over HTTP: what they are, and rotations that a worker carries out."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import KeyRotationId
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.keys import KeyRotationProgress, KeyRotationStart
from evergrant_server.core.messages.names import key_rotation_workflow_id
from tests.fakes.api import TENANT, Api

ROTATIONS = "/v1/keys/rotations"


def running(api: Api, **progress: Any) -> KeyRotationStart:
    """A rotation of the tenant's keys, as its workflow describes it."""
    start = KeyRotationStart(
        tenant=TENANT,
        rotation_id=KeyRotationId("rot_0000000000000000000000"),
        kind=RotationKind.TENANT,
        command=RotationCommand.ROTATE,
        begun_at=api.clock.now() - timedelta(minutes=1),
        context=RequestContext(by="app:admin"),
        progress=KeyRotationProgress(step=RotationStep.MOVE, moved=3, total=7, **progress),
    )
    api.link.rotations[key_rotation_workflow_id(TENANT, RotationKind.TENANT)] = start
    return start


async def test_the_keys_are_listed_by_purpose_with_what_stands_under_older_ones(api: Api):
    await api.active(await api.integration())
    boss = await api.app_with("boss", Action.ADMIN)
    keys = {key["purpose"]: key for key in (await api.get("/v1/keys", boss)).json()["keys"]}
    assert keys["lease"]["key_id"].startswith("tky_")
    assert (keys["lease"]["connection_keys"], keys["lease"]["replaced"], keys["lease"]["left"]) == (1, 0, 0)


async def test_a_rotation_is_a_message_to_its_workflow_and_a_record(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    answer = await api.post(ROTATIONS, boss, {"kind": "tenant", "purposes": ["refresh"]})
    assert answer.status_code == 202
    view = answer.json()
    assert (view["by"], view["purposes"], view["done"]) == ("app:boss", ["refresh"], False)
    (message,) = [sent for sent in await api.outbox() if sent.kind == "start_key_rotation"]
    assert message.target == "key_rotation:acme:tenant"
    assert message.payload["rotation_id"] == view["rotation_id"]
    records = [record for record in await api.records(AuditAction.KEY_ROTATION_REQUESTED)]
    assert [record.detail["rotation"] for record in records] == [view["rotation_id"]]


async def test_one_rotation_of_a_kind_runs_at_a_time(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    start = running(api)
    answer = await api.post(ROTATIONS, boss, {"kind": "tenant"})
    assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    assert start.rotation_id in answer.json()["detail"]
    assert (await api.post(ROTATIONS, boss, {"kind": "connection"})).status_code == 202
    running(api, done=True)
    assert (await api.post(ROTATIONS, boss, {"kind": "tenant"})).status_code == 202


async def test_of_rotations_that_are_requested_at_once_one_is_accepted(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    """The other one hasn't seen it run."""
    boss, describe = await api.app_with("boss", Action.ADMIN), api.link.describe_key_rotation
    together = asyncio.Barrier(2)

    async def described(workflow: str) -> KeyRotationStart | None:
        newest = await describe(workflow)
        await together.wait()
        return newest

    monkeypatch.setattr(api.link, "describe_key_rotation", described)
    bodies = [{"kind": "tenant", "purposes": [purpose]} for purpose in ("lease", "refresh")]
    answers = await asyncio.gather(*(api.post(ROTATIONS, boss, body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [202, 409]
    assert len(await api.records(AuditAction.KEY_ROTATION_REQUESTED)) == 1


async def test_a_rotation_that_begins_while_another_is_requested_comes_first(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    boss, describe = await api.app_with("boss", Action.ADMIN), api.link.describe_key_rotation

    async def begins_meanwhile(workflow: str) -> KeyRotationStart | None:
        monkeypatch.setattr(api.link, "describe_key_rotation", describe)
        newest = await describe(workflow)
        assert (await api.post(ROTATIONS, boss, {"kind": "tenant"})).status_code == 202
        async with api.worker.write() as tx:
            await tx.outbox.mark_delivered(
                [sent.id for sent in await tx.outbox.claim("relay", tx.now, timedelta(0))], tx.now
            )
        return newest

    monkeypatch.setattr(api.link, "describe_key_rotation", begins_meanwhile)
    assert (await api.post(ROTATIONS, boss, {"kind": "tenant"})).json()["code"] == "already_exists"


async def test_the_newest_rotation_of_each_kind_says_how_far_it_is(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.get(ROTATIONS, boss)).json()["items"] == []
    running(api)
    (view,) = (await api.get(ROTATIONS, boss)).json()["items"]
    assert (view["step"], view["moved"], view["total"], view["paused"]) == ("move", 3, 7, False)


async def test_a_running_rotation_is_paused_and_goes_on(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.post(f"{ROTATIONS}/pause", boss, {"kind": "tenant"})).status_code == 404
    running(api)
    for verb in ("pause", "resume"):
        answer = await api.post(f"{ROTATIONS}/{verb}", boss, {"kind": "tenant"})
        assert answer.json()["paused"] is (verb == "pause")
    signals = [sent for sent in await api.outbox() if sent.name == "pause_key_rotation"]
    assert [sent.payload["paused"] for sent in signals] == [True, False]


async def test_keys_of_roots_are_no_tenants_to_rotate(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.post(ROTATIONS, boss, {"kind": "root"})).status_code == 400
    named = {"kind": "tenant", "connection_id": "con_0000000000000000000000"}
    assert (await api.post(ROTATIONS, boss, named)).status_code == 400
    absent = {"kind": "connection", "connection_id": "con_0000000000000000000000"}
    assert (await api.post(ROTATIONS, boss, absent)).status_code == 404
