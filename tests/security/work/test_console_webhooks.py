"""Webhooks in the console: made and changed by a form, a secret shown once, what failed is sent again."""

import re
from datetime import timedelta

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.events import EventType
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.webhooks import Delivery, DeliveryProblem, DeliveryStatus, Webhook
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.people import ORIGIN

NEW, HOOK = "/console/new/webhook", "/console/webhooks/crm-events"
URL = "https://hooks.example.com/in?token=canary-in-the-url"
FILLED = {"name": "crm-events", "url": URL, "events": "connection.failing"}
SECRET = re.compile(r'value="(whsec_[\w+/=]+)"')
ACTS = (NEW, *(f"{HOOK}/{act}" for act in ("edit", "rotate-secret", "test", "replay-failed", "delete")))


async def an_admin(api: Api) -> ConsoleBrowser:
    return await at_console(api, await api.app_with("boss", Action.ADMIN))


async def a_webhook(api: Api) -> ConsoleBrowser:
    browser = await an_admin(api)
    assert (await browser.send(NEW, **FILLED)).status_code == 200
    return browser


async def stored(api: Api) -> Webhook:
    async with api.worker.read() as tx:
        webhook = await tx.webhooks.by_name(TENANT, "crm-events")
    assert webhook is not None
    return webhook


async def deliveries(api: Api, status: DeliveryStatus | None = None) -> list[Delivery]:
    webhook = await stored(api)
    async with api.worker.read() as tx:
        return await tx.deliveries.page(TENANT, webhook.id, status=status)


async def give_up(api: Api) -> None:
    """What a worker writes after the last try of each delivery, and of the endpoint's failure."""
    now, webhook = api.clock.now(), await stored(api)
    async with api.worker.write() as tx:
        await tx.webhooks.replace(webhook.failed(now, None, timedelta(days=5)), expected=webhook.revision)
        for delivery in await tx.deliveries.page(TENANT, webhook.id):
            over = delivery.failed(503, DeliveryProblem.REFUSED, now).__replace__(
                status=DeliveryStatus.FAILED, next_at=None, ended_at=now
            )
            await tx.deliveries.replace(over, expected=delivery.revision)


def once_on(page: str) -> str:
    once = re.search(r'name="once" value="([\w-]{43})"', page)
    assert once is not None
    return once[1]


async def test_a_webhook_is_made_and_its_secret_is_shown_in_one_answer(api: Api):
    browser = await an_admin(api)
    assert 'value="connection.failing" checked' in await browser.page(NEW)
    made = await browser.send(NEW, **FILLED)
    (secret,) = SECRET.findall(made.text)
    webhook = await stored(api)
    assert webhook.events == (EventType.FAILING,)
    async with api.worker.read() as tx:
        assert [key.reveal() for key in await tx.webhooks.signing_secrets(webhook, api.clock.now())] == [
            secret
        ]
        assert (await tx.webhooks.whole_url(webhook)).reveal() == URL
    again = await browser.send(NEW, **FILLED)
    assert (again.status_code, "There is a webhook of this name." in again.text) == (409, True)
    shown = "".join([await browser.page(path) for path in (HOOK, f"{HOOK}/edit", "/console/webhooks")])
    for hidden in (secret, "canary-in-the-url"):
        assert hidden not in shown
    (record,) = await api.records(AuditAction.WEBHOOK_PUT)
    assert record.context.by == "app:boss"


@pytest.mark.parametrize(
    ("field", "typed", "problem"),
    [
        ("name", "Not A Name", "lower-case letters"),
        ("url", "", "needs a host"),
        ("url", "ftp://hooks.example.com", "http"),
        ("events", "", "at least 1"),
        ("events", "no.such", "use "),
        ("integration", "Not A Name", ""),
    ],
)
async def test_a_refused_form_comes_back_filled_with_the_problem_at_its_field(
    api: Api, field: str, typed: str, problem: str
):
    browser = await an_admin(api)
    filled = {**FILLED, "integration": "crm", field: typed}
    answer = await browser.send(NEW, **filled)
    assert answer.status_code == 400
    problem_text = re.search(rf'<p class="problem" id="{field}-problem">([^<]+)</p>', answer.text)
    assert problem_text is not None
    assert problem in problem_text[1]
    (marked,) = re.findall(r"<input[^>]*aria-invalid=[^>]*>", answer.text)
    assert f'name="{field}"' in marked
    assert f'aria-describedby="{field}-problem' in marked
    assert "autofocus" in marked
    assert 'value="crm' in answer.text
    async with api.worker.read() as tx:
        assert await tx.webhooks.page(TENANT) == []


async def test_it_is_changed_and_the_sealed_part_of_its_url_stays(api: Api):
    browser = await a_webhook(api)
    page = await browser.page(f"{HOOK}/edit")
    (url,) = re.findall(r'name="url" value="([^"]+)"', page)
    assert url == "https://hooks.example.com/in?***"
    answer = await browser.send(f"{HOOK}/edit", url=url, events="connection.revoked", disabled="yes")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{HOOK}?done=changed")
    webhook = await stored(api)
    assert (webhook.events, webhook.disabled) == ((EventType.REVOKED,), True)
    async with api.worker.read() as tx:
        assert (await tx.webhooks.whole_url(webhook)).reveal() == URL
    assert (await browser.send("/console/webhooks/absent/edit", **FILLED)).status_code == 404


async def test_the_secret_is_replaced_once_by_each_form_with_both_signing(api: Api):
    browser = await a_webhook(api)
    once = once_on(await browser.page(f"{HOOK}/rotate-secret"))
    for hours in ("x", "-1", "100000", "9999"):
        refused = await browser.send(f"{HOOK}/rotate-secret", once=once, overlap=hours)
        assert (refused.status_code, 'id="overlap-problem"' in refused.text) == (400, True)
    made = await browser.send(f"{HOOK}/rotate-secret", once=once, overlap="2")
    (secret,) = SECRET.findall(made.text)
    webhook = await stored(api)
    assert webhook.previous_secret_until == api.clock.now() + timedelta(hours=2)
    again = await browser.send(f"{HOOK}/rotate-secret", once=once, overlap="2")
    assert (again.status_code, secret in again.text) == (409, False)
    assert (await stored(api)).revision == webhook.revision
    assert "the previous one signs too" in await browser.page(HOOK)


async def test_what_was_given_up_says_why_and_is_sent_again(api: Api):
    browser = await a_webhook(api)
    for _ in range(3):
        answer = await browser.send(f"{HOOK}/test")
        assert answer.headers["location"] == f"{HOOK}?done=test"
    assert "Send now" not in await browser.page(HOOK), "nothing was tried yet"
    async with api.worker.write() as tx:
        (first, *_) = await tx.deliveries.page(TENANT, (await stored(api)).id)
        failed = first.failed(503, DeliveryProblem.REFUSED, api.clock.now())
        await tx.deliveries.replace(failed, expected=first.revision)
    assert (await browser.page(HOOK)).count("Send now: ") == 1, "what waits for its next try needn't wait"
    await give_up(api)
    for path in ("/console/webhooks", HOOK):
        page = await browser.page(path)
        assert re.search(r"fails.*since.*refused, HTTP 503", page, re.DOTALL), path
    (delivery, *_) = await deliveries(api)
    answer = await browser.send(f"{HOOK}/deliveries/{delivery.id}/replay")
    assert answer.headers["location"] == f"{HOOK}?done=replayed"
    assert len(await deliveries(api, DeliveryStatus.FAILED)) == 2
    assert "Send all 2 again" in await browser.page(f"{HOOK}?status=failed")
    await browser.send(f"{HOOK}/replay-failed")
    assert await deliveries(api, DeliveryStatus.FAILED) == []
    for waiting in await deliveries(api):
        assert (waiting.by_hand, waiting.tries, waiting.next_at) == (True, 0, api.clock.now())
    assert [
        record.detail.get("deliveries") for record in await api.records(AuditAction.DELIVERY_REPLAYED)
    ] == [
        None,
        2,
    ]
    assert (await browser.browser.get(f"{HOOK}?status=flying")).status_code == 400


async def test_it_is_deleted_by_its_name_with_counts(api: Api):
    browser = await a_webhook(api)
    await browser.send(f"{HOOK}/test")
    page = await browser.page(f"{HOOK}/delete")
    assert "<li>1 delivery is on its way" in page
    refused = await browser.send(f"{HOOK}/delete", confirm="crm-event")
    assert (refused.status_code, 'id="confirm-problem"' in refused.text) == (400, True)
    await stored(api)
    answer = await browser.send(f"{HOOK}/delete", confirm="crm-events")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/webhooks?done=deleted")
    assert "deleted, with its log" in await browser.page(answer.headers["location"])


@pytest.mark.parametrize("path", ACTS)
async def test_an_auditor_and_another_sites_form_change_nothing(api: Api, path: str):
    browser = await a_webhook(api)
    before = await stored(api)
    filled = {**FILLED, "confirm": "crm-events", "once": "x" * 43}
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    assert "/console/new/webhook" not in await auditor.page("/console/webhooks")
    assert "<form method" not in (await auditor.page(HOOK)).partition("<main")[2]
    assert (await auditor.send(path, **filled)).status_code == 403
    stranger = await browser.browser.post(path, data={**filled, "csrf": "0" * 64}, headers={"Origin": ORIGIN})
    assert stranger.status_code == 400
    token = await browser.csrf("/console/webhooks")
    elsewhere = {"Origin": "https://evil.example"}
    answer = await browser.browser.post(path, data={**filled, "csrf": token}, headers=elsewhere)
    assert answer.status_code == 403
    assert (await stored(api), await deliveries(api)) == (before, [])


async def test_an_old_login_is_led_to_a_new_one_and_back_to_the_form(api: Api):
    await a_webhook(api)
    person = await person_at_console(api, PersonRole.TENANT_ADMIN)
    api.clock.advance(360)
    assert "This takes a login of the last five minutes" in await person.page(f"{HOOK}/edit")
    assert person.browser.cookies["evergrant-page"].strip('"') == f"{HOOK}/edit"
    answer = await person.send(f"{HOOK}/edit", url="https://other.example.com/", events="connection.failing")
    assert (answer.status_code, "step_up_required" in answer.text) == (403, True)
    assert 'href="https://evergrant.test/login' in answer.text
    assert 'value="https://other.example.com/"' in answer.text, "what was typed stays"
