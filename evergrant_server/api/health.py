"""`/livez`, `/readyz` and `/metrics`."""

import logging

from fastapi import APIRouter, Response

from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.context import ApiContext
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.crypto import AssociatedData, KeyPurpose, new_sealing_key
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """200 while the process answers requests."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """Metrics of this process in Prometheus's text format, without tenants, ids or subjects."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)


@router.get("/readyz", responses={503: {"model": dict[str, object], "description": "Not ready"}})
async def readyz(api: ApiDep, response: Response) -> dict[str, object]:
    """200 when the process can serve leases.

    Temporal is reported but not required: leases of fresh tokens, consents and revocations work
    without it.
    """
    checked = {
        "store": await _check_store(api),
        "keys": _check_keys(api),
        "temporal": await _check_temporal(api),
    }
    serves = checked["store"] == checked["keys"] == "ok"
    if not serves:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return {"ready": serves, "checks": checked}


async def _check_store(api: ApiContext) -> str:
    try:
        async with api.store.read() as tx:
            await tx.access.app(Tenant(api.settings.tenant), AppId("app_none"))
    except Failure as failure:
        return failure.code.value
    return "ok"


def _check_keys(api: ApiContext) -> str:
    """Wrap a key and unwrap it again, as the lease path does."""
    place, key = AssociatedData("readyz", "readyz", "readyz", "key"), new_sealing_key("readyz")
    try:
        wrapped = api.ring.wrap(KeyPurpose.LEASE, place, key)
        same = api.ring.unwrap(KeyPurpose.LEASE, place, key.id, wrapped).reveal() == key.reveal()
    except Failure as failure:
        return failure.code.value
    return "ok" if same else ErrorCode.SEAL_BROKEN.value


async def _check_temporal(api: ApiContext) -> str:
    try:
        return "ok" if await api.link.ready() else ErrorCode.TEMPORAL_UNAVAILABLE.value
    except Exception as error:
        # an error of Temporal's client doesn't make this process unready
        log_event(log, logging.WARNING, LogEvent.TEMPORAL_NOT_READY, type(error).__name__)
        return ErrorCode.TEMPORAL_UNAVAILABLE.value
