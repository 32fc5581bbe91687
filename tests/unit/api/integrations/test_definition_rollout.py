"""`/v1/providers`: proposing, deciding and rolling back, over HTTP."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.definition import CheckLevel, CheckResult, DefinitionState
from evergrant_server.core.outbox import OutboxKind
from tests.fakes.api import TENANT, Api

ACME = {
    "name": "acme-crm",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://acme.example/authorize",
    "token_endpoint": "https://acme.example/token",
}


async def propose(api: Api, admin: str, state: DefinitionState | None = None):
    answer = await api.post("/v1/providers", admin, {"definition": ACME})
    if state is not None:
        await moved(api, state)
    return answer


async def moved(api: Api, state: DefinitionState, share: float = 0.0) -> None:
    """What the worker writes."""
    async with api.worker.write() as tx:
        found = await tx.definitions.version(TENANT, "acme-crm", 1)
        assert found is not None
        after = found.model_copy(update={"state": state, "share": share})
        await tx.definitions.replace(after, expected=found.revision)


async def test_a_proposal_is_checked_before_anything_uses_it(api: Api, admin: str):
    versions = "/v1/providers/acme-crm/versions"
    assert (await propose(api, await api.app_with("pipeline"))).status_code == 403
    assert (await api.get(versions, admin)).status_code == 404
    answer = await propose(api, admin)
    assert answer.status_code == 201
    assert (answer.json()["version"], answer.json()["state"]) == (1, "checking")
    assert (await api.get("/v1/providers/acme-crm", admin)).status_code == 404
    assert [it.kind for it in await api.outbox()] == [OutboxKind.START_DEFINITION_ROLLOUT]
    second = await propose(api, admin)
    assert (second.status_code, second.json()["code"]) == (409, "already_exists")
    (shown,) = (await api.get(versions, admin)).json()["items"]
    assert (shown["version"], shown["state"], shown["proposed_by"]) == (1, "checking", "app:admin")


async def test_what_is_active_is_in_the_catalogue_of_its_tenant_alone(api: Api, admin: str):
    await propose(api, admin)
    await moved(api, DefinitionState.ACTIVE, 1.0)
    assert (await api.get("/v1/providers/acme-crm", admin)).json()["display_name"] == "Acme CRM"
    names = [it["name"] for it in (await api.get("/v1/providers", admin)).json()["items"]]
    assert "acme-crm" in names
    assert names == sorted(names)
    body = {"provider": "acme-crm", "client_id": "c", "client_secret": "s"}
    assert (await api.call("PUT", "/v1/integrations/crm", admin, json=body)).status_code == 201


async def test_the_first_decision_counts(api: Api, admin: str):
    await propose(api, admin, DefinitionState.WAITING)
    why = await api.post("/v1/providers/acme-crm/reject", admin, {"version": 1})
    assert why.json()["field"] == "reason"
    approved = await api.post("/v1/providers/acme-crm/approve", admin, {"version": 1})
    assert approved.json()["approved"] is True
    late = await api.post("/v1/providers/acme-crm/reject", admin, {"version": 1, "reason": "no"})
    assert (late.status_code, late.json()["field"]) == (400, "version")


@pytest.mark.parametrize("version", [10**30, -(10**30), 2**31, 0])
@pytest.mark.parametrize("verb", ["approve", "reject", "roll-back"])
async def test_a_version_is_a_number_that_a_column_holds(api: Api, admin: str, verb: str, version: int):
    body = {"version": version, "reason": "no"}
    answer = await api.post(f"/v1/providers/acme-crm/{verb}", admin, body)
    assert (answer.status_code, answer.json()["field"]) == (400, "version")
    body["version"] = 2**31 - 1
    assert (await api.post(f"/v1/providers/acme-crm/{verb}", admin, body)).status_code == 404


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
@pytest.mark.parametrize("where", ["categories", "token_params", "a name"])
async def test_a_definition_that_no_answer_can_show_is_refused(api: Api, admin: str, where: str, text: str):
    said = {
        "categories": {"categories": [text]},
        "token_params": {"token_params": {"a": text}},
        "a name": {"sources": {"agreeing": {text: 1}}},
    }[where]
    answer = await api.post("/v1/providers", admin, {"definition": ACME | said})
    assert (answer.status_code, answer.json()["field"]) == (400, "definition")


@pytest.mark.parametrize("state", [DefinitionState.CHECKING, DefinitionState.UNSOUND, DefinitionState.ACTIVE])
async def test_only_what_waits_is_decided(api: Api, admin: str, state: DefinitionState):
    await propose(api, admin, state)
    answer = await api.post("/v1/providers/acme-crm/approve", admin, {"version": 1})
    assert answer.status_code == 400
    late = await api.post("/v1/providers/acme-crm/reject", admin, {"version": 1, "reason": "it hangs"})
    assert late.status_code == (200 if state is DefinitionState.CHECKING else 400)


async def test_four_eyes(api: Api, admin: str):
    object.__setattr__(api.parts, "settings", api.parts.settings.model_copy(update={"four_eyes": True}))
    await propose(api, admin, DefinitionState.WAITING)
    own = await api.post("/v1/providers/acme-crm/approve", admin, {"version": 1})
    assert (own.status_code, own.json()["code"]) == (403, "not_permitted")
    other = await api.app_with("second-admin", Action.ADMIN)
    answer = await api.post("/v1/providers/acme-crm/approve", other, {"version": 1})
    assert answer.json()["decided_by"] == "app:second-admin"


async def test_only_a_staged_version_rolls_back(api: Api, admin: str):
    await propose(api, admin)
    body = {"version": 1, "reason": "support tickets"}
    assert (await api.post("/v1/providers/acme-crm/roll-back", admin, body)).status_code == 400
    await moved(api, DefinitionState.STAGED, 0.05)
    assert (await api.post("/v1/providers/acme-crm/roll-back", admin, body)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"token_endpoint": "http://acme.example/token"}, "token_endpoint"),
        ({"token_endpoint": None}, "token_endpoint"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"quirks": ["not_one"]}, "quirks"),
        ({"name": "../etc"}, "name"),
    ],
)
async def test_a_malformed_definition_names_its_field(api: Api, admin: str, changes: dict, field: str):
    answer = await api.post("/v1/providers", admin, {"definition": ACME | changes})
    assert (answer.status_code, answer.json()["field"]) == (400, field)


async def test_new_hosts_for_secrets_are_accepted_by_name_or_not_at_all(api: Api, admin: str):
    """RFC 9700 section 4.4: one approval would move every live client secret and refresh token."""
    await propose(api, admin, DefinitionState.WAITING)
    warned = (CheckResult(check="hosts", level=CheckLevel.WARNING, detail="tokens would go to evil.example"),)
    async with api.worker.write() as tx:
        found = await tx.definitions.version(TENANT, "acme-crm", 1)
        assert found is not None
        await tx.definitions.replace(found.model_copy(update={"findings": warned}), expected=found.revision)
    refused = await api.post("/v1/providers/acme-crm/approve", admin, {"version": 1})
    assert (refused.status_code, refused.json()["field"]) == (400, "accept_hosts")
    body = {"version": 1, "accept_hosts": True}
    assert (await api.post("/v1/providers/acme-crm/approve", admin, body)).json()["approved"] is True
