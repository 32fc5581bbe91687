"""`GET /v1/apps/{name}/reach`: what one app can reach now, in plain words: `GET /v1/access` of one app."""

from fastapi import APIRouter

from evergrant_server.api.apps.reach.words import words_of
from evergrant_server.api.apps.report import AccessView, access_view
from evergrant_server.api.http.call import AuditorCall
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, Slug, View
from evergrant_server.core.access import Permit
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction
from evergrant_server.store.review.access_review import (
    PermitReview,
    covered_connections,
    review_app,
    review_permits,
)

router = APIRouter(tags=["apps"])

MOST_COVERED = 10
_BROKEN = "Was changed by other means than Evergrant: every request of the app is refused."


class CoveredView(View):
    """A connection that a permit covers."""

    id: str
    integration: str
    provider: str
    subject: str
    state: LifecycleState


class ReachView(AccessView):
    """A permit as `GET /v1/access` shows it, with `words` that say what it means. `covered` has the first ten
    of its `live_connections`, by subject. `stopped_by`: the code with which every request of the app is
    refused now, even those that permits allow; null: none is.
    """

    words: str
    covered: tuple[CoveredView, ...]
    stopped_by: ErrorCode | None


@router.get("/v1/apps/{name}/reach")
async def app_reach(
    name: Slug, call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[ReachView]:
    """What an app or agent can reach: its permits, allows and denies, sorted by name. An app without permits
    reaches nothing."""
    after = call.cursors.decode(cursor, call.tenant, list="reach", app=name)
    async with call.api.store.read() as tx:
        app = require_found(await review_app(tx, call.tenant, name, call.now))
        place = (name, after) if after else None
        found = await review_permits(tx, call.tenant, place, limit + 1, of_app=name)
        broken = app.broken[0].code if app.broken else None
        stopped_by = app.stopped.code if app.stopped is not None else broken
        items = [await _view(tx, call.tenant, it, stopped_by) for it in found[:limit]]
    next_cursor = call.cursors.next_cursor(
        found, limit, lambda it: it.permit["name"], call.tenant, list="reach", app=name
    )
    return Page(items=items, next_cursor=next_cursor)


async def _view(
    tx: Transaction, tenant: Tenant, found: PermitReview, stopped_by: ErrorCode | None
) -> ReachView:
    covered = await covered_connections(tx, tenant, found.permit, MOST_COVERED)
    return ReachView(
        **dict(access_view(found)),
        words=words_of(Permit.model_validate(found.permit)) if found.authentic else _BROKEN,
        covered=tuple(map(CoveredView.of, covered)),
        stopped_by=stopped_by,
    )
