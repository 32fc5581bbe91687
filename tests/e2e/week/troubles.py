"""What fails and its repair, many connections at once, what moves in, who leaves, and an incident."""

import re
from typing import Any

from tests.e2e.week.beginnings import SUBJECTS
from tests.e2e.week.office import Office, task
from tests.e2e.week.person import Person
from tests.fakes.patience import PATIENCE_S, eventually

GRANTS = """subject,access_token,expires_in
old-1,a-token-of-the-old-system,3600
old-2,another-token-of-the-old-system,3600
old-3,a-third-token,soon
"""
ACME = """name: acme-crm
display_name: Acme CRM
auth_modes: [authorization_code]
discovery: true
client_auth: client_secret_basic
default_scopes: [read]
"""


@task(11, "who is needed: a connection that fails")
async def who_is_needed(office: Office) -> None:
    ann = office.ann
    await office.issuer.end_grant("erin")
    await office.refreshes("erin")
    await office.api.state((await office.connection("erin"))["id"], "needs_reauth", PATIENCE_S)
    await ann.menu("Overview")
    await ann.reads("the subject")
    await office.looks_at(ann, "the overview")
    await ann.follows(re.compile("^1 needs a new consent"))
    await ann.follows("erin")
    await ann.reads("Consent again")
    (group,) = (await office.api.get("/v1/overview"))["attention"]
    assert (group["integration"], group["connections"]) == ("crm", 1)


@task(12, "its repair: the app asks for a new consent")
async def a_repair(office: Office) -> None:
    ann = office.ann
    heard = asks_in(office)
    await ann.follows("Tell its app that a new consent is needed")
    order = await given(office)
    assert order["outcomes"] == {"asked": 1}
    connection = await office.connection("erin")

    async def hears() -> bool:
        return len(asks_in(office)) > len(heard)

    await eventually(hears)
    assert connection["id"].encode() in asks_in(office)[-1], "the webhook hears which one"
    begun = await office.app.post(f"/v1/connections/{connection['id']}/reauthorize")
    await office.consents(begun, "erin")


@task(13, "many are refreshed, with progress")
async def many_refreshed(office: Office) -> None:
    generation = (await office.connection("alice"))["generation"]
    await chosen(office.ann, integration="crm", state="active")
    order = await ordered(office, "refresh", "all of this list")
    assert order["outcomes"] == {"renewed": len(SUBJECTS)}, order
    assert (await office.connection("alice"))["generation"] > generation


@task(14, "some get a label")
async def some_labelled(office: Office) -> None:
    await chosen(office.ann, integration="crm", state="active")
    for subject in ("dave", "frank"):
        await office.ann.ticks(f"{subject} at crm")
    order = await ordered(office, "give a label", "the ticked ones", label="eu")
    assert order["outcomes"] == {"labelled": 2}
    assert (await office.connection("dave"))["label"] == "eu"


@task(15, "an import: what it would do, its order, its report")
async def an_import(office: Office) -> None:
    ann = office.ann
    await ann.menu("Connections", "Imports")
    await ann.fills("Grants, as CSV or JSON Lines", GRANTS)
    await ann.fills("Integration of rows that name none", "crm")
    await ann.presses("Check them")
    await ann.reads("Checked: nothing is imported yet")
    assert not await listed(office, "old-")
    await office.looks_at(ann, "checked")
    await ann.ticks("Whatever refreshed these grants before is stopped")
    await ann.presses("Import 2 grants")
    await ann.waits_for("done, with rows to repair")
    assert [connection["state"] for connection in await listed(office, "old-")] == ["active"] * 2


@task(16, "many are revoked, for good")
async def many_revoked(office: Office) -> None:
    await chosen(office.ann, search="old-")
    order = await ordered(office, "revoke for good", "all of this list")
    assert order["ended"] == order["selected"] == 2
    assert {connection["state"] for connection in await listed(office, "old-")} == {"revoked"}


@task(17, "an own definition, changed, with its differences")
async def a_definition(office: Office) -> None:
    ann = office.ann
    await ann.menu("Setup", "Catalogue")
    await ann.follows("Own definitions")
    await ann.follows("Propose a definition")
    await ann.fills("Definition, as YAML or JSON", ACME)
    await ann.presses("Propose it")
    await ann.waits_for("waits for a decision")
    if await ann.sees("Secrets and tokens would be sent to new hosts"):
        await ann.ticks("Secrets and tokens would be sent to new hosts")
    await ann.presses("Approve it")
    await ann.waits_for("serves all")
    await ann.follows("acme-crm")
    await ann.follows("Propose another version")
    text = await ann.value_of("Definition, as YAML or JSON")
    await ann.fills("Definition, as YAML or JSON", text.replace('"read"', '"read", "write"'))
    await ann.presses("Propose it")
    await ann.waits_for("waits for a decision")
    await ann.reads("read write")
    await office.looks_at(ann, "what it changes")
    await ann.fills("Reason, for who proposed it", "they ask for write later")
    await ann.presses("Reject it")
    await ann.reads("It is rejected.")
    versions = (await office.api.get("/v1/providers/acme-crm/versions"))["items"]
    states = {version["version"]: version["state"] for version in versions}
    assert states == {1: "active", 2: "rejected"}


@task(28, "somebody leaves: what would follow, and back again")
async def a_leaver(office: Office) -> None:
    ann = office.ann
    await ann.menu("Access", "Leavers")
    await ann.fills("The subject, as apps name them", "carol")
    await ann.fills("Reason", "HR-7")
    await ann.presses("Show what would follow")
    await ann.reads("stopped, then revoked")
    await office.app.lease("crm", "carol")
    await office.looks_at(ann, "what would follow")
    await ann.confirms()
    await ann.presses("Stop them")
    await ann.waits_for("stopped, can be put back")
    assert await office.refusal("carol") == "connection_held"
    await office.looks_at(ann, "stopped")
    await chosen(ann, search="carol")
    order = await ordered(office, "refresh", "all of this list")
    assert (order["selected"], order["outcomes"]) == (1, {"renewed": 1}), order
    assert await office.refusal("carol") == "connection_held", "a bulk order lets nobody go"
    await ann.menu("Access", "Leavers")
    await ann.follows("carol")
    await ann.presses("Put the connections back")
    await ann.waits_for(re.compile("^put back$"))

    async def leases() -> bool:
        return not await office.refusal("carol")

    assert await eventually(leases)


@task(29, "an incident: everything of an integration is stopped")
async def an_incident(office: Office) -> None:
    ann = office.ann
    await ann.menu("Trust", "Incidents")
    await ann.fills("Only of this integration", "crm")
    await ann.presses("Show what would follow")
    await office.looks_at(ann, "what would follow")
    await ann.confirms()
    await ann.fills("Reason, for the audit log and the report", "INC-1")
    await ann.presses("Stop and revoke")
    await ann.waits_for("The signed report")
    assert b"INC-1" in await ann.downloads("The signed report")
    (incident,) = (await office.api.get("/v1/incidents"))["items"]
    assert incident["ended"] == incident["selected"] == len(SUBJECTS)
    assert await office.refusal("alice") == "connection_revoked"


async def chosen(person: Person, *, integration: str = "", state: str = "", search: str = "") -> None:
    """The list of connections, by a filter."""
    await person.menu("Connections", "Connections")
    if state:
        await person.chooses("State", state)
    await person.fills("Integration", integration)
    await person.fills("Subject, label or id", search)
    await person.filters("Filter")


async def ordered(office: Office, act: str, which: str, label: str = "") -> dict[str, Any]:
    """An order about connections of the list."""
    ann = office.ann
    await ann.chooses("Do", act)
    await ann.chooses("with", which)
    await ann.presses("Show what would follow")
    return await given(office, label)


async def given(office: Office, label: str = "") -> dict[str, Any]:
    """The planned order, once it is done."""
    ann = office.ann
    if label:
        await ann.fills("The label", label)
    if await ann.page.locator("#confirm").count():
        await ann.confirms()
    await ann.fills("Reason, for the audit log", "OPS-12")
    await office.looks_at(ann, "what would follow")
    await ann.presses(re.compile(r": (at least )?\d+ connections?$"))
    await ann.waits_for(re.compile("^Done$"))
    return await office.api.get(f"/v1/connections/bulk/{ann.page.url.rpartition('/')[2]}")


def asks_in(office: Office) -> list[bytes]:
    """What the webhook's receiver was told of new consents that are needed."""
    return [message.body for message in office.receiver.received if b"needs_reauth" in message.body]


async def listed(office: Office, beginning: str) -> list[dict[str, Any]]:
    return (await office.api.get(f"/v1/connections?integration=crm&search={beginning}"))["items"]
