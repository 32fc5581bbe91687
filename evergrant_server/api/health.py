"""`/livez`, `/readyz` and `/metrics`."""

from fastapi import APIRouter, Response

from evergrant_server.access.context import readiness
from evergrant_server.api.http.call import ApiDep
from evergrant_server.telemetry import metric_export

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """200 while the process answers requests."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """Metrics of this process in Prometheus's text format, without tenants, ids or subjects."""
    return Response(metric_export.exposition(), media_type=metric_export.CONTENT_TYPE)


@router.get("/readyz", responses={503: {"model": dict[str, object], "description": "Not ready"}})
async def readyz(api: ApiDep, response: Response) -> dict[str, object]:
    """200 when the process can serve leases.

    Temporal is reported but not required: leases of fresh tokens, consents and revocations work
    without it.
    """
    is_ready, checks = await readiness(api)
    if not is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return {"ready": is_ready, "checks": checks}
