"""What can be shown and what is kept: the audit log, a stream of it, keys, and a second admin's approval."""

import json
import re

from tests.e2e.week.beginnings import make_key
from tests.e2e.week.office import SECOND_ADMIN, Office, task
from tests.fakes.patience import eventually


@task(25, "the audit log: a filter, a proof, a kept question")
async def the_log(office: Office) -> None:
    ann = office.ann
    await ann.menu("Trust", "Audit log")
    await ann.chooses("What", "permit.put")
    await ann.filters("Filter")
    await office.looks_at(ann, "filtered")
    await ann.follows("permit.put")
    receipt = json.loads(await ann.downloads("Download its receipt"))
    records = (await office.api.get("/v1/audit?action=permit.put&newest_first=true"))["items"]
    assert receipt["record"] == f"{records[0]['shard']}/{records[0]['seq']}"
    await ann.menu("Trust", "Questions")
    await ann.presses("Ask", under="Is the audit log whole?")
    await ann.waits_for("answered")
    await ann.menu("Trust", "Questions")
    await ann.reads("Whether the audit log is whole")
    await ann.follows("Whether the audit log is whole")
    (question,) = (await office.api.get("/v1/questions"))["items"]
    assert (question["question"], question["state"]) == ("log", "answered")


@task(26, "a stream of the audit log")
async def a_stream(office: Office) -> None:
    ann = office.ann
    await ann.menu("Trust", "Streams")
    await ann.follows("Make a stream")
    await ann.fills("Name", "siem")
    await ann.fills("URL of the receiver", office.siem.url)
    await ann.chooses("It begins", "with the oldest")
    await ann.fills("Headers of each batch", "Authorization: Splunk 0a1b2c")
    await office.looks_at(ann, "its form")
    await ann.presses("Make the stream")
    assert (await ann.value_of("Signing secret, shown once")).startswith("whsec_")
    await ann.follows("To the streams")
    await ann.waits_for("taken")
    await office.siem.until(1)
    assert office.siem.received[0].headers["authorization"] == "Splunk 0a1b2c"
    assert (await office.api.get("/v1/audit/streams/siem"))["sent"] > 0


@task(27, "keys: what to rotate, and an older secret is retired")
async def keys(office: Office) -> None:
    ann = office.ann
    await ann.menu("Setup", "Webhooks")
    await ann.follows("ops")
    await ann.follows("Replace the signing secret")
    await ann.presses("Make a new secret")
    await ann.menu("Trust", "Keys")
    await office.looks_at(ann, "what to rotate")
    await ann.presses(re.compile("^Retire the older secret of ops"))
    assert (await office.api.get("/v1/webhooks/ops"))["previous_secret_until"] is None
    await ann.chooses("Whose keys", "the tenant's own")
    await ann.presses("Begin")
    await ann.waits_for(re.compile("^done$"))

    async def moved() -> bool:
        (rotation,) = (await office.api.get("/v1/keys/rotations"))["items"]
        return rotation["done"] and rotation["left"] == 0

    assert await eventually(moved)


@task(30, "a second admin approves")
async def four_eyes(office: Office) -> None:
    ann, bob = office.ann, await office.somebody(SECOND_ADMIN)
    await bob.logs_in()
    await office.restart(EVERGRANT_FOUR_EYES="true")
    await ann.menu("Access", "Apps")
    await ann.follows("sync")
    await ann.follows("Make a key")
    await ann.presses("Make the key")
    await ann.reads("approval_required")
    await office.looks_at(ann, "it waits for a second admin")
    assert len((await office.api.get("/v1/apps/sync/keys"))["items"]) == 1
    await bob.menu("Overview")
    await bob.follows("command waits for a second admin")
    await office.looks_at(bob, "what it resolves to")
    await bob.presses(re.compile("^Approve "))
    await bob.reads("The command is approved. Who sent it sends it again: it is then carried out.")
    await ann.menu("Access", "Apps")
    await ann.follows("sync")
    await make_key(ann, office, "the second key")
    assert len((await office.api.get("/v1/apps/sync/keys"))["items"]) == 2
