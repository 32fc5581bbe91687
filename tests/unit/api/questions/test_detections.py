"""What a worker notices in the log: each kind, its threshold, and no alarm twice in a day."""

import secrets
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from temporalio.testing import ActivityEnvironment

from activities import detection
from activities.detection import DetectionActivities
from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.questions import DetectPatterns, DetectPatternsResult
from evergrant_server.core.questions.detection import AppActivity, DetectionRules
from tests.fakes.api import TENANT, Api

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
RULES = DetectionRules(bulk_factor=3, bulk_least=3, silence=30 * DAY, refusals=3, unconfirmed=2)


async def passed(api: Api, rules: DetectionRules = RULES) -> DetectPatternsResult:
    """One pass of a worker that has just started."""
    activities = DetectionActivities(api.worker, api.clock, rules)
    return await ActivityEnvironment().run(activities.detect_patterns, DetectPatterns())


async def noticed(api: Api, **filters: Any) -> list[dict[str, Any]]:
    auditor = await api.app_with(f"eyes-{secrets.token_hex(4)}", Action.AUDIT)
    return (await api.get("/v1/detections", auditor, params=filters)).json()["items"]


async def recorded(api: Api, action: AuditAction, object: str, **detail: object) -> None:
    entry = AuditEntry(
        tenant=TENANT,
        at=api.clock.now(),
        action=action,
        object=object,
        context=RequestContext(by="app:shop"),
        detail=detail,
    )
    async with api.worker.write() as tx:
        await audit.append(tx, entry)


async def leased(api: Api, key: str, *numbers: int) -> None:
    for number in numbers:
        answer = await api.lease(key, subject=f"user-{number}")
        assert answer.status_code == 200, answer.text
    await api.parts.ledger.stop()  # last uses are written with the next batch, or the last one
    await api.parts.ledger.start()


async def test_an_app_that_leases_more_connections_than_its_usual_is_noticed(api: Api):
    integration, key = await api.integration(), await api.app_with("shop", Action.TOKEN)
    app = await api.app_named("shop")
    for number in range(8):
        await api.active(integration, f"at-{number}", subject=f"user-{number}", lifetime=None)
    for _ in range(3):
        await leased(api, key, 0, 1)
        await passed(api)
        api.clock.advance(DAY.total_seconds())
    assert await noticed(api) == []
    await leased(api, key, *range(6))
    await passed(api)
    assert await noticed(api) == [], "six are no more than three times its usual"
    await leased(api, key, 6)
    await passed(api)
    (alarm,) = await noticed(api)
    assert (alarm["kind"], alarm["object"], alarm["app"]) == ("bulk_reads", app.id, "shop")
    assert alarm["facts"] == {"connections": 7, "usual": 2}
    (record,) = await api.records(AuditAction.DETECTED)
    assert record.detail == {"detection": alarm["id"], "kind": "bulk_reads", "app": "shop", **alarm["facts"]}
    await leased(api, key, 7)
    assert (await passed(api)).detections == 0, "once a day"


async def test_a_use_after_silence_is_noticed_of_the_app_and_of_the_connection(api: Api):
    integration, key = await api.integration(), await api.app_with("shop", Action.TOKEN)
    connection = await api.active(integration, subject="user-1", lifetime=None)
    await leased(api, key, 1)
    assert (await passed(api)).detections == 0, "a first use follows nothing"
    api.clock.advance((20 * DAY).total_seconds())
    await recorded(api, AuditAction.GRANT_REFRESHED, connection.id, generation=2)  # which is no use
    api.clock.advance((11 * DAY).total_seconds())
    await leased(api, key, 1)
    await passed(api)
    alarms = {alarm["object"]: alarm for alarm in await noticed(api, kind="after_silence")}
    assert set(alarms) == {connection.id, (await api.app_named("shop")).id}
    assert alarms[connection.id]["facts"]["days"] == 31
    assert alarms[connection.id]["connection_id"] == connection.id
    api.clock.advance((2 * DAY).total_seconds())
    await leased(api, key, 1)
    assert (await passed(api)).detections == 0


async def test_repeated_refusals_are_noticed_with_their_codes(api: Api):
    key = await api.app_for("shop", Action.TOKEN)
    app = await api.app_named("shop")
    await recorded(api, AuditAction.LEASE_REFUSED, app.id, app=app.id, code="not_found")
    await passed(api)
    assert await noticed(api) == []
    await recorded(api, AuditAction.LEASE_REFUSED, app.id, app=app.id, code="not_permitted", repeated=2)
    await passed(api)
    (alarm,) = await noticed(api)
    assert (alarm["kind"], alarm["app"]) == ("repeated_refusals", "shop")
    assert alarm["facts"]["refused"] == 3
    assert key


async def test_consents_that_nobody_confirms_are_noticed_of_the_app_that_began_them(api: Api):
    await api.app_with("shop", Action.CONNECT)
    for number in (1, 2):
        detail = {"consent_id": f"cns_{number}", "requested_by": "app:shop"}
        await recorded(api, AuditAction.CONSENT_UNCONFIRMED, f"con_{number}", **detail)
    await passed(api)
    (alarm,) = await noticed(api)
    assert (alarm["kind"], alarm["app"], alarm["facts"]["unconfirmed"]) == ("unconfirmed_consents", "shop", 2)
    assert alarm["facts"]["connections"] == ["con_1", "con_2"]


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (AuditAction.ACCOUNT_SHARED, "shared_account"),
        (AuditAction.TOKEN_FAMILY_REPLAYED, "token_replayed"),
        (AuditAction.BULK_READ, "bulk_reads"),
    ],
)
async def test_what_has_an_event_of_its_own_is_listed_and_recorded_once(
    api: Api, action: AuditAction, kind: str
):
    await recorded(api, action, "fam_1", app="shop", client="c", subject="alice", kind="lease", reason="r")
    assert (await passed(api)).detections == 1
    (alarm,) = await noticed(api)
    assert (alarm["kind"], alarm["object"]) == (kind, "fam_1")
    assert "alice" not in str(alarm)
    assert await api.records(AuditAction.DETECTED) == []
    assert (await passed(api)).records == 0, "each record is looked at once"


async def test_a_new_network_is_noticed_once_an_app_has_called_for_a_week(api: Api):
    await api.app_with("shop", Action.TOKEN)
    app = await api.app_named("shop")

    async def called_from(network: str) -> None:
        async with api.worker.write() as tx:
            await tx.app_activities.note_networks([(TENANT, app.id, network)], api.clock.now())

    await called_from("203.0.113.0/24")
    await called_from("198.51.100.0/24")
    assert (await passed(api)).detections == 0, "it is new"
    api.clock.advance((8 * DAY).total_seconds())
    await called_from("203.0.113.0/24")
    assert (await passed(api)).detections == 0, "it is known"
    await called_from("192.0.2.0/24")
    off = replace(RULES, new_networks=False)
    assert (await passed(api, off)).detections == 0
    assert (await passed(api)).detections == 1
    (alarm,) = await noticed(api)
    assert (alarm["kind"], alarm["facts"]) == ("new_network", {"network": "192.0.2.0/24"})
    assert (await passed(api)).detections == 0


async def test_the_api_notes_the_network_of_a_request_once_and_private_ones_as_one(api: Api):
    key = await api.app_with("shop", Action.TOKEN)
    await api.active(await api.integration(), lifetime=None)
    for address in ("8.8.8.8", "8.8.8.9", "10.1.2.3", "192.168.7.7", "2600:1:2:3::4", "nowhere"):
        transport = httpx2.ASGITransport(app=api.app, client=(address, 1234))
        async with httpx2.AsyncClient(transport=transport, base_url=str(api.client.base_url)) as client:
            headers = {"Authorization": f"Bearer {key}"}
            leased = await client.post(
                "/v1/lease", headers=headers, json={"integration": "crm", "subject": "user-1"}
            )
            assert leased.status_code == 200
            assert (await client.get("/v1/connections", headers=headers)).status_code == 200
    await api.app.state.networks.stop()
    async with api.worker.read() as tx:
        new = await tx.app_activities.new_networks(api.clock.now() - DAY, 10)
    assert {network.network for network in new} == {"8.8.8.0/24", "private", "2600:1:2::/48"}


async def test_thresholds_of_nought_notice_nothing(api: Api):
    off = DetectionRules(bulk_factor=0, silence=timedelta(0), refusals=0, unconfirmed=0, new_networks=False)
    integration, key = await api.integration(), await api.app_with("shop", Action.TOKEN)
    app = await api.app_named("shop")
    await api.active(integration, subject="user-1", lifetime=None)
    await leased(api, key, 1)
    await passed(api, off)
    api.clock.advance((400 * DAY).total_seconds())
    await leased(api, key, 1)
    for _ in range(3):
        await recorded(api, AuditAction.LEASE_REFUSED, app.id, app=app.id, code="x", repeated=1000)
    assert (await passed(api, off)).detections == 0


async def test_a_pass_that_ends_early_goes_on_and_old_records_raise_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(detection, "_PAGE", 2)
    monkeypatch.setattr(detection, "_MOST_PAGES", 1)
    await api.app_with("shop", Action.TOKEN)
    app = await api.app_named("shop")
    for _ in range(5):
        await recorded(api, AuditAction.LEASE_REFUSED, app.id, app=app.id, code="x")
    first = await passed(api)
    assert (first.records, first.complete) == (2, False)
    api.clock.advance((2 * DAY).total_seconds())
    looked_at = 0
    while not (result := await passed(api)).complete or result.records:
        looked_at += result.records
    assert looked_at >= 3
    assert await noticed(api) == []


def test_an_apps_usual_is_of_the_last_thirty_days_of_use(api: Api):
    activity = AppActivity.first(TENANT, "app_1", api.clock.now())  # type: ignore[arg-type]  # an id is text
    assert activity.usual is None
    for number in range(40):
        activity = activity.on(api.clock.now()).__replace__(most=number)
        api.clock.advance(DAY.total_seconds())
    assert len(activity.before) == 30
    assert activity.usual == 38
    assert activity.on(api.clock.now() + 50 * DAY).before[-1] == 39, "days without a use count nothing"
