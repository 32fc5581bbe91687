"""Device codes (RFC 8628): a worker requests them, the API shows them (ADR 0008)."""

from dataclasses import replace

from evergrant_server.api.connections.models import ConnectionView, DeviceView
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.idempotency import CommandResponse
from evergrant_server.api.http.polling import poll_until
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentKind
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store import Transaction

_MAX_WAIT_S = 5.0
_AWAITING_CONSENT = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)


async def device_view(tx: Transaction, connection: Connection) -> DeviceView | None:
    """The code to enter, while the connection waits for its approval."""
    if connection.flow is not Flow.DEVICE_CODE or connection.state.is_final:
        return None
    consent = await tx.consents.received_consent(connection.tenant, connection.id)
    if consent is None or consent.kind is not ConsentKind.DEVICE:
        return None
    device = await tx.consents.device_code(consent)
    return None if device is None else DeviceView.of(device)


async def add_device_code(api: ApiContext, tenant: Tenant, answer: CommandResponse) -> CommandResponse:
    """Add the device code to the response, or omit it if no worker has one within a few seconds.

    The stored response of the Idempotency-Key has no code: keys outlast codes.
    """
    view = ConnectionView.model_validate_json(answer.body)
    if view.flow is not Flow.DEVICE_CODE or view.state not in _AWAITING_CONSENT:
        return answer

    async def look() -> tuple[DeviceView | None, bool]:
        """The code, and whether the request for it has failed."""
        async with api.store.read() as tx:
            connection = await tx.connections.get(tenant, ConnectionId(view.id))
            device = None if connection is None else await device_view(tx, connection)
        failed = (
            connection is None
            or connection.state not in _AWAITING_CONSENT
            or connection.reason != view.reason
        )
        return device, failed

    longest = min(_MAX_WAIT_S, api.settings.lease_wait.total_seconds())
    device, _ = await poll_until(look, lambda seen: seen[0] is not None or seen[1], longest)
    shown = view.model_copy(update={"device": device})
    return replace(answer, body=shown.model_dump_json())
