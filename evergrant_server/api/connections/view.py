"""The view of a connection that every route returns."""

from evergrant_server import audit
from evergrant_server.api.connections.models import (
    ConnectionView,
    RevocationProgressView,
)
from evergrant_server.api.connections.reauthorization import ConnectionWithLink
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.store import Transaction


async def connection_view(
    tx: Transaction, connection: Connection, linked: ConnectionWithLink | None = None
) -> ConnectionView:
    """The connection with its grant, the progress of its revocation, and its connect link if there is one."""
    grant = await tx.grants.get(connection.tenant, connection.id)
    view = ConnectionView.of(connection, grant)
    if connection.state is LifecycleState.REVOKING:
        view = view.model_copy(update={"revoking": await _revocation_progress(tx, connection)})
    if linked is None or linked.consent is None:
        return view
    link = {"connect_url": linked.connect_url, "connect_expires_at": linked.consent.expires_at}
    return view.model_copy(update=link)


async def _revocation_progress(tx: Transaction, connection: Connection) -> RevocationProgressView:
    """From the audit log, so that it works while Temporal is unavailable."""
    tenant, id = connection.tenant, connection.id
    requested = await audit.newest_record(tx, tenant, id, AuditAction.REVOCATION_REQUESTED)
    failed = await audit.newest_record(tx, tenant, id, AuditAction.REVOCATION_FAILED)
    return RevocationProgressView(
        since=requested.at if requested else None,
        failure=ErrorCode(failed.detail["reason"]) if failed else None,
        failed_at=failed.at if failed else None,
    )
