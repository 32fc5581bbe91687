"""Streams of the audit log in the console: made and changed by a form, a secret shown once, and their end."""

import re
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console

NEW, SIEM = "/console/new/stream", "/console/streams/siem"
URL = "https://siem.example.com/in?token=canary-in-the-url"
FILLED = {"name": "siem", "url": URL, "format": "ocsf", "headers": "Authorization: Splunk canary"}
SECRET = re.compile(r'value="(whsec_[\w+/=]+)"')


async def an_admin(api: Api) -> ConsoleBrowser:
    return await at_console(api, await api.app_with("boss", Action.ADMIN))


async def stored(api: Api) -> dict[str, Any]:
    async with api.worker.read() as tx:
        stream = await tx.audit_streams.by_name(TENANT, "siem")
    assert stream is not None
    return stream.model_dump(mode="json")


async def test_a_stream_is_made_changed_and_deleted_and_its_secret_is_shown_in_one_answer(api: Api):
    browser = await an_admin(api)
    assert NEW in await browser.page("/console/streams")
    made = await browser.send(NEW, **FILLED)
    (secret,) = SECRET.findall(made.text)
    stream = await stored(api)
    assert (stream["format"], stream["header_names"]) == ("ocsf", ["Authorization"])

    form = await browser.page(f"{SIEM}/edit")
    assert ('value="https://siem.example.com/in?***"' in form, "canary" in form) == (True, False)
    assert "those that are stored stay: Authorization." in form
    changed = {"url": "https://siem.example.com/in?***", "format": "cloudevents", "disabled": "yes"}
    answer = await browser.send(f"{SIEM}/edit", **changed)
    assert answer.headers["location"] == "/console/streams?done=changed"
    stream = await stored(api)
    assert (stream["format"], stream["disabled"]) == ("cloudevents", True)
    assert stream["header_names"] == ["Authorization"], "what is left out stays"

    once = re.search(r'name="once" value="([\w-]{43})"', await browser.page(f"{SIEM}/rotate-secret"))
    assert once is not None
    rotated = await browser.send(f"{SIEM}/rotate-secret", once=once[1])
    assert SECRET.findall(rotated.text) not in ([], [secret])
    again = await browser.send(f"{SIEM}/rotate-secret", once=once[1])
    assert (again.status_code, SECRET.findall(again.text)) == (409, [])

    wrong = await browser.send(f"{SIEM}/delete", confirm="ops")
    assert (wrong.status_code, "Type the stream" in wrong.text) == (400, True)
    assert (await browser.send(f"{SIEM}/delete", confirm="siem")).status_code == 303
    assert await api.records(AuditAction.STREAM_DELETED)
    assert secret not in await browser.page("/console/streams")


@pytest.mark.parametrize(
    ("field", "text"),
    [("name", "No Slug"), ("url", "not a URL"), ("headers", "no colon"), ("headers", "Host: other")],
)
async def test_a_refused_form_names_its_field_and_sends_no_header_back(api: Api, field: str, text: str):
    browser = await an_admin(api)
    answer = await browser.send(NEW, **{**FILLED, field: text})
    assert (answer.status_code, f'id="{field}-problem"' in answer.text) == (400, True)
    assert "Splunk canary" not in answer.text
    assert (await browser.send(NEW, **FILLED)).status_code == 200
    taken = await browser.send(NEW, **FILLED)
    assert (taken.status_code, "There is a stream of this name." in taken.text) == (409, True)


async def test_an_auditor_sees_streams_and_changes_none(api: Api):
    browser = await an_admin(api)
    await browser.send(NEW, **FILLED)
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    page = await auditor.page("/console/streams")
    assert ("siem.example.com" in page, f"{SIEM}/edit" in page, NEW in page) == (True, False, False)
    for path in (NEW, f"{SIEM}/edit", f"{SIEM}/rotate-secret", f"{SIEM}/delete"):
        assert (await auditor.browser.get(path)).status_code == 403
        sent = {**FILLED, "confirm": "siem", "once": "o" * 43}
        assert (await auditor.send(path, **sent)).status_code == 403
    assert (await stored(api))["format"] == "ocsf"
