"""Import and export over HTTP: items stand for themselves, nothing is echoed, nobody else's is reached."""

import asyncio
import json
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest
from joserfc import jwk

from evergrant_server.api.transfer.intake import ImportWriter
from evergrant_server.api.transfer.models import ImportOutcome
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.export import ExportStatus
from evergrant_server.core.ids import ConnectionId, ExportId, Tenant
from evergrant_server.core.messages.connection import ConnectionStart, EventKind
from evergrant_server.core.outbox import BULK, OutboxKind
from evergrant_server.crypto import Recipient
from evergrant_server.crypto.request_proof import proven_message
from evergrant_server.store.connections.connections import Connections
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.patience import PATIENCE_S

ACCESS, REFRESH = "canary-access-0123", "canary-refresh-4567"


def item(**changes: Any) -> dict[str, Any]:
    good = {
        "integration": "crm",
        "subject": "user-1",
        "access_token": ACCESS,
        "refresh_token": REFRESH,
        "expires_in": 3600,
        "scopes": ["read_user"],
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


async def sent(api: Api, key: str, *items: Any, **more: Any) -> list[dict[str, Any]]:
    body = {"items": list(items), "verify": False, **more}
    answer = await api.post("/v1/connections/import", key, body)
    assert answer.status_code == 200, answer.text
    for secret in (ACCESS, REFRESH):
        assert secret not in answer.text
    return answer.json()["items"]


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker installs anything here."""
    monkeypatch.setattr("evergrant_server.api.transfer.verification.WAIT_S", 0.2)
    monkeypatch.setattr("evergrant_server.api.transfer.verification.MIN_WAIT_S", 0.2)


@pytest.fixture
async def key(api: Api) -> str:
    """Of an admin who may import into an integration."""
    await api.integration()
    return await api.app_with("boss", Action.ADMIN, Action.EXPORT)


async def test_an_import_is_one_transaction_and_a_second_one_changes_nothing(api: Api, key: str):
    first, again = await sent(api, key, item(), item())
    assert (first["status"], first["verification"], again["status"]) == ("imported", "unverified", "exists")
    assert first["connection_id"] == again["connection_id"]
    log = await api.get(f"/v1/connections/{first['connection_id']}/audit", key)
    assert [it["action"] for it in log.json()["items"]] == [AuditAction.CONNECTION_IMPORTED]
    assert ACCESS not in log.text
    (third,) = await sent(api, key, item())
    assert (third["status"], third["connection_id"]) == ("exists", first["connection_id"])
    async with api.worker.write() as tx:
        (row,) = await tx.connections.page(TENANT)
        consent = await tx.consents.import_consent(TENANT, row.id)
        assert consent is not None
        tokens = await tx.consents.imported_tokens(consent)
    (start,) = await api.outbox()
    assert tokens.refresh_token is not None
    assert (tokens.access_token.reveal(), tokens.refresh_token.reveal()) == (ACCESS, REFRESH)
    assert (start.kind, start.name) == (OutboxKind.START_WORKFLOW, BULK)
    assert ACCESS not in json.dumps(start.payload)
    (begins,) = ConnectionStart.model_validate(start.payload).pending_events
    assert (begins.kind, begins.consent_id) == (EventKind.CONSENT_GRANTED, consent.id)
    proven = proven_message(
        api.worker.ring, begins.context, start.target, api.clock.now(), timedelta(seconds=1)
    )
    assert (proven, begins.context.by) == (BULK, "app:boss")  # the audit log names who imported


async def test_a_look_at_what_waits_for_its_verification_is_one_query(
    api: Api, key: str, monkeypatch: pytest.MonkeyPatch
):
    looks, looked_up = list[int](), list[ConnectionId]()
    past_consent, get = Connections.past_consent, Connections.get

    async def counted(
        rows: Connections, tenant: Tenant, ids: Collection[ConnectionId], *, refreshed: bool
    ) -> list[tuple[Connection, bool]]:
        looks.append(len(ids))
        looked_up.clear()
        return await past_consent(rows, tenant, ids, refreshed=refreshed)

    async def got(rows: Connections, tenant: Tenant, id: ConnectionId) -> Connection | None:
        looked_up.append(id)
        return await get(rows, tenant, id)

    monkeypatch.setattr(Connections, "past_consent", counted)
    monkeypatch.setattr(Connections, "get", got)
    items = [item(subject=f"user-{number}") for number in range(8)]
    assert {outcome["verification"] for outcome in await sent(api, key, *items, verify=True)} == {
        "unverified"
    }
    assert set(looks) == {8}
    assert looked_up == [], "no row by itself after the first look"


async def test_the_start_of_an_import_that_is_verified_waits_for_no_other(api: Api, key: str):
    await sent(api, key, item(), verify=True)
    (start,) = await api.outbox()
    assert (start.kind, start.name, api.relay.nudges) == (OutboxKind.START_WORKFLOW, "", 1)


@pytest.mark.parametrize("verify", [True, False])
async def test_the_run_of_an_import_that_is_verified_begins_with_a_refresh(api: Api, key: str, verify: bool):
    refreshable, other = item(subject="user-1"), item(subject="user-2", refresh_token=None)
    await sent(api, key, refreshable, other, verify=verify)
    starts = [ConnectionStart.model_validate(message.payload) for message in await api.outbox()]
    kinds = [[event.kind for event in start.pending_events] for start in starts]
    refresh = [EventKind.REFRESH_REQUESTED] if verify else []
    assert kinds == [[EventKind.CONSENT_GRANTED, *refresh], [EventKind.CONSENT_GRANTED]]


async def test_two_requests_with_the_same_items_import_each_once(api: Api, key: str):
    items = [item(subject=f"user-{n}", **({"integration": "none"} if n == 12 else {})) for n in range(25)]
    first, second = await asyncio.gather(sent(api, key, *items), sent(api, key, *items))
    assert [it["index"] for it in first] == list(range(25))
    ids = {it["connection_id"] for it in (*first, *second)} - {None}
    outcomes = [{one["status"], other["status"]} for one, other in zip(first, second, strict=True)]
    assert outcomes.pop(12) == {"invalid"}
    assert all(it == {"imported", "exists"} for it in outcomes)
    assert len(ids) == len(await api.records(AuditAction.CONNECTION_IMPORTED)) == 24


async def test_the_time_of_a_request_begins_before_its_items_are_taken(
    api: Api, key: str, monkeypatch: pytest.MonkeyPatch
):
    """Else a client gives one attempt up, sends the items again and hears that they exist."""
    take = ImportWriter.import_items

    async def taken(self: ImportWriter, *of: Any, **more: Any) -> list[ImportOutcome]:
        monkeypatch.setattr("evergrant_server.api.transfer.verification.WAIT_S", 3600)
        return await take(self, *of, **more)

    monkeypatch.setattr(ImportWriter, "import_items", taken)
    async with asyncio.timeout(PATIENCE_S):
        (outcome,) = await sent(api, key, item(), verify=True)
    assert (outcome["status"], outcome["verification"]) == ("imported", "unverified")


async def test_a_dry_run_writes_nothing(api: Api, key: str):
    outcomes = await sent(api, key, item(), item(integration="none"), dry_run=True)
    said = [(it["status"], it["code"]) for it in outcomes]
    assert said == [("would_import", None), ("invalid", "not_found")]
    async with api.worker.read() as tx:
        assert await tx.connections.page(TENANT) == []
    assert api.relay.nudges == 0


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"integration": "none"}, "not_found", "integration"),
        ({"integration": "theirs"}, "not_found", "integration"),
        ({"scopes": ["read_user", "sudo"]}, "scope_not_permitted", None),
        ({"subject": "*"}, "invalid_request", "subject"),
        ({"subject": "a\u0000b"}, "invalid_request", "subject"),
        ({"subject": 7}, "invalid_request", "subject"),
        ({"access_token": None}, "invalid_request", "access_token"),
        ({"access_token": [ACCESS]}, "invalid_request", "access_token"),
        ({"access_token": f"{ACCESS}\n"}, "invalid_request", "access_token"),
        ({"access_token": ACCESS * 2000}, "invalid_request", "access_token"),
        ({"expires_in": None}, "invalid_request", "item"),
        ({"expires": "unknown"}, "invalid_request", "item"),
        ({"expires_in": None, "expires": "soon"}, "invalid_request", "expires"),
        ({"expires_in": -1}, "invalid_request", "expires_in"),
        ({"expires_in": None, "expires_at": "2030-01-01T00:00:00"}, "invalid_request", "expires_at"),
        ({"expires_in": None, "expires": "unknown", "refresh_token": None}, "invalid_request", "expires"),
        ({"expires_in": None, "expires_at": "9999-12-31T23:59:59-12:00"}, "invalid_request", "expires_at"),
        ({"expires_in": None, "expires_at": "2126-06-01T00:00:00Z"}, "invalid_request", "expires_at"),
        ({"expires_in": None, "expires_at": "0001-01-01T00:00:00+14:00"}, "invalid_request", "expires_at"),
        ({"expires_in": None, "expires_at": "0001-01-01T00:00:00Z"}, "invalid_request", "expires_at"),
        ({"expires_in": 3_153_600_001}, "invalid_request", "expires_in"),
        ({"refresh_expires_at": "2030-01-01T00:00:00Z"}, "invalid_request", "refresh_expires_at"),
        ({"refresh_expires_in": 7}, "invalid_request", "refresh_expires_in"),
        ({"scopes": "read_user"}, "invalid_request", "scopes"),
        ({"metadata": {"a": {"b": 1}}}, "invalid_request", None),
        ({"tenant": "acme-2"}, "invalid_request", "tenant"),
        ({"integration": "plain"}, "invalid_request", "refresh_token"),
    ],
)
async def test_a_bad_item_is_typed_and_touches_no_other(
    api: Api, changes: dict, code: str, field: str | None
):
    await api.integration(scope_ceiling=("read_user",))
    await api.integration("theirs", tenant=OTHER)
    await api.integration("plain", provider="github", default_scopes=())
    key = await api.app_with("boss", Action.ADMIN)
    bad, good = await sent(api, key, item(**changes), item(subject="user-2"))
    assert (bad["status"], bad["code"]) == ("invalid", code), bad
    if field is not None:
        assert bad["field"] == field, bad
    assert good["status"] == "imported"
    async with api.worker.read() as tx:
        assert [it.subject for it in await tx.connections.page(TENANT)] == ["user-2"]
        assert await tx.connections.page(OTHER) == []


GIVEN_TWICE = json.dumps(item(subject="user-1")).replace("{", '{"subject": "user-9", ', 1)


@pytest.mark.parametrize("raw", ["[]", "7", "null", '"text"', GIVEN_TWICE])
async def test_an_item_is_an_object_that_gives_each_member_once(api: Api, key: str, raw: str):
    body = f'{{"verify": false, "items": [{raw}, {json.dumps(item(subject="user-2"))}]}}'
    headers = {"content-type": "application/json"}
    answer = await api.call("POST", "/v1/connections/import", key, content=body, headers=headers)
    bad, good = answer.json()["items"]
    assert (bad["status"], bad["code"], good["status"]) == ("invalid", "invalid_request", "imported")


@pytest.mark.parametrize(
    ("at", "instead"),
    [("9999-12-31T23:59:59Z", "say never_expires: true"), ("0001-01-01T00:00:00Z", 'say expires: "unknown"')],
)
async def test_a_moment_that_stands_for_something_else_is_told_what_to_say(
    api: Api, key: str, at: str, instead: str
):
    for dry_run in (True, False):
        (bad,) = await sent(api, key, item(expires_in=None, expires_at=at), dry_run=dry_run)
        assert bad["status"] == "invalid"
        assert instead in bad["detail"]
    within_a_century = f"{1930 if at < '1' else 2125}-12-01T00:00:00Z"
    (good,) = await sent(api, key, item(expires_in=None, expires_at=within_a_century))
    assert good["status"] == "imported"


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
async def test_a_fact_is_no_number_that_json_has_no_word_for(api: Api, key: str, number: float):
    for fact in (number, ["1", number]):
        (bad,) = await sent(api, key, item(metadata={"share": fact}))
        assert (bad["status"], bad["field"]) == ("invalid", "metadata")
        assert "infinite" in bad["detail"]
    for fact, status in ((["1", 2], "imported"), (["1\n"], "invalid"), ([["1"]], "invalid")):
        (made,) = await sent(api, key, item(metadata={"advertisers": fact}))
        assert made["status"] == status


async def test_a_lease_meanwhile_sends_nobody_to_consent(api: Api, key: str):
    await sent(api, key, item())
    user = await api.app_with("user", Action.TOKEN, Action.CONNECT)
    answer = await api.lease(user)
    assert (answer.status_code, answer.json()["code"]) == (503, "refresh_pending")
    assert "connect_url" not in answer.text


@pytest.mark.parametrize(
    "public_key",
    [
        {},
        "no pem",
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "OKP", "crv": "X25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
        jwk.OKPKey.generate_key("Ed25519").as_dict(private=False),
        jwk.ECKey.generate_key("P-384").as_dict(private=False),
        jwk.OKPKey.generate_key("X25519").as_dict(private=True),
        jwk.ECKey.generate_key("P-256").as_pem(private=True).decode(),
    ],
)
async def test_a_key_that_nothing_can_be_sealed_to_is_refused_and_not_quoted(
    api: Api, key: str, public_key: Any
):
    answer = await api.post("/v1/connections/export", key, {"public_key": public_key})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    if isinstance(public_key, dict) and "d" in public_key:
        assert public_key["d"] not in answer.text
        assert "private" in answer.json()["detail"]


async def test_an_export_waits_for_a_worker_and_belongs_to_its_tenant(api: Api, key: str):
    public = jwk.OKPKey.generate_key("X25519").as_dict(private=False)
    asked = await api.post("/v1/connections/export", key, {"public_key": public})
    assert asked.status_code == 202
    where = f"/v1/connections/export?id={asked.json()['id']}"
    assert (await api.get(f"{where}&after={2**31 - 1}", key)).status_code == 202
    for after in (10**30, 2**31):
        answer = await api.get(f"{where}&after={after}", key)
        assert (answer.status_code, answer.json()["field"]) == (400, "after")
    other = await api.app_with("other", Action.EXPORT, tenant=OTHER)
    for method in ("GET", "DELETE"):
        assert (await api.call(method, where, other)).status_code == 404
    async with api.worker.write() as tx:
        export = await tx.exports.get(TENANT, ExportId(asked.json()["id"]))
        assert export is not None
        await tx.exports.write_page(export, export.page_sealed(2, 1, None), ["line-1", "line-2"])
    assert (await api.get(where, key)).text == "line-1\nline-2\n"
    assert (await api.get(f"{where}&after=1", key)).text == "line-2\n"
    assert (await api.call("DELETE", where, key)).json()["status"] == ExportStatus.GONE
    assert (await api.get(where, key)).status_code == 404
    records = (await api.get("/v1/audit", key)).json()["items"]
    wanted = {AuditAction.EXPORT_REQUESTED, AuditAction.CONNECTIONS_EXPORTED, AuditAction.EXPORT_DELETED}
    assert {it["action"] for it in records} >= wanted


@pytest.mark.parametrize("half", ["\ud800", "a\0b"])
@pytest.mark.parametrize("name", ["integration", "provider", "subject"])
async def test_a_filter_that_no_query_can_hold_is_refused(api: Api, key: str, name: str, half: str):
    public = jwk.OKPKey.generate_key("X25519").as_dict(private=False)
    answer = await api.post("/v1/connections/export", key, {"public_key": public, "filters": {name: half}})
    assert (answer.status_code, answer.json()["field"]) == (400, "filters")


def test_what_is_sealed_opens_with_the_other_half_alone():
    from joserfc import jwe

    from evergrant_server.core.secret import Secret

    for private in (jwk.OKPKey.generate_key("X25519"), jwk.ECKey.generate_key("P-256")):
        for given in (private.as_dict(private=False), private.as_pem(private=False).decode()):
            sealed = Recipient.parse(given).seal(Secret(REFRESH))
            assert REFRESH not in sealed
            opened = jwe.decrypt_compact(sealed, private, algorithms=["ECDH-ES+A256KW", "A256GCM"])
            assert opened.plaintext == REFRESH.encode()
