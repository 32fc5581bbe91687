"""Calls of agents that a person approves: asked once, decided by another, used once, over by a deadline."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.decisions import DecisionActivities
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import CallApprovalId
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.decisions import CallApprovalCall, DecisionProgress
from evergrant_server.core.outbox import OutboxKind
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.fakes.failures import fails
from tests.security.people import put_session

PATH = "/v1/call-approvals"
URL = "https://api.example.com/v1/refunds?order=7"
DAY = 86_400
WANTED: dict[str, Any] = {"method": "POST", "url": URL, "body": '{"amount": 5}'}


class Asking:
    """An agent with a connection, and an admin who is another app."""

    def __init__(self, api: Api, bot: str, admin: str, connection_id: str) -> None:
        self.api, self.bot, self.admin, self.connection_id = api, bot, admin, connection_id

    async def ask(self, **changes: Any) -> httpx2.Response:
        key, called = changes.pop("key", self.bot), {} if "tool" in changes else WANTED
        body = {"connection_id": self.connection_id, "reason": "order 7", **called, **changes}
        return await self.api.post(PATH, key, body)

    async def use(self, key: str | None = None, **changes: Any) -> str:
        """How using it up was answered: used, or the code of the failure."""
        called = {} if "tool" in changes else WANTED
        body = {"connection_id": self.connection_id, **called, **changes}
        answer = await self.api.post(f"{PATH}/use", key or self.bot, body)
        return answer.json()["state" if answer.is_success else "code"]

    async def decide(self, id: str, verb: str = "approve", key: str | None = None, **body: Any) -> str:
        answer = await self.api.post(f"{PATH}/{id}/{verb}", key or self.admin, body)
        return answer.json()["state" if answer.is_success else "code"]

    async def advanced(self, id: str) -> DecisionProgress:
        """What its workflow has done."""
        call = CallApprovalCall(
            tenant=TENANT,
            approval_id=CallApprovalId(id),
            context=RequestContext(by="app:bot"),
            provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
        )
        steps = DecisionActivities(self.api.worker, self.api.clock)
        return await ActivityEnvironment().run(steps.advance_call_approval, call)


@pytest.fixture
async def asking(api: Api) -> Asking:
    admin = await api.app_with("admin", Action.ADMIN)
    connection = await api.active(await api.integration(), lifetime=None)
    bot = await api.app_with("bot", Action.PROXY)
    ends_at = (api.clock.now() + timedelta(days=30)).isoformat()
    await api.call("PUT", "/v1/agents/bot", admin, json={"purpose": "refunds", "ends_at": ends_at})
    return Asking(api, bot, admin, connection.id)


async def test_a_call_from_the_question_to_its_one_use(api: Api, asking: Asking):
    asked = await asking.ask()
    id, place = asked.json()["id"], asked.headers["location"]
    assert (asked.status_code, asked.json()["state"], place) == (202, "waiting", f"{PATH}/{id}")
    assert await asking.use() == "call_approval_required"
    waits = await api.get(place, asking.bot)
    assert (waits.status_code, waits.headers["retry-after"]) == (202, "2")
    shown = (await api.get(place, asking.admin)).json()
    assert {name: value for name, value in shown["call"].items() if value is not None} == WANTED
    assert (shown["agent"], shown["sponsor"], shown["subject"]) == ("bot", "app:admin", "user-1")
    assert await asking.decide(id, note="once") == "approved"
    decided = await api.get(place, asking.bot)
    assert (decided.status_code, decided.json()["note"], decided.json()["decided_by"]) == (
        *(200, "once"),
        "app:admin",
    )
    assert [await asking.use() for _ in range(2)] == ["used", "call_approval_required"]
    actions = [it.action.partition(".")[2] for it in await api.records(of=id)]
    assert actions == ["requested", "approved", "used"]
    told = [it for it in await api.outbox() if it.kind is OutboxKind.ADVANCE_CALL_APPROVAL]
    assert len(told) == 3, "its workflow is told of each"


HEADERS = [{"name": "Notion-Version", "value": "2022-06-28"}, {"name": "User-Agent", "value": "x"}]


async def test_headers_are_used_up_as_they_were_asked_for_and_neutral_ones_are_not_shown(asking: Asking):
    asked = (await asking.ask(headers=HEADERS)).json()
    assert asked["call"]["headers"] == [{"name": "notion-version", "value": "2022-06-28"}]
    assert (await asking.ask()).json()["id"] != asked["id"]
    assert await asking.decide(asked["id"]) == "approved"
    assert await asking.use() == "call_approval_required"
    other = [{"name": "Notion-Version", "value": "2021-05-13"}]
    assert await asking.use(headers=other) == "call_approval_required"
    assert await asking.use(headers=[{"name": "notion-VERSION", "value": "2022-06-28"}]) == "used"


async def test_a_tool_is_used_up_with_its_params_and_server(asking: Asking):
    called = {"tool": "pay", "arguments": {"sum": 5}, "params": {"task": {"ttl": 1}}}
    there = {"url": "https://tools.example/mcp"}
    asked = (await asking.ask(**called, **there)).json()
    shown = {name: value for name, value in asked["call"].items() if value is not None}
    assert shown == {**called, **there}
    assert await asking.decide(asked["id"]) == "approved"
    for changed in ({"params": {}}, {"params": {"task": {"ttl": 2}}}, {"url": "https://tools.example/other"}):
        assert await asking.use(**{**called, **there, **changed}) == "call_approval_required"
    assert await asking.use(**called) == "call_approval_required"
    assert await asking.use(**called, **there) == "used"


async def test_the_same_call_is_one_request_and_another_one_after_its_use(asking: Asking):
    first, again = (await asking.ask()).json(), await asking.ask(reason="please")
    assert (again.status_code, again.json()) == (202, first)
    assert await asking.decide(first["id"]) == "approved"
    approved = await asking.ask()
    assert (approved.status_code, approved.json()["id"]) == (200, first["id"])
    assert await asking.use() == "used"
    assert (await asking.ask()).json()["id"] != first["id"]


async def test_a_call_that_two_ask_for_at_once_is_read_again_by_the_second(api: Api, asking: Asking):
    id = (await asking.ask()).json()["id"]
    async with api.store.write() as tx:
        first = await tx.call_approvals.get(TENANT, CallApprovalId(id))
        assert first is not None
        with fails(ErrorCode.STORE_CONFLICT):
            await tx.call_approvals.add(first, WANTED)


async def test_a_denial_holds_until_the_deadline(api: Api, asking: Asking):
    first = (await asking.ask(decide_within=3600)).json()["id"]
    assert await asking.decide(first, "deny", note="no") == "denied"
    again = await asking.ask()
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (200, first, "denied")
    api.clock.advance(3600)
    later = await asking.ask()
    assert (later.status_code, later.json()["id"] == first) == (202, False)


async def test_reminders_escalation_and_the_deadline(api: Api, asking: Asking):
    id = (await asking.ask(decide_within=3 * DAY)).json()["id"]
    assert (await asking.advanced(id)).next_s == DAY
    for passed, wait, action in (
        (DAY, 0.5 * DAY, AuditAction.CALL_APPROVAL_REMINDED),
        (0.5 * DAY, DAY, AuditAction.CALL_APPROVAL_ESCALATED),
        (DAY, 0.5 * DAY, AuditAction.CALL_APPROVAL_REMINDED),
    ):
        api.clock.advance(passed)
        assert await asking.advanced(id) == DecisionProgress(state="waiting", next_s=wait)
        assert (await api.records(of=id))[-1].action is action
    (escalated,) = await api.records(AuditAction.CALL_APPROVAL_ESCALATED)
    assert escalated.detail["sponsor"] == "app:admin"
    api.clock.advance(0.5 * DAY)
    assert await asking.decide(id) == "invalid_request", "before any workflow has noticed"
    for _ in range(2):
        assert await asking.advanced(id) == DecisionProgress(state="expired")
    assert len(await api.records(AuditAction.CALL_APPROVAL_EXPIRED)) == 1


async def test_an_approval_is_over_a_day_later_whether_or_not_its_workflow_has_noticed(
    api: Api, asking: Asking
):
    id = (await asking.ask()).json()["id"]
    await asking.decide(id)
    api.clock.advance(DAY)
    assert await asking.use() == "call_approval_required"
    assert (await api.get(f"{PATH}/{id}", asking.bot)).json()["state"] == "expired"
    assert await asking.advanced(id) == DecisionProgress(state="expired")


async def test_who_may_decide(api: Api, asking: Asking):
    id = (await asking.ask()).json()["id"]
    ends_at = (api.clock.now() + timedelta(days=1)).isoformat()
    other = await api.app_with("other-bot", Action.ADMIN, Action.PROXY)
    body = {"purpose": "x", "ends_at": ends_at}
    assert (await api.call("PUT", "/v1/agents/other-bot", asking.admin, json=body)).is_success
    _, auditor = await put_session(api, TENANT, PersonRole.AUDITOR)
    _, person = await put_session(api, TENANT, PersonRole.TENANT_ADMIN)
    for key in (asking.bot, other, auditor):
        assert await asking.decide(id, key=key) == "not_permitted"
    api.clock.advance(360)
    assert await asking.decide(id, key=person) == "step_up_required"
    _, person = await put_session(api, TENANT, PersonRole.TENANT_ADMIN, authenticated_at=api.clock.now())
    assert await asking.decide(id, key=person) == "approved"
    asked = await asking.ask(url=f"{URL}8", key=person)
    assert asked.json()["code"] == "invalid_request", "a person makes no calls"


async def test_calls_of_other_apps_are_absent(api: Api, asking: Asking):
    id = (await asking.ask()).json()["id"]
    reader = await api.app_with("reader", Action.PROXY)
    blind = await api.app_with("blind", Action.PROXY, subjects=("nobody",))
    assert (await api.get(f"{PATH}/{id}", reader)).json()["code"] == "not_found"
    assert (await api.get(PATH, reader)).json()["items"] == []
    (listed,) = (await api.get(PATH, asking.bot)).json()["items"]
    assert (listed["id"], listed["call"], listed["name"]) == (id, None, "POST")
    assert (await asking.ask(key=blind)).json()["code"] == "not_found"


async def test_an_agent_has_fifty_calls_waiting_at_the_most(asking: Asking):
    for number in range(50):
        assert (await asking.ask(url=f"{URL}{number}")).status_code == 202
    assert (await asking.ask(url=f"{URL}50")).json()["code"] == "already_exists"


async def test_what_is_called_is_sealed_and_a_row_that_was_changed_by_hand_is_refused(
    api: Api, asking: Asking
):
    id = (await asking.ask(tool="refund", arguments={"to": "bob@example.com"})).json()["id"]
    async with api.worker.write() as tx:
        rows = (await tx.connection.execute(text("SELECT * FROM call_approval"))).all()
        assert "bob@example.com" not in str(rows)
        await tx.connection.execute(text("UPDATE call_approval SET state = 'approved', use_by = decide_by"))
    assert await asking.use(tool="refund", arguments={"to": "bob@example.com"}) == "authority_broken"
    assert await asking.decide(id) == "authority_broken"


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": None},
        {"method": "post"},
        {"url": None},
        {"url": "http://api.example.com/"},
        {"url": "https://user@api.example.com/"},
        {"url": "https://api.example.com/#x"},
        {"url": "https://api.example.com/\r\nX: y"},
        {"body": "x", "body_sha256": "0" * 64},
        {"body": None, "body_sha256": "0" * 63},
        {"body": "x" * 70_000},
        {"body": "\ud800"},
        {"arguments": {}},
        {"tool": "both", "method": "GET"},
        {"tool": "x", "arguments": {"n": 2**60}},
        {"tool": "x", "arguments": {"half": "\ud800"}},
        {"tool": ""},
        {"tool": "x", "params": {"name": "y"}},
        {"tool": "x", "params": {"arguments": {}}},
        {"tool": "x", "params": {"_meta": {"n": 1e20}}},
        {"tool": "x", "body": "x"},
        {"params": {}},
        {"headers": [{"name": "Cookie", "value": "a=b"}]},
        {"headers": [{"name": "X Y", "value": "1"}]},
        {"headers": [{"name": "X", "value": "a\r\nB: c"}]},
        {"headers": [{"name": "X", "value": "\u0100"}]},
        {"headers": [{"name": "X"}]},
        {"headers": {"X": "1"}},
        {"headers": [{"name": "X", "value": "1"}] * 101},
        {"decide_within": 1},
        {"decide_within": 1e99},
        {"reason": ""},
        {"reason": "\u202e"},
        {"state": "approved"},
    ],
)
async def test_bad_requests(asking: Asking, wrong: dict[str, Any]):
    assert (await asking.ask(**wrong)).json()["code"] == "invalid_request"
