"""`/v1/offboardings` over HTTP: what a person loses at once, what can be put back, and who may order it."""

from datetime import timedelta

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.ids import IncidentId
from tests.fakes.api import TENANT, Api
from tests.unit.api.leavers.people import (
    ISSUER,
    OFFBOARDINGS,
    ORDER,
    SUB,
    at_work,
    incident_of,
    lease_of,
)


async def test_from_the_answer_on_no_token_of_the_person_is_leased_and_another_persons_is(api: Api):
    work = await at_work(api)
    assert [await lease_of(api, work, name) for name in ("crm", "erp")] == ["leased", "leased"]
    begun = await api.post(OFFBOARDINGS, work.boss, ORDER)
    assert begun.status_code == 202, begun.text
    assert [await lease_of(api, work, name) for name in ("crm", "erp")] == ["connection_held"] * 2
    assert await lease_of(api, work, subject="bob") == "leased"
    incident = await incident_of(api, begun.json()["id"])
    assert (incident.state, incident.selected) == (IncidentState.HOLDING, 3)
    assert incident.held_until == incident.created_at + timedelta(days=1)
    held = [record.object for record in await api.records(AuditAction.CONNECTION_HELD)]
    assert sorted(held) == sorted(connection.id for connection in work.mine)
    (message,) = [sent for sent in await api.outbox() if sent.kind == "advance_incident"]
    assert message.target == f"incident:{TENANT}:{incident.id}"


async def test_a_held_connection_is_neither_reauthorized_nor_exported_nor_started_anew(api: Api):
    work = await at_work(api)
    await api.post(OFFBOARDINGS, work.boss, ORDER)
    again = await api.post(f"/v1/connections/{work.mine[0].id}/reauthorize", work.pipeline)
    anew = await api.post("/v1/connections", work.pipeline, {"integration": "crm", "subject": "alice"})
    assert [again.json()["code"], anew.json()["code"]] == ["connection_held"] * 2
    shown = (await api.get(f"/v1/connections/{work.mine[0].id}", work.pipeline)).json()
    assert (shown["state"], shown["reason"], shown["repairer"]) == (
        *("active", "connection_held"),
        "permit_admin",
    )


async def test_nothing_new_is_connected_for_who_leaves_until_it_was_undone(api: Api):
    work = await at_work(api)

    async def connected(subject: str) -> str:
        wanted = {"integration": "crm", "subject": subject, "label": "second"}
        answer = await api.post("/v1/connections", work.pipeline, wanted)
        return answer.json()["code"] if answer.is_error else "created"

    async def imported(subject: str) -> str:
        item = {"integration": "crm", "subject": subject, "label": "third", "scopes": ["read_user"]}
        item |= {"access_token": "at", "refresh_token": "rt", "expires_in": 3600}
        answer = await api.post("/v1/connections/import", work.boss, {"items": [item], "verify": False})
        (outcome,) = answer.json()["items"]
        return outcome["code"] or outcome["status"]

    begun = (await api.post(OFFBOARDINGS, work.boss, ORDER)).json()
    assert [await connected(subject) for subject in ("alice", "bob")] == ["connection_held", "created"]
    assert [await imported(subject) for subject in ("alice", "bob")] == ["connection_held", "imported"]
    await api.post(f"{OFFBOARDINGS}/{begun['id']}/undo", work.boss)
    assert await connected("alice") == "created"


async def test_sessions_clients_delegations_and_agents_end_with_the_order(api: Api):
    work = await at_work(api)
    assert (await api.get("/v1/sessions/current", work.session)).status_code == 200
    begun = (await api.post(OFFBOARDINGS, work.boss, ORDER)).json()
    assert begun["beside"] == {"sessions": 2, "token_families": 1, "delegations": 1, "agents": 1}
    assert (await api.get("/v1/sessions/current", work.session)).status_code == 401
    (family,) = (await api.get("/v1/token-families", work.boss)).json()["items"]
    (delegation,) = (await api.get("/v1/delegations?subject=alice", work.boss)).json()["items"]
    assert (family["live"], delegation["state"]) == (False, "stopped")
    agent = (await api.get("/v1/agents/helper", work.boss)).json()
    assert (agent["disabled"], agent["active"]) == (True, False)


async def test_a_new_sponsor_answers_for_the_agents_of_the_person(api: Api):
    work = await at_work(api)
    refused = await api.post(OFFBOARDINGS, work.boss, {**ORDER, "sponsor": "helper"})
    assert refused.status_code == 404, "an agent answers for none"
    assert (await api.post(OFFBOARDINGS, work.boss, {**ORDER, "sponsor": "boss"})).status_code == 202
    agent = (await api.get("/v1/agents/helper", work.boss)).json()
    assert (agent["sponsor"], agent["active"]) == ("app:boss", True)


async def test_within_the_grace_connections_are_put_back_and_afterwards_not(api: Api):
    work = await at_work(api)
    place = f"{OFFBOARDINGS}/{(await api.post(OFFBOARDINGS, work.boss, ORDER)).json()['id']}"
    undone = await api.post(f"{place}/undo", work.boss)
    assert (undone.status_code, undone.json()["outcomes"]) == (200, {"restored": 3})
    assert [await lease_of(api, work, name) for name in ("crm", "erp")] == ["leased", "leased"]
    assert (await api.get("/v1/sessions/current", work.session)).status_code == 401, "people log in again"
    assert (await api.post(f"{place}/undo", work.boss)).status_code == 400
    second = f"{OFFBOARDINGS}/{(await api.post(OFFBOARDINGS, work.boss, ORDER)).json()['id']}"
    async with api.worker.write() as tx:
        incident = await tx.incidents.get(TENANT, IncidentId(second.rpartition("/")[2]))
        assert incident is not None
        await tx.incidents.replace(incident.following(), expected=incident.revision)
    late = await api.post(f"{second}/undo", work.boss)
    assert (late.status_code, "grace is over" in late.json()["detail"]) == (400, True)


async def test_a_held_connection_is_revoked_by_a_command_and_not_put_back(api: Api):
    work = await at_work(api)
    place = f"{OFFBOARDINGS}/{(await api.post(OFFBOARDINGS, work.boss, ORDER)).json()['id']}"
    path = f"/v1/connections/{work.mine[0].id}"
    revoked = await api.post(f"{path}/revoke", work.boss, {"reason": "at once"})
    assert (revoked.status_code, revoked.json()["state"]) == (202, "revoking"), revoked.text
    assert (await lease_of(api, work)) != "leased"
    undone = (await api.post(f"{place}/undo", work.boss)).json()
    assert undone["outcomes"] == {"gone": 1, "restored": 2}
    assert (await api.get(path, work.boss)).json()["state"] == "revoking"


async def test_a_second_order_is_the_first_one(api: Api):
    work = await at_work(api)
    first, second = [(await api.post(OFFBOARDINGS, work.boss, ORDER)).json()["id"] for _ in range(2)]
    assert first == second
    assert len((await api.get(OFFBOARDINGS, work.boss)).json()["items"]) == 1


async def test_a_plan_names_each_connection_and_changes_nothing(api: Api):
    work = await at_work(api)
    auditor = await api.app_with("auditor", Action.AUDIT)
    plan = (await api.post(f"{OFFBOARDINGS}/plan", auditor, ORDER)).json()
    fates = {each["connection_id"]: (each["fate"], each["matched_by"]) for each in plan["connections"]}
    assert fates == {connection.id: ("stop", "order") for connection in work.mine}
    assert (plan["agents"], plan["grace"]) == (["helper"], 86_400)
    assert await lease_of(api, work) == "leased"
    assert (await api.post(OFFBOARDINGS, auditor, ORDER)).status_code == 403


async def test_a_connection_of_the_team_is_handed_over_and_goes_on(api: Api):
    work = await at_work(api)
    strange = {**ORDER, "hand_over": {work.of_bob.id: "team-finance"}}
    refused = await api.post(OFFBOARDINGS, work.boss, strange)
    assert (refused.status_code, refused.json()["field"]) == (400, "hand_over")
    moves = {**ORDER, "hand_over": {work.mine[1].id: "team-finance"}}
    begun = (await api.post(OFFBOARDINGS, work.boss, moves)).json()
    assert begun["outcomes"] == {"handed_over": 1}
    assert await lease_of(api, work, "erp", "team-finance") == "leased"
    assert await lease_of(api, work) == "connection_held"


async def test_by_the_rule_the_teams_labels_are_handed_over_unless_the_team_has_one(api: Api):
    work = await at_work(api)
    crm = await api.integration("chat")
    shared = await api.active(crm, "at-shared", subject="alice", label="shared")
    rule = {"team_labels": ["shared", "default"], "team_owner": "bob"}
    put = await api.call("PUT", "/v1/offboarding-rule", work.boss, json=rule)
    assert put.status_code == 201, put.text
    plan = (await api.post(f"{OFFBOARDINGS}/plan", work.boss, ORDER)).json()
    fates = {each["connection_id"]: each["fate"] for each in plan["connections"]}
    assert fates[shared.id] == "hand_over"
    assert fates[work.mine[0].id] == "stop", "Bob has one of these names"
    refused = await api.post(OFFBOARDINGS, work.boss, {**ORDER, "hand_over": {work.mine[0].id: "bob"}})
    assert (refused.status_code, refused.json()["field"]) == (400, "hand_over")


async def test_a_person_of_the_issuer_is_matched_by_the_integrations_login_and_never_by_likeness(api: Api):
    boss = await api.app_with("boss", Action.ADMIN)
    login = LoginRule(integration="staff", issuer=ISSUER, claim=LoginClaim.SUB)
    bound = await api.integration("bound", binding=Binding.OIDC, login=login)
    other = LoginRule(integration="staff", issuer="https://other.example", claim=LoginClaim.SUB)
    elsewhere = await api.integration("elsewhere", binding=Binding.OIDC, login=other)
    unbound = await api.integration("unbound")
    mine = await api.active(bound, "at-1", subject=SUB)
    for integration in (elsewhere, unbound):
        await api.active(integration, "at-2", subject=SUB)
    order = {"issuer": ISSUER, "sub": SUB, "reason": "HR-7"}
    plan = (await api.post(f"{OFFBOARDINGS}/plan", boss, order)).json()
    assert [(each["connection_id"], each["matched_by"]) for each in plan["connections"]] == [
        (mine.id, "login")
    ]
    nobody = (await api.post(f"{OFFBOARDINGS}/plan", boss, {**order, "sub": SUB.upper()})).json()
    assert nobody["connections"] == []


async def test_a_grace_of_nothing_leaves_nothing_to_undo_and_a_rule_shortens_it(api: Api):
    work = await at_work(api)
    rule = {"grace": 60, "sponsor": "boss"}
    assert (await api.call("PUT", "/v1/offboarding-rule", work.boss, json=rule)).status_code == 201
    assert (await api.call("PUT", "/v1/offboarding-rule", work.boss, json=rule)).status_code == 200
    begun = (await api.post(OFFBOARDINGS, work.boss, ORDER)).json()
    incident = await incident_of(api, begun["id"])
    assert incident.held_until == incident.created_at + timedelta(seconds=60)
    assert (await api.get("/v1/agents/helper", work.boss)).json()["sponsor"] == "app:boss"
    assert (await api.call("DELETE", "/v1/offboarding-rule", work.boss)).status_code == 204
    assert (await api.get("/v1/offboarding-rule", work.boss)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{"reason": "x"}, {"reason": "x", "sub": "u"}, {"reason": "x", "issuer": "https://a.example"}],
    ids=["nobody", "a sub of no issuer", "an issuer without a sub"],
)
async def test_an_order_names_somebody(api: Api, body: dict[str, str]):
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.post(OFFBOARDINGS, boss, body)).status_code == 400


async def test_who_writes_to_the_database_frees_no_held_connection(api: Api):
    work = await at_work(api)
    await api.post(OFFBOARDINGS, work.boss, ORDER)
    async with api.worker.write() as tx:
        connection = await tx.connections.get(TENANT, work.mine[0].id)
        assert connection is not None
        freed = connection.__replace__(held_by=None)
        await tx.connections.replace(freed, expected=connection.revision)
    assert await lease_of(api, work) == "authority_broken"


async def test_an_incident_is_no_offboarding_and_an_offboarding_isnt_ordered_as_one(api: Api):
    work = await at_work(api)
    body = {"kind": "leaver", "confirm": TENANT, "reason": "x"}
    assert (await api.post("/v1/incidents", work.boss, body)).status_code == 400
    await api.post(OFFBOARDINGS, work.boss, ORDER)
    assert (await api.get("/v1/incidents", work.boss)).json()["items"] == []
    breach = {"kind": "breach", "integration": "crm", "confirm": "crm", "reason": "x"}
    incident = (await api.post("/v1/incidents", work.boss, breach)).json()
    assert (await api.get(f"{OFFBOARDINGS}/{incident['id']}", work.boss)).status_code == 404
