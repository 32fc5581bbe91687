"""Receivers of a provider's events: configured by an admin; and what an app sees of what they hear."""

from typing import Any

import pytest

from evergrant_server.audit.provider_reports import apply_provider_report
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_events import (
    Certainty,
    ProviderReport,
    ReportDecision,
    ReportSource,
)
from tests.fakes.api import Api
from tests.fakes.events.security_events import PUT, TRANSMITTER, push, state, unix, world
from tests.fakes.events.transmitter import ISSUER


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "set", "issuer": ISSUER}, "jwks_uri"),
        ({"kind": "set", "jwks_uri": "https://a.example/keys"}, "issuer"),
        (PUT | {"jwks_uri": "http://127.0.0.1:1/keys"}, "jwks_uri"),
        (PUT | {"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        (PUT | {"secret": "s"}, "secret"),
        ({"kind": "slack"}, "secret"),
        ({"kind": "slack", "secret": ""}, "secret"),
        ({"kind": "slack", "secret": "s"}, "secret"),
        ({"kind": "github", "secret": "x" * 15}, "secret"),
        ({"kind": "slack", "secret": "\ud800"}, "secret"),
        ({"kind": "slack", "secret": "a\0b"}, "secret"),
        ({"kind": "slack", "secret": "s", "issuer": ISSUER}, "issuer"),
        ({"kind": "zoom", "secret": "s", "account_in": "a b"}, "account_in"),
    ],
)
async def test_a_receiver_that_could_not_work_is_refused(api: Api, body: dict[str, Any], field: str):
    key = await api.app_for("admin", Action.ADMIN)
    answer = await api.call("PUT", "/v1/integrations/crm/security-events", key, json=body)
    assert answer.status_code == 400
    assert answer.json()["field"] == field


async def test_the_secret_of_a_hook_is_never_shown(api: Api):
    """What it signs is believed: see Slack's in tests/security/test_provider_events.py."""
    key = await api.app_with("admin", Action.ADMIN)
    await api.integration()
    body = {"kind": "zoom", "secret": "hush-hush-hook-1"}
    made = await api.call("PUT", "/v1/integrations/crm/security-events", key, json=body)
    assert (made.status_code, made.json()["has_secret"]) == (201, True)
    shown = await api.get("/v1/integrations/crm/security-events", key)
    assert "hush" not in made.text + shown.text


async def test_a_short_signing_secret_is_refused_with_the_reason(api: Api):
    """One signed event suffices to guess it; a change of the receiver is refused as its creation is."""
    key, path = await api.app_with("admin", Action.ADMIN), "/v1/integrations/crm/security-events"
    await api.integration()
    assert (await api.call("PUT", path, key, json={"kind": "zoom", "secret": "x" * 16})).status_code == 201
    for short in ("", "s", "x" * 15):
        answer = await api.call("PUT", path, key, json={"kind": "zoom", "secret": short})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert "at least 16 characters" in answer.json()["detail"]
        assert "guess" in answer.json()["detail"]
    kept = await api.call("PUT", path, key, json={"kind": "zoom"})
    assert (kept.status_code, kept.json()["has_secret"]) == (200, True)


async def test_a_deleted_receiver_hears_nothing(api: Api):
    connection, path, key = await world(api)
    assert (await api.call("DELETE", "/v1/integrations/crm/security-events", key)).status_code == 204
    assert (await push(api, path, TRANSMITTER.token(unix(api)))).status_code == 404
    assert await state(api, connection) is LifecycleState.ACTIVE


# --- revoked elsewhere, as an app sees it -----------------------------------------------------

PROVIDER = RequestContext(by="provider:gitlab")


async def heard(api: Api, connection: Connection) -> ReportDecision:
    told = ProviderReport(source=ReportSource.HOOK, kind="uninstalled", certainty=Certainty.ENDED)
    async with api.store.write() as tx:
        current = await tx.connections.get(connection.tenant, connection.id)
        assert current is not None
        return await apply_provider_report(tx, current, told, PROVIDER, api.clock.now())


async def test_its_workflow_is_told_and_the_log_says_who_told_us(api: Api):
    connection = await api.active(await api.integration())
    assert await heard(api, connection) is ReportDecision.ENDED
    assert await heard(api, connection) is ReportDecision.NOTHING_HELD, "a report twice is one revocation"
    (record,) = await api.records(of=connection.id)
    assert record.action is AuditAction.REVOKED_AT_PROVIDER
    assert (record.detail["source"], record.detail["kind"]) == ("hook", "uninstalled")
    assert record.detail["reason"] == ErrorCode.GRANT_REVOKED_ELSEWHERE
    assert len(await api.outbox()) == 1


@pytest.mark.parametrize("reason", [ErrorCode.GRANT_REJECTED, ErrorCode.OUTCOME_UNKNOWN])
async def test_a_token_that_was_still_served_is_served_no_more(api: Api, reason: ErrorCode):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await api.change(connection, lambda it: it.rejected(reason, api.clock.now()))
    assert (await api.lease(key)).status_code == 200
    await heard(api, connection)
    assert (await api.lease(key)).json()["code"] == "consent_required"
