"""What a provider said is shown to admins; apps of the subject see the typed reason."""

from typing import Any

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
