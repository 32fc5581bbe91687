"""`GET /v1/apps/{name}/reach`: what one app can reach now, in plain words: `GET /v1/access` of one app."""

from collections.abc import Sequence

from fastapi import APIRouter

from evergrant_server.api.apps.report import AccessView, access_view
from evergrant_server.api.http.call import AuditorCall
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, Slug, View
from evergrant_server.core.access import Action, Effect, EnforcementMode, Permit
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction
from evergrant_server.store.access_review import PermitReview, covered_connections, review_app, review_permits

router = APIRouter(tags=["apps"])

MOST_COVERED = 10
_EVERY = "*"
_MOST = 8  # of a list that are named
_DOES = {
    Action.TOKEN: "get access tokens",
    Action.PROXY: "send requests to the API",
    Action.CONNECT: "ask for consents",
    Action.ADMIN: "change the configuration",
    Action.AUDIT: "read the configuration and the audit log",
    Action.EXPORT: "export refresh tokens",
    Action.STORIES: "read the stories of connections",
    Action.DIRECTORY: "tell by SCIM who comes and leaves",
}
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
    listing = call.listing("reach", limit, cursor, app=name)
    async with call.api.store.read() as tx:
        app = require_found(await review_app(tx, call.tenant, name, call.now))
        place = (name, listing.after) if listing.after else None
        reviews = await review_permits(tx, call.tenant, place, listing.most, of_app=name)
        broken = app.broken[0].code if app.broken else None
        stopped_by = app.stopped.code if app.stopped is not None else broken
        items = [await _view(tx, call.tenant, review, stopped_by) for review in reviews[:limit]]
    return listing.page(items, reviews, lambda review: review.permit["name"])


async def _view(
    tx: Transaction, tenant: Tenant, review: PermitReview, stopped_by: ErrorCode | None
) -> ReachView:
    covered = await covered_connections(tx, tenant, review.permit, MOST_COVERED)
    return ReachView(
        **dict(access_view(review)),
        words=words_of(Permit.model_validate(review.permit)) if review.authentic else _BROKEN,
        covered=tuple(map(CoveredView.of, covered)),
        stopped_by=stopped_by,
    )


# --- words ------------------------------------------------------------------------------


def words_of(permit: Permit) -> str:
    """What the permit lets its app do: `May send GET requests to /user of github, for alice.`"""
    begin = "May" if permit.effect is Effect.ALLOW else "May not"
    if permit.mode is EnforcementMode.OBSERVE:
        begin = "Would not be allowed to"
    does = _listed([_does(permit, action) for action in permit.actions], "and")
    return f"{begin} {does}{_where(permit)}{_limits(permit)}."


def _does(permit: Permit, action: Action) -> str:
    if action is not Action.PROXY:
        return _DOES[action]
    if permit.tools is not None:
        return f"call the tools {_listed(permit.tools, 'and')}"
    methods = "" if permit.methods is None else f"{_listed(permit.methods, 'and')} "
    return f"send {methods}requests to {'the API' if permit.paths is None else _listed(permit.paths, 'and')}"


def _where(permit: Permit) -> str:
    every = "every" if permit.effect is Effect.ALLOW else "any"
    of = f" of {every} integration" if permit.integration == _EVERY else f" of {permit.integration}"
    if permit.provider != _EVERY:
        of += f" with the provider {permit.provider}"
    if permit.connections is not None:
        count = len(permit.connections)
        of += f", on {count} named connection{'s' if count != 1 else ''} alone"
    if _EVERY in permit.subjects:
        return f"{of}, for {every} subject"
    names = [
        f"those that begin with {subject[:-1]}" if subject.endswith(_EVERY) else subject
        for subject in permit.subjects
    ]
    return f"{of}, for {_listed(names, 'and')}"


def _limits(permit: Permit) -> str:
    limits: list[str] = []
    if permit.scope_ceiling is not None:
        limits.append(f"with no more than {_listed(permit.scope_ceiling, 'and') or 'no scope at all'}")
    if permit.exact_scopes:
        limits.append("with a token of exactly the scopes it asks for")
    if permit.scopes is not None:
        limits.append(f"if it is about {_listed(permit.scopes, 'or')}")
    if permit.sources is not None:
        limits.append(f"from {_listed(permit.sources, 'or')}")
    if permit.call_approval:
        limits.append("once a person has approved that very call")
    return "".join(f", {limit}" for limit in limits)


def _listed(names: Sequence[str], last: str) -> str:
    """`a, b and c`; of many the first, and how many more."""
    shown = list(names[:_MOST])
    if len(names) > _MOST:
        shown.append(f"{len(names) - _MOST} more")
    return f" {last} ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
