"""`/console/apps`: apps with their permits and keys; `/console/access`: may this app use that connection."""

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.apps.credentials import list_credentials
from evergrant_server.api.apps.explain import explain_access
from evergrant_server.api.apps.keys import list_keys
from evergrant_server.api.apps.permits import list_permits
from evergrant_server.api.apps.reach.routes import app_reach
from evergrant_server.api.apps.routes import get_app, list_apps
from evergrant_server.api.console.visit import ROWS, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import require_auditor
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import chain_problem
from evergrant_server.core.ids import AppId
from evergrant_server.policy import Target

router = APIRouter(include_in_schema=False)

_LONGEST = 2000
SAID = {"key-revoked": "The key is revoked. Requests with it are refused at once."}


@router.get("/console/apps")
@console_page
async def show_apps(visit: VisitDep, cursor: str = "") -> Response:
    """A page of the tenant's apps."""
    call = await require_auditor(visit.call)
    found = await list_apps(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "apps.html",
        "Apps",
        found=found,
        **pages_of("/console/apps", cursor, found.next_cursor),
    )


@router.get("/console/apps/{name}")
@console_page
async def show_app(visit: VisitDep, name: str, said: str = "") -> Response:
    """One app: what it may do, and how it proves who it is."""
    call = await require_auditor(visit.call)
    return visit.show(
        "app.html",
        name,
        it=await get_app(name, call),
        permits=(await list_permits(name, call)).items,
        keys=(await list_keys(name, call)).items,
        credentials=(await list_credentials(name, call)).items,
        manages=call.allows(Action.ADMIN, Target()),
        said=SAID.get(said),
    )


@router.get("/console/apps/{name}/reach")
@console_page
async def show_reach(visit: VisitDep, name: str, cursor: str = "") -> Response:
    """What one app or agent can reach now, in plain words."""
    call = await require_auditor(visit.call)
    it = await get_app(name, call)
    found = await app_reach(name, call, limit=ROWS, cursor=cursor or None)
    sponsor = it.sponsor or ""
    names = await visit.names_of([sponsor])
    async with call.api.store.read() as tx:
        own = await tx.delegations.live_of_app(call.tenant, AppId(it.id), call.now, ROWS)
        chains = [await tx.delegations.chain(one) for one in own]
    return visit.show(
        "reach.html",
        f"What {name} can reach",
        it=it,
        found=found,
        sponsor=names.get(sponsor, sponsor),
        acting=[chain[-1] for chain in chains if chain_problem(chain, call.now) is None],
        manages=call.allows(Action.ADMIN, Target()),
        **pages_of(f"/console/apps/{name}/reach", cursor, found.next_cursor),
    )


@router.get("/console/access")
@console_page
async def show_access(
    visit: VisitDep, app: str = "", connection: str = "", scopes: str = "", action: str = "token"
) -> Response:
    """May an app use a connection now, by which permit, and what else stops it."""
    call = await require_auditor(visit.call)
    asked = {"app": app, "connection": connection, "scopes": scopes}
    fields = {name: text[:_LONGEST].strip() for name, text in asked.items()}
    wanted = chosen(Action, action, "action")
    answer = None
    if fields["app"] and fields["connection"]:
        answer = await explain_access(call, **fields, action=wanted)
    return visit.show(
        "access.html",
        "Who may",
        fields=fields,
        wanted=wanted,
        actions=[it for it in Action if it is not Action.EXPORT],
        answer=answer,
    )
