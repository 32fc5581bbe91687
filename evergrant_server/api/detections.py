"""`GET /v1/detections`: what was noticed of uses that are unlike those before."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server.api.http.call import AuditorCall
from evergrant_server.api.http.cursors import moment_place
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, UtcDatetime, View
from evergrant_server.core.questions.detection import DetectionKind

router = APIRouter(tags=["questions"])


class DetectionView(View):
    """What was noticed about `object`: an app, a connection, or what a subject authorized. `app` is the name
    of the app that it is about or that did it; null: none, or one that is gone. `facts` depend on `kind`."""

    id: str
    kind: DetectionKind
    object: str
    connection_id: str | None
    app: str | None
    at: datetime
    facts: dict[str, Any]


@router.get("/v1/detections")
async def list_detections(
    call: AuditorCall,
    kind: Annotated[DetectionKind | None, Query()] = None,
    since: Annotated[UtcDatetime | None, Query()] = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[DetectionView]:
    """What was noticed in the last year, the newest first; from `since` on, or of one `kind`."""
    filters = {"kind": kind, "since": None if since is None else since.isoformat()}
    listing = call.listing("detections", limit, cursor, **filters)
    async with call.api.store.read() as tx:
        place = listing.after_moment
        noticed = await tx.detections.page(call.tenant, place, listing.most, kind=kind, since=since)
        apps = await tx.uses.apps(call.tenant)
    views = [DetectionView.of(detection, app=apps.get(detection.app_id or "")) for detection in noticed]
    return listing.page(views, noticed, lambda detection: moment_place(detection.at, detection.id))
