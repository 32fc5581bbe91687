"""A provider's words in a callback are for the admin; the subject reads whom to ask, with a reference."""

import html
import re
from typing import Any

import pytest
from sqlalchemy import update

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import reference_of
from evergrant_server.core.provider_words import REDACTED
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.rows import columns_equal
from tests.fakes.api import Api
from tests.security.pages.test_callback import ISSUER, Started, started

_REFERENCE = re.compile(r"Reference: <code>([0-9a-z-]+)</code>")
SAID = "Your <b>plan</b> has no API, ann@example.org"
CLEAN = f"Your <b>plan</b> has no API, {REDACTED}"
REFUSED = {"code": None, "error": "unauthorized_client", "error_description": SAID}


async def shown(it: Started, **params: Any) -> str:
    """The page at the end of a callback."""
    return (await it.visitor.follow(await it.visitor.come_back(**params))).text


async def looked_up(api: Api, page: str, key: str) -> dict[str, Any]:
    """What the reference on a page leads to."""
    found = _REFERENCE.search(page)
    assert found is not None, page
    for given in (found.group(1), found.group(1).upper().replace("-", " ")):
        (connection,) = (await api.get("/v1/connections", key, params={"reference": given})).json()["items"]
    if connection["provider_said"] is not None:
        assert connection["provider_said"]["reference"] == found.group(1)
    return connection


@pytest.mark.parametrize(
    "iss", [ISSUER, None], ids=["with its issuer", "without one, though it is announced"]
)
async def test_a_refused_callback_leads_the_admin_to_what_the_provider_said(api: Api, iss: str | None):
    it = await started(api)
    admin = await api.app_with("boss", Action.ADMIN)
    page = await shown(it, **REFUSED, iss=iss)
    connection = await looked_up(api, page, admin)
    assert connection["id"] == it.connection_id
    said = connection["provider_said"]
    assert (said["error"], said["description"]) == ("unauthorized_client", CLEAN)
    assert said["unauthenticated"] is (iss is None)
    (record,) = await it.records(AuditAction.CONSENT_FAILED if iss else AuditAction.CALLBACK_REFUSED)
    assert record.detail["provider_said"]["description"] == CLEAN
    assert record.detail["consent_id"] == (await it.consent()).id
    assert connection == {
        **(await api.get(f"/v1/connections/{it.connection_id}", admin)).json(),
        **{name: connection[name] for name in ("next_action", "next_at", "device", "failed_consent")},
    }


@pytest.mark.parametrize("iss", [ISSUER, None])
async def test_the_subject_and_an_app_do_not_read_it(api: Api, iss: str | None):
    it = await started(api)
    page = await shown(it, **REFUSED, iss=iss)
    assert "plan" not in page
    assert html.escape(SAID) not in page
    app = await api.app_with("reader", Action.TOKEN, Action.CONNECT)
    assert (await looked_up(api, page, app))["provider_said"] is None
    text = (await api.get(f"/v1/connections/{it.connection_id}", app)).text
    text += (await api.get(f"/v1/connections/{it.connection_id}/audit", app)).text
    assert "plan" not in text


async def test_what_a_callback_brings_is_not_quoted(api: Api):
    it = await started(api)
    state = it.visitor.sent["state"]
    words = {"error": "server_error", "error_description": f"no {state} open sesame"}
    await shown(it, code=None, **words, x="open sesame")
    (record,) = await it.records(AuditAction.CALLBACK_REFUSED)
    assert record.detail["provider_said"]["description"] == f"no {REDACTED} {REDACTED}"


async def test_another_browser_puts_no_words_into_the_log(api: Api):
    """The state is known and the sender isn't: what is said could be anyone's."""
    it = await started(api)
    path = f"{it.visitor.sent['redirect_uri']}?state={it.visitor.sent['state']}"
    await api.browser().get(f"{path}&error=server_error&error_description=call+me")
    (record,) = await it.records(AuditAction.CALLBACK_REFUSED)
    assert "provider_said" not in record.detail


async def test_a_row_that_is_not_evergrants_is_no_reference_of_nothing(api: Api):
    it = await started(api)
    admin = await api.app_with("boss", Action.ADMIN)
    consent = await it.consent()
    async with api.worker.write() as tx:
        mine = columns_equal(ConnectionRow, tenant=consent.tenant, id=it.connection_id)
        await tx.connection.execute(update(ConnectionRow).where(mine).values(subject="user-2"))
    answer = await api.get("/v1/connections", admin, params={"reference": reference_of(consent.id)})
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")


@pytest.mark.parametrize(("name", "value"), [("state", "active"), ("subject", "user-2"), ("cursor", "x")])
async def test_a_reference_has_no_filter_beside_it(api: Api, name: str, value: str):
    admin = await api.app_with("boss", Action.ADMIN)
    asked = {"reference": "00000-00000", name: value}
    answer = await api.get("/v1/connections", admin, params=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert name in answer.text


@pytest.mark.parametrize("reference", ["", "00000-00000", "%", "x", "_________", "a" * 32])
async def test_a_reference_of_no_consent_finds_nothing(api: Api, reference: str):
    await started(api)
    admin = await api.app_with("boss", Action.ADMIN)
    answer = await api.get("/v1/connections", admin, params={"reference": reference})
    assert answer.json()["items"] == []
