"""What a provider says about a refusal reaches the admin: in the audit log and the log, without a secret."""

import json
import logging
from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentKind, PushedAuthorization
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.provider_words import REDACTED
from tests.fakes.platform.installation import NEVER_ROTATES, STRICT, Installation
from tests.fakes.providers.scripted_provider import Call, echo, raw
from tests.fakes.rows import a_consent, discovered
from tests.faults.support.activities import Activities


def secrets_of(call: Call) -> list[str]:
    return call.secrets.split()


async def said(place: Installation, connection: Connection, action: AuditAction) -> dict[str, Any]:
    """What the newest record of this kind quotes of the provider. No record has a secret of its request."""
    await place.until_audited(connection, action)
    found = (await place.audited(connection, action))[-1].detail["provider_said"]
    (*_, call) = (it for it in place.idp.calls if it.endpoint in ("token", "revoke", "par"))
    assert secrets_of(call)
    for secret in secrets_of(call):
        assert all(secret not in str(it.detail) for it in await place.audited(connection))
    assert found["description"].startswith(f"Not {REDACTED}")
    assert found["description"].endswith("it was revoked")
    assert found["description"].isprintable()
    return found


async def test_a_refused_refresh(place: Installation, caplog: pytest.LogCaptureFixture):
    connection = await place.connect(STRICT)
    place.idp.script(echo("invalid_grant"))
    with caplog.at_level(logging.INFO):
        await place.ensure_fresh(connection, 1)
    found = await said(place, connection, AuditAction.NEEDS_REAUTH)
    assert (found["status"], found["error"]) == (400, "invalid_grant")
    (line,) = (it for it in caplog.messages if it.startswith("provider refused"))
    assert line.endswith("it was revoked")
    (token, *_) = secrets_of(place.idp.calls[-1])
    assert token not in caplog.text


async def test_a_refresh_that_fails_for_another_reason(place: Installation):
    connection = await place.connect(NEVER_ROTATES)
    place.idp.script(echo("server_error", 503))
    await place.ensure_fresh(connection, 1)
    found = await said(place, connection, AuditAction.REFRESH_FAILED)
    assert (found["status"], found["error"]) == (503, "server_error")


async def test_a_refused_code(place: Installation):
    connection = await place.begin()
    place.idp.script(echo("invalid_grant"))
    await place.consent(connection)
    found = await said(place, connection, AuditAction.CONSENT_FAILED)
    assert found["error"] == "invalid_grant"


async def test_a_refused_poll_of_a_device_code(place: Installation):
    idp = place.idp
    endpoints = discovered(idp)["endpoints"]
    endpoints = endpoints.model_copy(update={"device_authorization_endpoint": idp.url("device")})
    connection = await place.begin(await place.integration(endpoints=endpoints), flow=Flow.DEVICE_CODE)
    shown = {"user_code": "A", "verification_uri": idp.url("verify"), "expires_in": 300, "interval": 0}
    idp.script(raw(json.dumps({"device_code": "open-sesame", **shown}).encode()), at="device")
    idp.script(echo("access_denied"))
    consent = await place.unasked(connection, ConsentKind.DEVICE)
    await place.tell_consent(connection, consent)
    found = await said(place, connection, AuditAction.CONSENT_FAILED)
    assert found["error"] == "access_denied"


async def test_a_refused_pushed_request(place: Installation):
    endpoints = discovered(place.idp)["endpoints"]
    pushed_to = {"pushed_authorization_request_endpoint": place.idp.url("par")}
    integration = await place.integration(endpoints=endpoints.model_copy(update=pushed_to))
    connection = await place.begin(integration)
    consent = a_consent(connection, connection.created_at)
    async with place.store.write() as tx:
        await tx.consents.add(consent, None)
        request = PushedAuthorization(fields=(("state", "open-sesame"),))
        started = await tx.consents.replace(consent, expected=1, request=request)
    place.idp.script(echo("invalid_request"), at="par")
    assert (await Activities(place).push(connection, started)).failure is ErrorCode.CLIENT_REJECTED
    found = await said(place, connection, AuditAction.CONSENT_FAILED)
    assert found["error"] == "invalid_request"


async def test_a_refused_client_grant(place: Installation):
    connection = await place.begin(flow=Flow.CLIENT_CREDENTIALS)
    place.idp.script(echo("invalid_scope"))
    consent = await place.unasked(connection, ConsentKind.CLIENT_GRANT)
    await place.tell_consent(connection, consent)
    found = await said(place, connection, AuditAction.CONSENT_FAILED)
    assert found["error"] == "invalid_scope"


async def test_a_revocation_that_the_provider_does_not_confirm(place: Installation):
    connection = await place.connect(STRICT)
    place.idp.script(echo("server_error", 503), at="revoke")
    await place.revoke(connection)
    found = await said(place, connection, AuditAction.REVOCATION_FAILED)
    assert found["error"] == "server_error"
    assert (await place.revoked(connection)).state is LifecycleState.REVOKED
