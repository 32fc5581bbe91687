"""`/livez`, `/readyz` and `/metrics`: does the process run, can it serve, and what has it done."""

import logging

from fastapi import APIRouter, Response

from evergrant_server import telemetry_metrics as metrics
from evergrant_server.api.guards import With
from evergrant_server.api.parts import Parts
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.crypto import Lane, Place, new_sealing_key
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["health"])


@router.get("/livez")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def prometheus() -> Response:
    """This process's metrics in Prometheus's text format. No tenant, id or subject is in them."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


@router.get("/readyz")
async def ready(parts: With, response: Response) -> dict[str, object]:
    """200 when leases can be served. Temporal is reported and not required: fresh leases,
    consents and revocations work without it.
    """
    checked = {"store": await _store(parts), "keys": _keys(parts), "temporal": await _temporal(parts)}
    serves = checked["store"] == checked["keys"] == "ok"
    if not serves:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return {"ready": serves, "checks": checked}


async def _store(parts: Parts) -> str:
    try:
        async with parts.store.read() as tx:
            await tx.access.app(Tenant(parts.settings.tenant), AppId("app_none"))
    except Failure as failure:
        return failure.code.value
    return "ok"


def _keys(parts: Parts) -> str:
    """Wrap a key and unwrap it again, as every lease does."""
    place, key = Place("readyz", "readyz", "readyz", "key"), new_sealing_key("readyz")
    try:
        wrapped = parts.ring.wrap(Lane.LEASE, place, key)
        same = parts.ring.unwrap(Lane.LEASE, place, key.id, wrapped).reveal() == key.reveal()
    except Failure as failure:
        return failure.code.value
    return "ok" if same else Code.SEAL_BROKEN.value


async def _temporal(parts: Parts) -> str:
    try:
        return "ok" if await parts.link.ready() else Code.TEMPORAL_UNAVAILABLE.value
    except Exception as error:
        # whatever it is, it is Temporal's and doesn't make this process unready
        say(log, logging.WARNING, Event.TEMPORAL_NOT_READY, type(error).__name__)
        return Code.TEMPORAL_UNAVAILABLE.value
