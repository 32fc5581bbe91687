"""The account that an app expects: said when a connection begins, sent as a hint, and named to who came."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connections.account import ConsentAccount
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor, consent_of

ANN = "Ann@example.org"
EXPECT = {"expect": {"email": ANN, "hd": "example.org"}}


def new(account: Any = None, **more: Any) -> dict[str, Any]:
    return {"integration": "crm", "subject": "user-1", "scopes": ["openid"], "account": account, **more}


async def started(api: Api, account: Any) -> tuple[str, str, Visitor, str]:
    """A key, a connection's id, and a browser that was sent to the provider by this link."""
    key = await api.app_for("asker", Action.CONNECT)
    answer = await api.post("/v1/connections", key, new(account))
    assert answer.status_code == 201, answer.text
    visitor, link = Visitor(api), answer.json()["connect_url"]
    await visitor.go_on(link)
    return key, answer.json()["id"], visitor, link


async def test_an_expectation_is_kept_as_keyed_hashes_and_its_address_is_the_hint(api: Api):
    key, id, visitor, _ = await started(api, EXPECT)
    assert visitor.sent["login_hint"] == ANN
    assert "prompt" not in visitor.sent
    shown = (await api.get(f"/v1/connections/{id}", key)).json()
    assert shown["expected_account"] == ["email", "hd"]
    async with api.worker.read() as tx:
        rows = await tx.connection.exec_driver_sql("SELECT expected_account FROM connection")
        kept = str(rows.all())
    assert "example.org" not in kept.casefold()
    assert "example.org" not in str([it.payload for it in await api.outbox()]).casefold()


async def test_an_expectation_stays_as_it_began(api: Api):
    key, id, _, _ = await started(api, EXPECT)
    other = {"expect": {"email": "bob@example.org"}}
    again = f"/v1/connections/{id}/reauthorize"
    for path, body in (("/v1/connections", new(other)), (again, {"account": other})):
        answer = await api.post(path, key, body)
        assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    same = {"expect": {"email": ANN.lower(), "hd": "example.org"}}
    assert (await api.post("/v1/connections", key, new(same))).status_code == 200
    hinted = await api.post(again, key, {"account": {"login_hint": "ann"}})
    visitor = Visitor(api)
    await visitor.go_on(hinted.json()["connect_url"])
    assert visitor.sent["login_hint"] == "ann"


@pytest.mark.parametrize(
    "body",
    [
        new(EXPECT, scopes=["read_user"]),
        new(EXPECT, flow="api_key", credential={"api_key": "k"}),
        new({"expect": {"name": "Ann"}}),
    ],
    ids=["no id token", "no reply", "no such claim"],
)
async def test_what_no_reply_can_show_is_not_expected(api: Api, body: dict[str, Any]):
    key = await api.app_for("asker", Action.CONNECT)
    answer = await api.post("/v1/connections", key, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert answer.json()["field"].startswith("account")


async def test_a_hint_goes_only_where_it_is_understood(api: Api):
    key = await api.app_for("asker", Action.CONNECT)
    answer = await api.post("/v1/connections", key, new({"login_hint": ANN}, scopes=["read_user"]))
    visitor = Visitor(api)
    await visitor.go_on(answer.json()["connect_url"])
    assert "login_hint" not in visitor.sent


async def test_who_came_is_named_in_their_browser_alone_and_then_asked_to_select(api: Api):
    key, id, visitor, link = await started(api, EXPECT)
    consent = await consent_of(api, link)
    failed = {"status": ConsentStatus.FAILED, "failure": ErrorCode.ACCOUNT_MISMATCH}
    async with api.worker.write() as tx:  # what a worker does
        came = ConsentAccount(came="<bob@example.org>")
        after = consent.model_copy(update=failed)
        await tx.consents.replace(after, expected=consent.revision, account=came)
    page = await visitor.open(link)
    assert (page.status_code, "&lt;bob@example.org&gt;" in page.text) == (409, True)
    assert "bob" not in (await Visitor(api).open(link)).text
    again = (await api.post("/v1/connections", key, new(EXPECT))).json()
    await visitor.go_on(again["connect_url"])
    assert visitor.sent["prompt"] == "select_account"
    assert again["id"] == id
    assert (await api.row(TENANT, id)).expected_account is not None


async def test_rfc8628_5_4_a_device_code_is_bound_by_the_account_that_it_must_bring(api: Api):
    api.parts.settings.lease_wait = timedelta(0)
    await api.integration(provider="google", binding="app")
    key = await api.app_with("asker", Action.CONNECT)
    unbound = await api.post("/v1/connections", key, new(flow="device_code"))
    assert (unbound.status_code, unbound.json()["code"]) == (400, "binding_required")
    bound = await api.post("/v1/connections", key, new(EXPECT, flow="device_code"))
    assert bound.status_code == 201, bound.text
