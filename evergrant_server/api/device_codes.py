"""Device codes on their way to whoever asked: a worker gets them, the API shows them (ADR 0008)."""

from dataclasses import replace

from evergrant_server.api.idempotency import Answer
from evergrant_server.api.parts import Parts
from evergrant_server.api.views import ConnectionView, DeviceView
from evergrant_server.api.watching import watched
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.consent import ConsentKind
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store import Tx

_LONGEST_S = 5.0
_WAITS = (State.PENDING_CONSENT, State.NEEDS_REAUTH)


async def device_of(tx: Tx, connection: Connection) -> DeviceView | None:
    """What the subject has to type in, while that is waited for."""
    if connection.flow is not Flow.DEVICE_CODE or connection.state.final:
        return None
    consent = await tx.consents.received_for(connection.tenant, connection.id)
    if consent is None or consent.kind is not ConsentKind.DEVICE:
        return None
    device = await tx.consents.device(consent)
    return None if device is None else DeviceView.of(device)


async def with_device(parts: Parts, tenant: Tenant, answer: Answer) -> Answer:
    """The answer with the code, once a worker has it; without it after a few seconds.

    Not in the remembered answer: a code lives for minutes, an Idempotency-Key for longer.
    """
    view = ConnectionView.model_validate_json(answer.body)
    if view.flow is not Flow.DEVICE_CODE or view.state not in _WAITS:
        return answer

    async def look() -> tuple[DeviceView | None, bool]:
        """The code, and whether there will be none."""
        async with parts.store.read() as tx:
            connection = await tx.connections.get(tenant, ConnectionId(view.id))
            device = None if connection is None else await device_of(tx, connection)
        failed = connection is None or connection.state not in _WAITS or connection.reason != view.reason
        return device, failed

    longest = min(_LONGEST_S, parts.settings.lease_wait.total_seconds())
    device, _ = await watched(look, lambda seen: seen[0] is not None or seen[1], longest)
    shown = view.model_copy(update={"device": device})
    return replace(answer, body=shown.model_dump_json())
