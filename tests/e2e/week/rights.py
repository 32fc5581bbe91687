"""Who may do what: credentials, permits, agents with their calls, delegation, gateway clients, people."""

import json
import re
from datetime import UTC, datetime, timedelta

from joserfc.jwk import ECKey

from examples.demo.evergrant_api import EvergrantApi
from tests.e2e.flows.stock_client import AgentFile, stock_client
from tests.e2e.week.beginnings import SUBJECTS, make_key
from tests.e2e.week.office import AUDITOR, Office, task
from tests.e2e.world import refused
from tests.fakes.patience import eventually


@task(9, "a credential without a secret")
async def a_credential(office: Office) -> None:
    ann, key = office.ann, ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True)
    await ann.menu("Access", "Apps")
    await ann.follows("sync")
    await ann.follows("Register a credential")
    await ann.follows("A private key of its own")
    await ann.fills("Name", "signer")
    await ann.fills("Public keys, as a JWK set", json.dumps({"keys": [key.as_dict(private=False)]}))
    await ann.presses("Register it")
    await ann.reads("The credential is registered.")
    (credential,) = (await office.api.get("/v1/apps/sync/credentials"))["items"]
    assert (credential["name"], credential["method"]) == ("signer", "private_key_jwt")


@task(10, "a permit made narrower, and what last month would have lost")
async def a_narrower_permit(office: Office) -> None:
    ann, kept = office.ann, SUBJECTS[:-1]

    async def leased() -> bool:  # a worker files leases some seconds behind
        simulation = await office.api.post("/v1/access/simulate", {"app": "sync", "permits": {"use": None}})
        return simulation["lost"] == len(SUBJECTS)

    await eventually(leased)
    await ann.follows("use")
    await ann.fills("For the subjects", "\n".join(kept))
    await ann.presses("Show what it reaches")
    await ann.reads("frank at crm")
    await office.looks_at(ann, "what would be lost")
    await ann.presses("Save the permit")
    await ann.reads("The permit is saved, and holds from now on.")
    assert (await office.api.get("/v1/apps/sync/permits/use"))["subjects"] == list(kept)
    refusals = [await office.refusal(subject) for subject in ("frank", "alice")]
    assert refusals == ["not_found", ""], refusals


@task(18, "who may, by method and path")
async def who_may(office: Office) -> None:
    ann = office.ann
    await ann.menu("Connections", "Connections")
    await ann.fills("Subject, label or id", "alice")
    await ann.filters("Filter")
    await ann.follows("alice")
    await ann.follows("Who may use it")
    await ann.fills("App", "sync")
    await ann.chooses("Action", "proxy")
    await ann.fills("Method, of a call", "DELETE")
    await ann.fills("Its path", "/contacts/7")
    await ann.filters("Explain")
    await ann.reads("The permits refuse it")
    asked = f"/v1/access/explain?app=sync&connection={(await office.connection('alice'))['id']}"
    call = "&action=proxy&method=DELETE&path=/contacts/7"
    assert not (await office.api.get(asked + call))["allowed"]
    assert (await office.api.get(asked))["allowed"]


@task(19, "an agent, with its permit and key")
async def an_agent(office: Office) -> None:
    ann, ends = office.ann, datetime.now(UTC) + timedelta(days=30)
    await ann.menu("Access", "Agents")
    await ann.follows("Make an agent")
    await ann.fills("Name", "support")
    await ann.fills("What it is for", "answers support mails")
    await ann.fills("Ends at, in UTC", f"{ends:%Y-%m-%dT%H:%M}")
    await office.looks_at(ann, "its form")
    await ann.presses("Make the agent")
    await ann.reads("It is an agent now.")
    await ann.follows("Give a permit")
    await ann.fills("Name", "calls")
    await ann.ticks("proxy: send requests")
    await ann.chooses("Of the integration", "crm")
    await ann.fills("Methods", "GET POST")
    await ann.ticks("A person approves each of these calls")
    await ann.presses("Show what it reaches")
    await ann.presses("Save the permit")
    office.kept["support"] = await make_key(ann, office, "its key")
    agent = await office.api.get("/v1/agents/support")
    assert (agent["active"], agent["purpose"]) == (True, "answers support mails")
    assert agent["sponsor"].startswith("person:psn_"), "who makes it answers for it"
    assert (await office.api.get("/v1/apps/support/permits/calls"))["call_approval"]


@task(20, "one call of the agent is approved")
async def a_call(office: Office) -> None:
    ann, connection = office.ann, await office.connection("alice")
    called = {"method": "POST", "url": f"{office.issuer.issuer}/me", "body": "refund order 7"}
    asked = {"connection_id": connection["id"], **called, "reason": "order 7 came broken"}
    async with EvergrantApi(office.platform.api, office.kept["support"]) as agent:
        approval = await agent.post("/v1/call-approvals", asked)
        await ann.menu("Overview")
        await ann.follows("call of an agent waits")
        await ann.follows("support")
        await ann.reads("refund order 7")
        await office.looks_at(ann, "exactly this")
        await ann.fills("A word for the agent", "once")
        await ann.presses("Approve this one call")
        await ann.reads("approved")
        assert (await agent.get(f"/v1/call-approvals/{approval['id']}"))["state"] == "approved"


@task(21, "the agent is stopped")
async def an_end(office: Office) -> None:
    ann = office.ann
    await ann.menu("Access", "Agents")
    await ann.follows("Stop")
    await ann.fills("Reason, for the audit log", "the project is over")
    await ann.presses("Stop the agent")
    await ann.waits_for("disabled")

    async def finished() -> bool:
        return (await office.api.get("/v1/agents/support/stop"))["finished_at"] is not None

    await eventually(finished)
    await ann.page.reload()
    assert not (await office.api.get("/v1/agents/support"))["active"]
    async with EvergrantApi(office.platform.api, office.kept["support"]) as agent:
        with refused("app_disabled"):
            await agent.get("/v1/connections")


@task(22, "a delegation rule, of a trusted issuer")
async def a_rule(office: Office) -> None:
    ann = office.ann
    await ann.menu("Access", "Delegation")
    await ann.follows("Trust an issuer")
    await ann.fills("Name", "corp")
    await ann.fills("Issuer", office.issuer.issuer)
    await ann.presses("Trust it")
    await ann.follows("Make a rule")
    await ann.fills("Name", "portal")
    await ann.chooses("Trusted issuer", "corp")
    await ann.fills("With exactly this audience", "portal-client")
    await ann.fills("These apps, for every person", "sync")
    await office.looks_at(ann, "its form")
    await ann.presses("Make the rule")
    await ann.reads("portal-client")
    rule = await office.api.get("/v1/delegation-rules/portal")
    assert (rule["audience"], rule["actors"]) == ("portal-client", ["sync"])


@task(23, "a gateway client is let in, and ended")
async def a_client(office: Office) -> None:
    ann, url = office.ann, f"{office.platform.gateway}/mcp"
    await ann.menu("Access", "Clients")
    await ann.follows("Let clients act as an app")
    await ann.fills("App", "sync")
    await ann.chooses("People log in at the issuer of the integration", "staff")
    await ann.presses("Save")
    await ann.reads(url)

    async def lets_in(address: str) -> None:
        sam = await office.somebody("sam")
        await sam.page.goto(address)
        await sam.goes_through_issuer(until="button[value=allow]")
        await sam.page.get_by_role("button", name="Allow", exact=True).click()
        await sam.page.get_by_text("Done").wait_for()

    async with stock_client(url, AgentFile(), lets_in) as client:
        assert (await client.list_tools()).tools
    await ann.follows("What people authorized")
    await ann.reads("sam")
    await office.looks_at(ann, "what people authorized")
    await ann.follows(re.compile("^End what sam authorized"))
    await ann.presses("End it")
    await ann.reads("The authorization has ended, with its access tokens.")
    (family,) = (await office.api.get("/v1/token-families"))["items"]
    assert (family["subject"], family["live"]) == ("sam", False)


@task(24, "a group gets a role, and a session is ended")
async def people(office: Office) -> None:
    ann = office.ann
    await ann.menu("Access", "People")
    await ann.follows("Change where they log in")
    await ann.fills("Groups that read the stories of connections", "support")
    await office.looks_at(ann, "roles by group")
    await ann.presses("Save")
    await ann.logs_in()  # a change ends the sessions of all people, as its page says
    assert (await office.api.get("/v1/admin-login"))["roles"]["story_reader"] == ["support"]
    eve = await office.somebody(AUDITOR)
    await eve.logs_in()
    await ann.menu("Access", "People")
    await ann.follows(re.compile(f"of {AUDITOR}"))
    await ann.presses("End the session")
    await ann.reads("The session has ended. Requests with it are refused at once.")
    live = [session["sub"] for session in (await office.api.get("/v1/sessions"))["items"] if session["live"]]
    assert live == [ann.name]
    await eve.page.reload()
    await eve.page.get_by_label("API key").wait_for()
