"""Monday: the first integration, an app with its permit, a trial, a webhook, and what is changed of them."""

import re

from standardwebhooks import Webhook

from examples.demo.evergrant_api import EvergrantApi
from tests.e2e.week.office import Office, task
from tests.e2e.week.person import Person
from tests.e2e.world import refused
from tests.fakes.patience import PATIENCE_S

SUBJECTS = ("alice", "carol", "dave", "erin", "frank")


@task(1, "an integration from an issuer's URL")
async def from_an_issuer(office: Office) -> None:
    ann = office.ann
    await ann.menu("Setup", "Integrations")
    await ann.follows("Make an integration")
    await ann.fills("Issuer", office.issuer.issuer)
    await ann.presses("Go on", under="A server with an issuer's URL")
    await ann.fills("Name", "crm")
    await ann.fills("Scopes of new connections, unless their app asks for others", "openid read")
    await ann.chooses("Who confirms that the right person consented", "nobody")
    await office.looks_at(ann, "its form")
    await ann.presses("Make the integration")
    uri = await ann.value_of("With this redirect URI")
    client = await office.issuer.register(uri)
    await ann.follows("give its client id and secret")
    await ann.fills("Client id", client["client_id"])
    await ann.fills("Client secret", client["client_secret"])
    await ann.presses("Change it")
    await ann.reads("The integration is changed.")
    made = await office.api.get("/v1/integrations/crm")
    assert (made["state"], made["client_id"]) == ("ready", client["client_id"])
    assert made["default_scopes"] == ["openid", "read"]


@task(2, "an app, and its key that is shown once")
async def an_app_with_a_key(office: Office) -> None:
    ann = office.ann
    await ann.menu("Access", "Apps")
    await ann.follows("Make an app")
    await ann.fills("Name", "sync")
    await ann.presses("Make the app")
    await ann.reads("The app is made.")
    key = await make_key(ann, office, "its key")
    office.kept["sync"], office.app = key, EvergrantApi(office.platform.api, key)
    (listed,) = (await office.api.get("/v1/apps/sync/keys"))["items"]
    assert listed["live"]


async def make_key(person: Person, office: Office, words: str) -> str:
    """From the page of an app, and back to it."""
    await person.follows("Make a key")
    await person.presses("Make the key")
    key = await person.value_of("API key, shown once")
    await office.looks_at(person, words)
    await person.follows("To the app")
    assert key not in await person.page.content()
    return key


@task(3, "a permit, with what it reaches before it is saved")
async def a_permit(office: Office) -> None:
    ann = office.ann
    await ann.follows("Give a permit")
    await ann.fills("Name", "use")
    await ann.ticks("token: get access tokens")
    await ann.ticks("connect: ask for consents")
    await ann.chooses("Of the integration", "crm")
    await ann.presses("Show what it reaches")
    await ann.reads(re.compile(r"May .* of crm"))
    with refused("not_found"):
        await office.api.get("/v1/apps/sync/permits/use")
    await office.looks_at(ann, "before it is saved")
    await ann.presses("Save the permit")
    await ann.reads("The permit is saved, and holds from now on.")
    permit = await office.api.get("/v1/apps/sync/permits/use")
    assert (set(permit["actions"]), permit["integration"]) == ({"token", "connect"}, "crm")


@task(4, "the integration, tried with one's own account")
async def a_trial(office: Office) -> Person:
    ann = office.ann
    await ann.menu("Setup", "Integrations")
    await ann.follows("crm")
    await ann.follows("Try it")
    await ann.reads(re.compile("no person's role can make one"))
    window = await office.somebody("ann")
    await window.goes_to(ann.page.url)
    await window.logs_in_with(office.kept["sync"])
    await window.fills("Subject", "ann")
    await window.presses("Make the link")
    link = await window.value_of("Connect link, shown once")
    subject = await office.somebody("ann")
    await subject.goes_to(link)
    await subject.goes_through_issuer(until="text=is connected")
    await window.follows("To the connection")
    await window.waits_for(re.compile("^active$"))
    connection = await office.connection("ann")
    assert connection["state"] == "active"
    await window.follows("Revoke")
    await window.fills("Reason, for the audit log", "it was a trial")
    await window.presses("Revoke")
    await office.api.state(connection["id"], "revoked", PATIENCE_S)
    await window.waits_for(re.compile("^revoked$"))
    return window


@task(5, "a webhook, a delivery that fails, and once more")
async def a_webhook(office: Office) -> None:
    ann, receiver = office.ann, office.receiver
    await ann.menu("Setup", "Webhooks")
    await ann.follows("Make a webhook")
    await ann.fills("Name", "ops")
    await ann.fills("URL", receiver.url)
    await ann.presses("Make the webhook")
    secret = await ann.value_of("Signing secret, shown once")
    await ann.follows("To the webhook")
    receiver.answer = 503
    await ann.presses("Send a test event")
    await ann.waits_for("HTTP 503")
    await office.looks_at(ann, "a delivery that fails")
    receiver.answer = 204
    await ann.presses(re.compile("^Send (now|again): "))
    await ann.waits_for("took it")
    (delivery,) = (await office.api.get("/v1/webhooks/ops/deliveries"))["items"]
    assert delivery["status"] == "delivered"
    last = receiver.received[-1]
    Webhook(secret).verify(last.body, last.headers)
    assert {message.id for message in receiver.received} == {last.id}


@task(6, "the integration is changed")
async def a_change(office: Office) -> None:
    ann = office.ann
    await ann.menu("Setup", "Integrations")
    await ann.follows("crm")
    await ann.follows("Change")
    await ann.opens("More: limits, refreshes")
    await ann.fills("Scope ceiling", "openid offline_access read write")
    await ann.presses("Change it")
    await ann.reads("The integration is changed.")
    changed = await office.api.get("/v1/integrations/crm")
    assert changed["scope_ceiling"] == ["openid", "offline_access", "read", "write"]
    assert changed["has_client_secret"], "a secret that is left out stays"


@task(7, "its secret is replaced, two live, and the way back")
async def a_secret(office: Office) -> None:
    ann = office.ann
    for subject in SUBJECTS:
        await office.connects(subject)
        await office.app.lease("crm", subject)
    await ann.follows("Replace its secret")
    await ann.fills("New client secret", "a secret that was mistyped")
    await ann.presses("Use it first")
    await ann.reads("The new one is used first. The previous one is tried too until it ends.")
    generation = (await office.connection("alice"))["generation"]
    await office.refreshes("alice")
    assert (await office.connection("alice"))["generation"] > generation, "the previous one is tried too"
    await ann.waits_for(re.compile("The provider refuses the new one"))
    await office.looks_at(ann, "two are live")
    await ann.follows("Replace its secret")
    await ann.presses("Go back to the previous one")
    await ann.reads("The previous one is the only one again.")
    assert (await office.api.get("/v1/integrations/crm"))["previous_secret_until"] is None
    await office.refreshes("alice")
    assert (await office.connection("alice"))["last_failure"] is None


@task(8, "an integration from the catalogue")
async def from_the_catalogue(office: Office) -> None:
    ann = office.ann
    await ann.menu("Setup", "Catalogue")
    await ann.fills("Name or kind", "zendesk")
    await ann.filters("Search")
    await ann.follows("Zendesk")
    await ann.follows("Make an integration")
    await ann.fills("Name", "helpdesk")
    await ann.fills("Subdomain", "not a subdomain")
    await ann.fills("Client id", "evergrant")
    await ann.fills("Client secret", "hush-hush")
    await ann.presses("Make the integration")
    await office.looks_at(ann, "a refused form")
    assert await ann.value_of("Client id") == "evergrant", "what was typed stays"
    await ann.fills("Subdomain", "acme")
    await ann.fills("Client secret", "hush-hush")
    await ann.presses("Make the integration")
    uri = await ann.value_of("Redirect URI, to register at the provider")
    made = await office.api.get("/v1/integrations/helpdesk")
    assert (made["redirect_uri"], made["params"]) == (uri, {"subdomain": "acme"})
