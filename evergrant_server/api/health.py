"""`/livez`, `/readyz` and `/metrics`: does the process run, can it serve, and what has it done."""

import logging

from fastapi import APIRouter, Response

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import ContextDep
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.crypto import AssociatedData, KeyPurpose, new_sealing_key
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """This process's metrics in Prometheus's text format. No tenant, id or subject is in them."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


@router.get("/readyz")
async def readyz(parts: ContextDep, response: Response) -> dict[str, object]:
    """200 when leases can be served. Temporal is reported and not required: fresh leases,
    consents and revocations work without it.
    """
    checked = {
        "store": await _check_store(parts),
        "keys": _check_keys(parts),
        "temporal": await _check_temporal(parts),
    }
    serves = checked["store"] == checked["keys"] == "ok"
    if not serves:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return {"ready": serves, "checks": checked}


async def _check_store(parts: ApiContext) -> str:
    try:
        async with parts.store.read() as tx:
            await tx.access.app(Tenant(parts.settings.tenant), AppId("app_none"))
    except Failure as failure:
        return failure.code.value
    return "ok"


def _check_keys(parts: ApiContext) -> str:
    """Wrap a key and unwrap it again, as every lease does."""
    place, key = AssociatedData("readyz", "readyz", "readyz", "key"), new_sealing_key("readyz")
    try:
        wrapped = parts.ring.wrap(KeyPurpose.LEASE, place, key)
        same = parts.ring.unwrap(KeyPurpose.LEASE, place, key.id, wrapped).reveal() == key.reveal()
    except Failure as failure:
        return failure.code.value
    return "ok" if same else ErrorCode.SEAL_BROKEN.value


async def _check_temporal(parts: ApiContext) -> str:
    try:
        return "ok" if await parts.link.ready() else ErrorCode.TEMPORAL_UNAVAILABLE.value
    except Exception as error:
        # whatever it is, it is Temporal's and doesn't make this process unready
        log_event(log, logging.WARNING, LogEvent.TEMPORAL_NOT_READY, type(error).__name__)
        return ErrorCode.TEMPORAL_UNAVAILABLE.value
