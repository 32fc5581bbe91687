"""Connect links: each request for one is answered with a link that works and has the right scopes."""

import asyncio
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentStatus, reference_of
from evergrant_server.core.errors import FAILURES, ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_words import ProviderWords
from tests.fakes.api import TENANT, Api
from tests.fakes.patience import eventually
from tests.fakes.visitor import Visitor, consent_of
from tests.security.pages.test_callback import ISSUER, an_integration

NEW = {"integration": "crm", "subject": "user-1"}
RETURN = "https://app.example/done"


async def an_app(api: Api) -> str:
    await an_integration(api)
    return await api.app_with("asker", Action.TOKEN, Action.CONNECT, return_to=(RETURN,))


async def links(api: Api, key: str, **asked: object) -> tuple[str, str]:
    """Those of a connection's creation, and of a lease; a second later than the last ones."""
    api.clock.advance(1)
    made = await api.post("/v1/connections", key, NEW | asked)
    leased = await api.lease(key, **{name: it for name, it in asked.items() if name == "scopes"})
    return made.json()["connect_url"], leased.json()["connect_url"]


async def scopes_of(api: Api, url: str) -> tuple[str, ...]:
    return (await consent_of(api, url)).scopes


async def worker_finishes(api: Api, url: str) -> None:
    received = await eventually(
        lambda: consent_of(api, url), lambda it: it.status is ConsentStatus.CODE_RECEIVED
    )
    async with api.worker.write() as tx:
        done = received.model_copy(update={"status": ConsentStatus.DONE})
        await tx.consents.replace(done, expected=received.revision)


async def the_row(api: Api) -> Connection:
    async with api.worker.read() as tx:
        found = await tx.connections.by_names(TENANT, "crm", "user-1")
    assert found is not None
    return found


async def test_a_link_that_a_browser_has_begun_is_not_given_again(api: Api):
    """Another browser could do nothing with it; the first one goes on with it."""
    key = await an_app(api)
    first, leased = await links(api, key)
    assert leased == first
    begun = Visitor(api)
    await begun.go_on(first)
    api.clock.advance(1)
    polled = {(await api.lease(key)).json()["connect_url"] for _ in range(3)}
    (second,) = polled
    assert second != first
    assert (await api.post("/v1/connections", key, NEW)).json()["connect_url"] == second
    assert "Taking you to" in (await Visitor(api).go_on(second)).text
    back, _ = await asyncio.gather(begun.come_back(iss=ISSUER), worker_finishes(api, first))
    assert back.status_code == 303, "the first browser isn't disturbed"


async def test_a_link_is_there_at_every_moment_of_a_pending_connection_and_lasts(api: Api):
    """Also in the minute in which the workflow would end it, and after that minute if no worker is there."""
    key = await an_app(api)
    first, _ = await links(api, key)
    ttl = api.parts.settings.consent_ttl
    for seconds in (ttl.total_seconds() * 0.6, ttl.total_seconds() * 0.5, 3 * ttl.total_seconds()):
        api.clock.advance(seconds)
        answer = await api.lease(key)
        assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
        url = answer.json()["connect_url"]
        assert url != first, "with less than half of its time left, or none"
        assert (await api.post("/v1/connections", key, NEW)).json()["connect_url"] == url
        consent, row = await consent_of(api, url), await the_row(api)
        assert consent.expires_at == row.consent_deadline == api.clock.now() + ttl
        assert "Taking you to" in (await Visitor(api).go_on(url)).text
        first = url
    assert len({it.object for it in await api.records(AuditAction.CONNECTION_CREATED)}) == 1


async def test_a_pending_connection_can_be_asked_for_again_after_its_deadline(api: Api):
    key = await an_app(api)
    made = (await api.post("/v1/connections", key, NEW)).json()
    api.clock.advance(3700)
    again = await api.post(f"/v1/connections/{made['id']}/reauthorize", key)
    assert again.status_code == 200, again.text
    assert (await the_row(api)).consent_deadline == api.clock.now() + timedelta(hours=1)
    assert "Taking you to" in (await Visitor(api).go_on(again.json()["connect_url"])).text


async def test_other_scopes_reach_a_pending_connection(api: Api):
    """A wrong scope may be what the provider refuses: it is asked for no more."""
    key = await an_app(api)
    wrong, _ = await links(api, key, scopes=["reed", "write"])
    url, leased = await links(api, key, scopes=["read"])
    assert url == leased != wrong
    assert await scopes_of(api, url) == (await the_row(api)).requested_scopes == ("read",)
    assert "scope=read&" in (await sent_to(api, url))
    api.clock.advance(1)
    by_lease = (await api.lease(key, scopes=["write"])).json()["connect_url"]
    assert await scopes_of(api, by_lease) == (await the_row(api)).requested_scopes == ("write",)
    wide, _ = await links(api, key, scopes=["read", "write"])
    assert (await api.lease(key, scopes=["read"])).json()["connect_url"] == wide, "which grants that as well"
    assert (await the_row(api)).requested_scopes == ("read", "write")
    assert (await links(api, key)) == (wide, wide), "without scopes it is what was asked for last"


async def sent_to(api: Api, url: str) -> str:
    visitor = Visitor(api)
    await visitor.go_on(url)
    return visitor.provider_url + "&"


async def test_default_scopes_that_an_admin_corrects_reach_a_pending_connection(api: Api, admin: str):
    key = await an_app(api)
    wrong, _ = await links(api, key)
    assert await scopes_of(api, wrong) == ("read_user",)
    async with api.worker.write() as tx:
        found = await tx.integrations.by_name(TENANT, "crm")
        assert found is not None
        corrected = found.model_copy(update={"default_scopes": ("read", "offline")})
        await tx.integrations.replace(corrected, expected=found.revision)
    api.clock.advance(1)
    url = (await api.lease(key)).json()["connect_url"]
    assert await scopes_of(api, url) == (await the_row(api)).requested_scopes == ("read", "offline")
    assert await links(api, key) == (url, url)
    explicit, _ = await links(api, key, scopes=["read"])
    assert await links(api, key) == (explicit, explicit), "the app's own word outlasts the defaults"


async def test_what_the_subject_has_granted_is_awaited_and_not_asked_for_again(api: Api):
    """The app leases as soon as the browser is back, while a worker exchanges the code."""
    key = await an_app(api)
    first, _ = await links(api, key)
    visitor = Visitor(api)
    await visitor.go_on(first)
    consent = await consent_of(api, first)
    async with api.worker.write() as tx:
        received = consent.model_copy(update={"status": ConsentStatus.CODE_RECEIVED})
        received = await tx.consents.replace(received, expected=consent.revision)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (503, "refresh_pending")
    assert answer.headers["retry-after"] == "1"
    async with api.worker.write() as tx:
        failed = received.model_copy(update={"status": ConsentStatus.FAILED})
        await tx.consents.replace(failed, expected=received.revision)
    assert (await api.lease(key)).json()["connect_url"] not in (None, first)


async def test_after_a_declined_consent_no_link_leads_to_the_connection_that_ends(api: Api):
    key = await an_app(api)
    first, _ = await links(api, key)
    visitor = Visitor(api)
    await visitor.go_on(first)
    api.clock.advance(5)  # the person has read the provider's page
    await visitor.come_back(code=None, error="access_denied", iss=ISSUER)
    for answer in (await api.post("/v1/connections", key, NEW), await api.lease(key)):
        assert (answer.status_code, answer.json()["code"]) == (503, "refresh_pending"), answer.text
        assert answer.headers["retry-after"] == "1"
    row = await the_row(api)
    await api.change(row, lambda it: it.consent_denied(api.clock.now()))
    assert (await api.lease(key)).json()["code"] == "consent_denied"
    anew = await api.post("/v1/connections", key, NEW)
    assert anew.status_code == 201
    assert ConnectionId(anew.json()["id"]) != row.id
    assert "Taking you to" in (await Visitor(api).go_on(anew.json()["connect_url"])).text


async def test_an_app_is_told_that_the_newest_consent_has_failed(api: Api):
    """Nothing else tells a program that waits for it: the connection stays as it was."""
    key = await an_app(api)
    first, _ = await links(api, key)
    path = f"/v1/connections/{(await the_row(api)).id}"
    assert (await api.get(path, key)).json()["failed_consent"] is None
    async with api.worker.write() as tx:
        consent = await consent_of(api, first)
        ended = {"status": ConsentStatus.FAILED, "failure": ErrorCode.CLIENT_REJECTED}
        await tx.consents.replace(consent.model_copy(update=ended), expected=consent.revision)
    failed = (await api.get(path, key)).json()["failed_consent"]
    assert (failed["code"], failed["kind"]) == ("client_rejected", "ClientMisconfigured")
    assert failed["repairer"] == "integration_admin"
    assert failed["reference"] == reference_of(consent.id)
    said = {"consent": consent.id, **ProviderWords(error="invalid_scope").as_detail()}
    context = RequestContext(by="worker")
    refused = AuditEntry(
        tenant=TENANT,
        at=api.clock.now(),
        action=AuditAction.CONSENT_FAILED,
        object=consent.connection_id,
        context=context,
        detail=said,
    )
    async with api.worker.write() as tx:
        await audit.append(tx, refused)
    assert failed["repair"] == FAILURES[ErrorCode.CLIENT_REJECTED].repair
    exact = (await api.get(path, key)).json()
    assert "default scopes" in exact["failed_consent"]["repair"], "of what the provider said"
    assert exact["provider_said"] is None, "its words are an admin's"
    await links(api, key)
    assert (await api.get(path, key)).json()["failed_consent"] is None, "a new link is open"


async def test_scopes_that_the_provider_did_not_grant_are_named(api: Api):
    key = await an_app(api)
    await links(api, key, scopes=["read_user", "write", "openid"])
    row = await the_row(api)
    await api.install(row, "at-1", scopes=("read_user",))
    assert (await api.get(f"/v1/connections/{row.id}", key)).json()["missing_scopes"] == ["write"]
