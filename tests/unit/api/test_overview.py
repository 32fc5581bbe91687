"""The overview, and lists by urgency with their totals, over HTTP: each caller's own, in few statements."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.audit.filing import file_leases
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from tests.fakes.api import TENANT, Api
from tests.fakes.rows import a_consent

HOUR = timedelta(hours=1)


async def failing(api: Api, connection: Connection, code: ErrorCode) -> Connection:
    now = api.clock.now()
    return await api.change(connection, lambda row: row.refresh_failed(code, now, token_over=True))


async def a_tenant(api: Api) -> None:
    """One that is well, one that fails at each of two integrations, and one that needs a consent."""
    crm, mail = await api.integration("crm"), await api.integration("mail")
    await api.active(crm, subject="ann")
    await failing(api, await api.active(crm, subject="bob"), ErrorCode.CLIENT_REJECTED)
    await failing(api, await api.active(mail, subject="cyd"), ErrorCode.PROVIDER_ERROR)
    gone = await api.active(mail, subject="dana", label="work")
    now = api.clock.now()
    await api.change(gone, lambda row: row.rejected(ErrorCode.GRANT_REJECTED, now))


async def overview(api: Api, key: str) -> dict[str, Any]:
    answer = await api.get("/v1/overview", key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_what_needs_somebody_says_whose_turn_it_is_the_admins_first(api: Api):
    await a_tenant(api)
    shown = await overview(api, await api.app_with("boss", Action.ADMIN))
    turns = [(cause["repairer"], cause["code"], cause["integration"]) for cause in shown["attention"]]
    assert turns == [
        ("integration_admin", "client_rejected", "crm"),
        ("subject", "grant_rejected", "mail"),
        ("time", "provider_error", "mail"),
    ]
    assert all(cause["connections"] == 1 and cause["since"] for cause in shown["attention"])
    assert (shown["whole"], shown["complete"], shown["archived_at"]) == (True, True, None)
    assert shown["drilled_at"] is None
    standings = {standing["name"]: standing for standing in shown["integrations"]}
    assert (standings["crm"]["active"], standings["crm"]["failing"]) == (2, 1)
    assert (standings["mail"]["active"], standings["mail"]["needs_reauth"]) == (1, 1)


async def consent_failed(api: Api, connection: Connection, code: ErrorCode) -> None:
    """What the API or a worker writes of the newest consent."""
    api.clock.advance(1)
    ended = {"status": ConsentStatus.FAILED, "failure": code, "app_id": (await api.app_named("boss")).id}
    async with api.store.write() as tx:
        await tx.consents.add(a_consent(connection, api.clock.now(), **ended), None)


@pytest.mark.parametrize("state", [LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH])
async def test_a_consent_that_failed_by_the_client_is_its_admins_turn_until_that_is_changed(
    api: Api, state: LifecycleState
):
    """Overview, list, connection and the integration's health say the same."""
    crm, boss = await api.integration("crm"), await api.app_with("boss", Action.ADMIN)
    if state is LifecycleState.PENDING_CONSENT:
        connection = await api.connection(crm, subject="ann")
    else:
        connection = await api.active(crm, subject="ann")
        await api.change(connection, lambda row: row.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))

    async def turns() -> list[tuple[str | None, str | None]]:
        one = (await api.get(f"/v1/connections/{connection.id}", boss)).json()
        listed = (await api.get("/v1/connections", boss)).json()["items"][0]
        causes = (await api.get("/v1/integrations/crm/health", boss)).json()["causes"]
        (group,) = (await overview(api, boss))["attention"]
        return [(group["repairer"], group["code"]), (one["repairer"], listed["repairer"])] + [
            (cause["repairer"], cause["code"]) for cause in causes
        ]

    await consent_failed(api, connection, ErrorCode.PROVIDER_ERROR)
    assert "integration_admin" not in str(await turns()), "another try of the subject may do"
    await consent_failed(api, connection, ErrorCode.CLIENT_REJECTED)
    admins = ("integration_admin", "client_rejected")
    assert await turns() == [admins, ("integration_admin", "integration_admin"), admins]
    api.clock.advance(1)
    async with api.store.write() as tx:
        row = await tx.integrations.get(TENANT, crm.id)
        assert row is not None
        await tx.integrations.replace(row.__replace__(changed_at=api.clock.now()), expected=row.revision)
    assert "integration_admin" not in str(await turns())


async def test_a_caller_sees_what_its_permits_cover_and_nothing_of_the_whole_tenant(api: Api):
    await a_tenant(api)
    shown = await overview(api, await api.app_with("crm-only", Action.TOKEN, integration="crm"))
    assert [cause["integration"] for cause in shown["attention"]] == ["crm"]
    for name in ("waiting", "ends", "hours", "integrations", "keys"):
        assert shown[name] == [], name
    assert not shown["whole"]
    one = await overview(api, await api.app_with("one", Action.TOKEN, subjects=("da*",)))
    assert [cause["code"] for cause in one["attention"]] == ["grant_rejected"]
    admin = await overview(api, await api.app_with("crm-admin", Action.ADMIN, integration="crm"))
    assert [standing["name"] for standing in admin["integrations"]] == ["crm"]
    assert admin["ends"] == []
    assert (await overview(api, await api.app_with("none")))["attention"] == []


async def test_leases_are_counted_in_the_hour_and_hours_without_one_are_there(api: Api):
    connection, key = await api.active_for("boss", Action.ADMIN, Action.TOKEN)
    assert (await api.lease(key)).status_code == 200
    await file_leases(api.worker)
    api.clock.advance(2 * 3600)
    hours = (await overview(api, key))["hours"]
    assert [(hour["leases"], hour["refreshes"], hour["failed"]) for hour in hours] == [
        (1, 0, 0), (0, 0, 0), (0, 0, 0)
    ]  # fmt: skip
    assert connection.subject not in str(hours)


async def test_ends_and_decisions_are_listed_with_what_they_are_of(api: Api):
    soon = api.clock.now() + timedelta(days=9)
    await api.integration("crm", client_secret_expires_at=soon)
    boss = await api.app_with("boss", Action.ADMIN)
    report = await api.app_with("report")
    permit = {"integration": "crm", "actions": ["token"], "expires_at": soon.isoformat()}
    answer = await api.call("PUT", "/v1/apps/report/permits/for-a-week", boss, json=permit)
    assert answer.is_success, answer.text
    asked = {"reason": "a test", "permit": {"integration": "crm", "actions": ["token"]}}
    assert (await api.post("/v1/access-requests", report, asked)).is_success
    shown = await overview(api, boss)
    ends = {(end["kind"], end["name"], end["owner"]) for end in shown["ends"]}
    assert ends >= {("client_secret", "crm", "gitlab"), ("permit", "for-a-week", "report")}
    assert [(waiting["kind"], waiting["number"]) for waiting in shown["waiting"]] == [("access_request", 1)]


async def test_the_statements_are_as_many_for_ten_connections_as_for_one(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    crm = await api.integration("crm")
    boss = await api.app_with("boss", Action.ADMIN)
    numbers: list[int] = []
    for number in range(10):
        await failing(api, await api.active(crm, subject=f"s{number}"), ErrorCode.PROVIDER_ERROR)
        if number in (0, 9):
            with monkeypatch.context() as patched:
                counted = count_statements(patched)
                await overview(api, boss)
            numbers.append(len(counted))
    assert numbers[0] == numbers[1]
    assert numbers[1] <= 15


def count_statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of the overview and of the lists, noted as they are sent."""
    from evergrant_server.store.database import rows

    sent: list[str] = []
    real = rows.fetch_all

    async def noted(connection: Any, query: Any, parameters: Any = None) -> Any:
        sent.append(str(query))
        return await real(connection, query, parameters)

    for module in (
        *("evergrant_server.store.questions.overview", "evergrant_server.store.authority.authenticators"),
        *("evergrant_server.audit.records", "evergrant_server.audit.exchanges"),
        *("evergrant_server.store.database.rows", "evergrant_server.store.connections.search"),
    ):
        monkeypatch.setattr(f"{module}.fetch_all", noted)
    return sent


async def test_a_list_by_urgency_pages_through_what_the_caller_sees(api: Api):
    await a_tenant(api)
    boss = await api.app_with("boss", Action.ADMIN)
    subjects: list[str] = []
    query: str | None = "order=urgency&limit=1"
    while query is not None:
        page = (await api.get(f"/v1/connections?{query}", boss)).json()
        subjects += [item["subject"] for item in page["items"]]
        cursor = page["next_cursor"]
        query = cursor and f"order=urgency&limit=1&cursor={cursor}"
    assert subjects == ["dana", "bob", "cyd", "ann"]
    mail = await api.app_with("mail-only", Action.TOKEN, integration="mail")
    page = (await api.get("/v1/connections?order=urgency", mail)).json()
    assert [item["subject"] for item in page["items"]] == ["dana", "cyd"]
    assert (
        await api.get(f"/v1/connections?order=id&cursor={page_cursor(subjects)}", boss)
    ).status_code == 400


def page_cursor(_: list[str]) -> str:
    return "bm9uZSBvZiBvdXJz"


async def test_a_search_finds_by_the_beginning_and_totals_are_of_what_it_finds(api: Api):
    await a_tenant(api)
    boss = await api.app_with("boss", Action.ADMIN)

    async def found(search: str, key: str = boss) -> list[str]:
        page = (await api.get(f"/v1/connections?search={search}", key)).json()
        return [item["subject"] for item in page["items"]]

    assert await found("b") == ["bob"]
    assert await found("wor") == ["dana"], "by its label"
    assert await found("%25") == []
    totals = (await api.get("/v1/connections/totals", boss)).json()
    assert (totals["total"], totals["failing"], totals["complete"]) == (4, 2, True)
    assert totals["states"] == {"active": 3, "needs_reauth": 1}
    mail = await api.app_with("mail-only", Action.TOKEN, integration="mail")
    assert await found("b", mail) == []
    totals = (await api.get("/v1/connections/totals", mail)).json()
    assert (totals["states"], totals["failing"]) == ({"active": 1, "needs_reauth": 1}, 1)
    only = (await api.get("/v1/connections/totals?search=d&integration=mail", boss)).json()
    assert only["states"] == {"needs_reauth": 1}
    refused = await api.get("/v1/connections?search=%00", boss)
    assert (refused.status_code, refused.json()["field"]) == (400, "search")


async def test_an_active_connection_with_an_expired_token_says_why(api: Api):
    connection, key = await api.active_for("boss", Action.ADMIN, Action.TOKEN)

    async def token() -> str:
        return (await api.get(f"/v1/connections/{connection.id}", key)).json()["token_state"]

    assert await token() == "valid"
    api.clock.advance(3601)
    assert await token() == "idle"
    api.clock.advance(-3601)
    assert (await api.lease(key)).status_code == 200
    api.clock.advance(3601)
    assert await token() == "due"
    api.clock.advance(3600)
    assert await token() == "late"
    await failing(api, connection, ErrorCode.PROVIDER_ERROR)
    assert await token() == "failing"
    row = await api.row(TENANT, connection.id)
    assert row.state is LifecycleState.ACTIVE
