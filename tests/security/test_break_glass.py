"""A session that is made on the host: `keys break-glass`."""

import json
import logging

import pytest
from sqlalchemy import text

from evergrant_server.api.people.sessions import make_break_glass_session
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from tests.fakes.api import TENANT, Api
from tests.fakes.events.webhook_receiver import listening
from tests.fakes.failures import fails

WHO, WHY = "ann", "INC-7: the issuer is away"


async def test_it_administers_for_an_hour_and_is_an_alarm(api: Api, caplog: pytest.LogCaptureFixture):
    await listening(api.worker, "https://a.example/in", api.clock.now(), tenant=TENANT)
    token = await make_break_glass_session(api.worker, api.clock, TENANT, WHO, WHY)
    (record,) = await api.records(AuditAction.BREAK_GLASS)
    assert (record.context.by, record.detail["who"], record.detail["reason"]) == ("operator", WHO, WHY)
    assert [it.levelno for it in caplog.records if "break-glass session: ann until" in it.message] == [
        logging.ERROR
    ]
    async with api.worker.read() as tx:
        ((body,),) = await tx.connection.execute(text("SELECT body FROM event"))
    assert json.loads(body)["data"].items() >= {"tenant": TENANT, "who": WHO, "reason": WHY}.items()

    await api.app_with("pipeline")
    permit = {"integration": "*", "actions": ["token"]}
    made = await api.call("PUT", "/v1/apps/pipeline/permits/all", token, json=permit)
    assert made.status_code == 201, "no step-up is needed"
    (put,) = await api.records(AuditAction.PERMIT_PUT)
    assert put.context.by == f"person:{record.detail['person']}"
    assert (await api.lease(token)).status_code == 401
    api.clock.advance(3599)
    assert (await api.get("/v1/apps", token)).status_code == 200, "it doesn't idle"
    api.clock.advance(1)
    assert (await api.get("/v1/apps", token)).status_code == 401


async def test_an_admin_ends_it(api: Api):
    token = await make_break_glass_session(api.worker, api.clock, TENANT, WHO, WHY)
    own = (await api.get("/v1/sessions/current", token)).json()
    assert (own["kind"], own["reason"], own["role"]) == ("break_glass", WHY, "tenant_admin")
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.call("DELETE", f"/v1/sessions/{own['id']}", boss)).status_code == 204
    assert (await api.get("/v1/apps", token)).status_code == 401


@pytest.mark.parametrize("said", ["", " ", "a\nb", "a" * 256, "\x1b[2J"])
async def test_who_and_why_are_said_in_words_that_a_log_can_hold(api: Api, said: str):
    for who, why in ((said, WHY), (WHO, said)):
        with fails(ErrorCode.INVALID_REQUEST):
            await make_break_glass_session(api.worker, api.clock, TENANT, who, why)
    assert await api.records() == []
