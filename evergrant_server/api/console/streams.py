"""`/console/streams`: where the tenant's audit records are sent, and how far each stream is."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.audit_streams import list_audit_streams
from evergrant_server.api.console.visit import VisitDep, console_page
from evergrant_server.api.http.call import require_auditor

router = APIRouter(include_in_schema=False)


@router.get("/console/streams")
@console_page
async def show_streams(visit: VisitDep) -> Response:
    """Each stream: its receiver, what waits for it, and why it doesn't take it."""
    call = await require_auditor(visit.call)
    return visit.show("streams.html", "Streams", streams=(await list_audit_streams(call, limit=200)).items)
