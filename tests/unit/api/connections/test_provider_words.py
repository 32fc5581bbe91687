"""What a provider said is shown to admins; apps of the subject see the typed reason."""

from typing import Any

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_words import ProviderWords
from tests.fakes.api import TENANT, Api

SAID = ProviderWords(status=400, error="invalid_grant", description="Token has been revoked")
REFUSED = {"reason": ErrorCode.GRANT_REJECTED, **SAID.as_detail()}


async def recorded(api: Api, connection: Connection, action: AuditAction, **detail: Any) -> None:
    """What a worker has written."""
    async with api.worker.write() as tx:
        entry = AuditEntry(
            tenant=TENANT,
            at=api.clock.now(),
            action=action,
            object=connection.id,
            context=RequestContext(by="schedule"),
            detail=detail,
        )
        await audit.append(tx, entry)


async def test_only_an_admin_reads_it_in_the_audit_log(api: Api):
    connection, admin = await api.active_for("boss", Action.ADMIN)
    app = await api.app_with("asker", Action.CONNECT, Action.TOKEN)
    await recorded(api, connection, AuditAction.NEEDS_REAUTH, **REFUSED)
    path = f"/v1/connections/{connection.id}/audit"
    (shown,) = (await api.get(path, admin)).json()["items"]
    assert shown["detail"]["provider_said"] == SAID.model_dump(exclude_defaults=True)
    (hidden,) = (await api.get(path, app)).json()["items"]
    assert hidden["detail"] == {"reason": "grant_rejected"}


@pytest.mark.parametrize(("binding", "shown"), [("oidc", False), ("app", True)])
async def test_only_an_admin_reads_who_logged_in_instead_of_the_subject(api: Api, binding: str, shown: bool):
    """An app that confirms has named the person itself."""
    connection, admin = await api.active_for("boss", Action.ADMIN)
    app = await api.app_with("asker", Action.CONNECT)
    told = {"binding": binding, "claimed_subject": "ann@example.org"}
    await recorded(api, connection, AuditAction.SUBJECT_MISMATCH, **told)
    path = f"/v1/connections/{connection.id}/audit"
    (whole,) = (await api.get(path, admin)).json()["items"]
    assert whole["detail"] == told
    (part,) = (await api.get(path, app)).json()["items"]
    assert ("claimed_subject" in part["detail"]) is shown


async def test_a_connection_shows_an_admin_what_the_provider_said_last(api: Api):
    connection, admin = await api.active_for("boss", Action.ADMIN)
    app = await api.app_with("asker", Action.CONNECT, Action.TOKEN)
    path = f"/v1/connections/{connection.id}"
    assert (await api.get(path, admin)).json()["provider_said"] is None
    now = api.clock.now()
    await api.change(connection, lambda c: c.refresh_failed(ErrorCode.PROVIDER_ERROR, now, token_over=False))
    await recorded(api, connection, AuditAction.REFRESH_FAILED, **REFUSED)
    await recorded(api, connection, AuditAction.REFRESH_FAILED, reason=ErrorCode.PROVIDER_UNREACHABLE)
    shown = (await api.get(path, admin)).json()["provider_said"]
    assert shown == {
        "at": shown["at"],
        "reason": "grant_rejected",
        "reference": None,
        **SAID.model_dump(),
    }
    assert (await api.get(path, app)).json()["provider_said"] is None
    await recorded(api, connection, AuditAction.GRANT_REFRESHED, generation=2)
    assert (await api.get(path, admin)).json()["provider_said"] is None
