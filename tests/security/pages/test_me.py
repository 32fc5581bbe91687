"""`/me`: a person sees and ends what is theirs, and nothing of anybody else."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from evergrant.audit.receipts import Receipt

from evergrant_server.api import me
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import ConsentAccount
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.ids import IncidentId, new_id
from evergrant_server.core.oauth.authorizations import FamilyEnd
from tests.fakes.api import TENANT, Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.rows import a_consent
from tests.security.clients.agents import AgentUser, agents_allowed, csrf_in, registered
from tests.security.clients.test_device_logins import Device, decided
from tests.unit.api.test_campaigns import CAMPAIGNS, ORDER, asked


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


async def test_a_person_sees_what_is_connected_and_who_used_it(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    other = await api.active(await api.integration("erp"), subject="user-2")
    key = await api.app_with("reports", Action.TOKEN)
    user = AgentUser(api, issuer)
    page = await user.ask("/me")
    assert (page.status_code, connection.id in page.text, other.id in page.text) == (200, True, False)
    assert "Nothing has used it" in page.text
    assert (await api.lease(key)).status_code == 200
    page = await user.browser.get("/me")
    assert "reports got access" in page.text
    mine = await user.browser.get(f"/me/connections/{connection.id}")
    assert "reports got access" in mine.text
    assert (await user.browser.get(f"/me/connections/{other.id}")).status_code == 404
    assert (await user.browser.get("/me/connections/con_1")).status_code == 404


async def test_several_accounts_at_one_provider_are_told_apart(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    second = await api.connection(await api.integration("crm-two"), subject="user-1", label="work")
    async with api.worker.write() as tx:
        consent = a_consent(connection, api.clock.now(), status=ConsentStatus.DONE)
        await tx.consents.add(consent, None, account=ConsentAccount(came="ann@<b>example.org"))
        await tx.consents.add(a_consent(connection, api.clock.now(), status=ConsentStatus.OPEN), None)
        await tx.consents.add(a_consent(second, api.clock.now(), status=ConsentStatus.OPEN), None)
    page = (await AgentUser(api, issuer).ask("/me")).text
    assert "ann@&lt;b&gt;example.org" in page, "also while another consent is only begun"
    assert "<bdi>crm-two work</bdi>, connected" in page


async def test_a_person_reads_that_a_campaign_asks_them_and_that_a_connection_is_stopped(
    api: Api, issuer: LoginIssuer
):
    """The app makes the link for the new consent, and it is the place to follow it."""
    connection, _ = await agents_allowed(api, issuer)
    await api.integration("crm-2026", client_id="client-2")
    boss = await api.app_with("campaigner", Action.ADMIN)
    await api.app_with("reports", Action.CONNECT)
    await api.made_by(connection, "reports")
    begun = await api.post(CAMPAIGNS, boss, {**ORDER, "integration": connection.integration})
    assert begun.status_code == 202, begun.text
    user = AgentUser(api, issuer)
    told = "Works. <bdi>reports</bdi> will ask you to connect again"
    assert told not in (await user.ask("/me")).text, "not asked yet"
    await asked(api, begun.json()["id"], connection)
    for path in ("/me", f"/me/connections/{connection.id}"):
        assert told in (await user.browser.get(path)).text, path
    await api.change(connection, lambda row: row.__replace__(held_by=IncidentId(new_id("inc"))))
    page = (await user.browser.get("/me")).text
    assert ("Is stopped" in page, "Works." in page) == (True, False)


async def test_what_has_ended_hides_nothing_that_is_live(
    api: Api, issuer: LoginIssuer, monkeypatch: pytest.MonkeyPatch
):
    connection, _ = await agents_allowed(api, issuer)
    for number in range(5):
        ended = await api.active(await api.integration(f"old-{number}"), subject="user-1")
        await api.change(ended, lambda row: row.__replace__(state=LifecycleState.REVOKED))
    monkeypatch.setattr(me, "_MOST", 1)
    page = await AgentUser(api, issuer).ask("/me")
    assert (connection.id in page.text, page.text.count("/me/connections/")) == (True, 1)


async def test_a_person_takes_the_receipt_of_a_use_and_of_nothing_else(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    other = await api.active(await api.integration("erp"), subject="user-2")
    key = await api.app_with("reports", Action.TOKEN)
    mine = (await api.lease(key)).json()["audit"]
    theirs = (await api.post(f"/v1/connections/{other.id}/token", key)).json()["audit"]
    user = AgentUser(api, issuer)
    await user.ask("/me")
    path = f"/me/connections/{connection.id}/receipts"
    assert (await user.browser.get(f"{path}/{mine}")).status_code == 404, "no checkpoint covers it yet"
    await HeadsLog(api.worker, api.clock, "evergrant.example/audit").advance()
    receipt = Receipt.parse((await user.browser.get(f"{path}/{mine}")).text)
    assert f"{receipt.shard}/{receipt.index}" == mine
    in_other_digits = f"{receipt.shard}/" + "".join(chr(0x660 + int(it)) for it in str(receipt.index))
    for place in (theirs, f"{mine}9", "nothing/0", "main-0/0", f"{receipt.shard}/one", in_other_digits):
        assert (await user.browser.get(f"{path}/{place}")).status_code == 404


async def test_a_person_ends_a_connection_and_nobody_elses(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    other = await api.active(await api.integration("erp"), subject="user-2")
    key = await api.app_with("reports", Action.TOKEN)
    user = AgentUser(api, issuer)
    csrf = csrf_in(await user.ask("/me"))
    end = f"/me/connections/{connection.id}/end"
    assert (await user.browser.post(end, data={"csrf": "forged"})).status_code == 400
    assert (
        await user.browser.post(f"/me/connections/{other.id}/end", data={"csrf": csrf})
    ).status_code == 404
    ended = await user.browser.post(end, data={"csrf": csrf})
    assert (ended.status_code, ended.headers["location"]) == (303, "/me?tenant=acme&done=connection")
    assert (await api.lease(key)).json()["code"] == "connection_revoked"
    shown = (await user.browser.get(ended.headers["location"])).text
    assert "It is ended" in shown
    assert "being ended at the provider" in shown
    async with api.worker.read() as tx:
        rows = [await tx.connections.get_authentic(TENANT, it.id) for it in (connection, other)]
    assert [row and row.state for row in rows] == [LifecycleState.REVOKING, LifecycleState.ACTIVE]
    (asked,) = await api.records(AuditAction.REVOCATION_REQUESTED)
    assert (asked.context.by, asked.detail["reason"]) == ("subject", "ended by its person")
    again = await user.browser.post(end, data={"csrf": csrf})
    assert again.status_code == 303, "ending twice ends once"
    assert len(await api.records(AuditAction.REVOCATION_REQUESTED)) == 1


async def test_a_person_ends_what_they_let_in(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer, device=True)
    device = Device(api, await registered(api, client_name="<b>Coder</b>"))
    await device.begin(connection)
    user, stranger = AgentUser(api, issuer), AgentUser(api, issuer)
    await decided(user, device)
    assert (await device.poll()).status_code == 200
    (begun,) = await api.records(AuditAction.TOKEN_FAMILY_BEGUN)
    page = await user.ask("/me")
    assert "&lt;b&gt;Coder" in page.text
    other = await stranger.ask("/me", sub="user-2")
    assert "Coder" not in other.text
    end = f"/me/programs/{begun.object}/end"
    assert (await stranger.browser.post(end, data={"csrf": csrf_in(other)})).status_code == 404
    assert (await user.browser.post(end, data={"csrf": csrf_in(page)})).status_code == 303
    (ended,) = await api.records(AuditAction.TOKEN_FAMILY_ENDED)
    assert (ended.object, ended.detail["reason"]) == (begun.object, FamilyEnd.ENDED.value)
    assert "Coder" not in (await user.browser.get("/me")).text


async def test_who_is_logged_out_is_sent_to_the_issuer_and_a_form_changes_nothing(
    api: Api, issuer: LoginIssuer
):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    csrf = csrf_in(await user.ask("/me"))
    assert (await user.browser.post("/me/log-out", data={"csrf": csrf})).status_code == 200
    sent = await user.browser.get("/me")
    assert (sent.status_code, sent.headers["location"].startswith(issuer.issuer)) == (303, True)
    refused = await user.browser.post(f"/me/connections/{connection.id}/end", data={"csrf": csrf})
    assert (refused.status_code, "open the page again" in refused.text) == (401, True)


async def test_a_tenant_without_a_login_for_people_says_so_and_one_that_isnt_there_too(
    api: Api, caplog: pytest.LogCaptureFixture
):
    await api.app_with("boss", Action.ADMIN)
    pages = [await api.get(path) for path in ("/me", "/me?tenant=no-such", "/me?tenant=%00")]
    assert [(page.status_code, "clients_off" in page.text) for page in pages] == [(403, True)] * 3
    assert "authority broken" not in caplog.text
