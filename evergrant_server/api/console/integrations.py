"""`/console/integrations` with their health; `/console/providers`, the catalogue, with its evidence."""

from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.console.visit import ROWS, VisitDep, console_page, pages_of
from evergrant_server.api.integrations.definitions import get_provider, list_providers
from evergrant_server.api.integrations.health import get_integration_health
from evergrant_server.api.integrations.routes import get_integration, list_integrations
from evergrant_server.console.catalogue import evidence_of, facts_of, search
from evergrant_server.console.next_steps import findings, turn_of
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.policy import Target
from providers.definition.validation import CATEGORIES

router = APIRouter(include_in_schema=False)

_LONGEST = 100


@router.get("/console/integrations")
@console_page
async def show_integrations(visit: VisitDep, cursor: str = "") -> Response:
    """A page of the integrations that the visitor administers or audits."""
    integrations = await list_integrations(visit.call, limit=ROWS, cursor=cursor or None)
    now = visit.api.clock.now()
    return visit.show(
        "integrations.html",
        "Integrations",
        rows=[(integration, findings(integration, now)) for integration in integrations.items],
        **pages_of("/console/integrations", cursor, integrations.next_cursor),
    )


@router.get("/console/integrations/{name}")
@console_page
async def show_integration(visit: VisitDep, name: str) -> Response:
    """One integration: its health, its failures by cause, and what to register at the provider."""
    integration = await get_integration(name, visit.call)
    health = await get_integration_health(name, visit.call)
    states = (LifecycleState.NEEDS_REAUTH, LifecycleState.PENDING_CONSENT, LifecycleState.ACTIVE)
    return visit.show(
        "integration.html",
        integration.name,
        it=integration,
        found=findings(integration, visit.api.clock.now()),
        health=health,
        turns=[turn_of(cause) for cause in health.causes],
        states=states,
        connects=visit.call.allows(Action.CONNECT, Target(integration.name, integration.provider)),
    )


@router.get("/console/providers")
@console_page
async def show_providers(visit: VisitDep, q: str = "", category: str = "", after: str = "") -> Response:
    """The providers that fit the words, by name."""
    listed = await list_providers(visit.call)
    page = search(listed.items, q[:_LONGEST], category, after)
    kept = {name: text for name, text in (("q", q[:_LONGEST]), ("category", category)) if text}
    return visit.show(
        "providers.html",
        "Catalogue",
        found=page,
        q=q[:_LONGEST],
        category=category,
        categories=CATEGORIES,
        next_page=f"?{urlencode({**kept, 'after': page.next_after})}" if page.next_after else None,
        first_page=f"/console/providers?{urlencode(kept)}" if after else None,
    )


@router.get("/console/providers/{provider}")
@console_page
async def show_provider(visit: VisitDep, provider: str) -> Response:
    """A provider's definition, and what it is known from."""
    view = await get_provider(provider, visit.call)
    return visit.show(
        "provider.html",
        view["display_name"],
        it=view,
        facts=facts_of(view["definition"]),
        evidence=evidence_of(view["definition"]),
        disagreements=view["definition"].get("sources", {}).get("disagreements", ()),
        notes=view["definition"].get("notes", ()),
        categories=CATEGORIES,
    )
