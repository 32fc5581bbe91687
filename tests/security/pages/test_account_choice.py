"""Which account: chosen by who consented, in the browser that did, or by an app that may connect."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.grant import AccountOption, FollowUp, Grant, Origin, TokenSet
from evergrant_server.core.secret import Secret
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.visitor import Visitor, consent_of

OPTIONS = (
    AccountOption(id="1", label='<script>alert("1")</script>', metadata={"site": "1"}),
    AccountOption(id="2", label="Two", metadata={"site": "2"}),
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evergrant_server.api.connections.consents.EXCHANGE_WAIT_S", 0.0)


class Choosing:
    """A subject who consented in one browser, and a connection that waits for a choice."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.visitor = Visitor(api)
        self.link = ""

    async def begin(self) -> "Choosing":
        await self.api.integration(provider="atlassian", default_scopes=())
        self.key = await self.api.app_with("asker", Action.CONNECT, Action.TOKEN)
        made = await self.api.post("/v1/connections", self.key, {"integration": "crm", "subject": "user-1"})
        self.link, self.id = made.json()["connect_url"], made.json()["id"]
        await self.visitor.go_on(self.link)
        await self.visitor.come_back()
        await self._worker_finds_two()
        return self

    async def _worker_finds_two(self) -> None:
        consent, connection = await consent_of(self.api, self.link), await self.row()
        now = self.api.clock.now()
        async with self.api.worker.write() as tx:
            after = connection.granted(now).model_copy(update={"follow_up": FollowUp.CHOOSING})
            tokens = TokenSet(access_token=Secret("at-1"))
            grant = Grant.from_tokens(tokens, generation=after.generation, requested=(), at=now)
            found = grant.model_copy(update={"options": OPTIONS})
            await tx.grants.install(after, tokens, found, origin=Origin.NEW, expected=connection.revision)
            done = consent.model_copy(update={"status": ConsentStatus.DONE})
            await tx.consents.replace(done, expected=consent.revision)

    async def chooses(self, choice: str, csrf: str | None = None, browser: Visitor | None = None):
        form = {"csrf": csrf or await self.visitor.csrf(self.link), "choice": choice}
        return await (browser or self.visitor).browser.post(f"{self.link}/choice", data=form)

    async def row(self) -> Connection:
        return await self.api.row(TENANT, self.id)


async def test_the_subject_chooses_and_it_is_on_record(api: Api):
    it = await Choosing(api).begin()
    shown = await it.visitor.open(it.link)
    assert "&lt;script&gt;" in shown.text
    assert "<script>" not in shown.text
    refused = await api.lease(it.key)
    assert (refused.status_code, refused.json()["code"]) == (409, "choice_required")
    assert "is connected" in (await it.chooses("2")).text
    row = await it.row()
    assert (row.follow_up, row.choice) == (None, "2")
    record = (await api.records(of=it.id))[-1]
    assert (record.action, record.context.by) == (AuditAction.ACCOUNT_CHOSEN, "subject")
    assert record.detail == {"choice": "2", "of": 2}
    assert (await api.lease(it.key)).status_code == 200


async def test_nobody_else_chooses(api: Api):
    """Another browser, a forged form, an account that was not offered, an app that may not connect."""
    it = await Choosing(api).begin()
    stranger = Visitor(api)
    assert (await stranger.open(it.link)).status_code != 200
    for answer in (
        await it.chooses("2", csrf="0" * 64),
        await it.chooses("2", browser=stranger),
        await it.chooses("3"),
        await it.chooses(""),
    ):
        assert answer.status_code == 400, answer.text
    path = f"/v1/connections/{it.id}/choose"
    reader = await api.app_with("reader", Action.TOKEN)
    foreign = await api.app_with("foreign", Action.CONNECT, tenant=OTHER)
    assert (await api.post(path, reader, {"choice": "2"})).status_code == 403
    assert (await api.post(path, foreign, {"choice": "2"})).status_code == 404
    assert (await api.post(path, it.key, {"choice": "3"})).json()["code"] == "invalid_request"
    assert (await it.row()).follow_up is FollowUp.CHOOSING
    assert (await api.post(path, it.key, {"choice": "1"})).json()["metadata"] == {"site": "1"}


async def test_another_account_for_a_live_connection_is_not_passed_over(api: Api):
    names = {"integration": "crm", "subject": "user-1"}
    await api.integration(name="other", provider="atlassian", default_scopes=())
    it = await Choosing(api).begin()
    for choice in ("1", "2"):  # no subject has consented yet
        asked = await api.post("/v1/connections", it.key, {**names, "integration": "other", "choice": choice})
        assert asked.json()["choice"] == choice
    refused = await api.post("/v1/connections", it.key, {**names, "choice": "2"})
    assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")
    assert (await api.post("/v1/connections", it.key, names)).status_code == 200
