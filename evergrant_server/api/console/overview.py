"""`/console`: what needs somebody, what ends soon, what was done lately, providers, keys and backups."""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.console.visit import VisitDep, console_page
from evergrant_server.api.overview import AttentionView, HourView, get_overview
from evergrant_server.console.next_steps import Finding, findings, state_words, step_after
from evergrant_server.console.plots import Bars, bar_plot
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode

router = APIRouter(include_in_schema=False)

_MOST_INTEGRATIONS = 25
_TONES = ("bad", "wait", "good")
_SEVERAL = {
    LifecycleState.PENDING_CONSENT: "wait for consent",
    LifecycleState.NEEDS_REAUTH: "need a new consent",
    LifecycleState.REVOKING: "are being revoked",
}
# what waits for an admin: in words, and the page where that is decided
WAITING = {
    "access_request": ("request for access waits", "requests for access wait", "/console/requests"),
    "call": ("call of an agent waits", "calls of agents wait", "/console/agents"),
    "approval": (
        *("command waits for a second admin", "commands wait for a second admin"),
        "/console/approvals",
    ),
    "definition": (
        *("provider of your own waits for a decision", "providers of your own wait for a decision"),
        "/console/providers",
    ),
    "webhook": ("webhook fails, or is disabled", "webhooks fail, or are disabled", "/console/webhooks"),
}
# what ends, in words, and the collection of the page that repairs it
ENDS = {
    "key": ("API key of", "apps"),
    "permit": ("permit of", "apps"),
    "agent": ("agent", "apps"),
    "client_secret": ("client secret of", "integrations"),
    "certificate": ("client certificate of", "integrations"),
    "rotation": ("the previous secret of", "integrations"),
    "refresh_token": ("refresh tokens at", "integrations"),
    "access_token": ("access tokens that nothing refreshes, at", "integrations"),
}


@router.get("/console")
@console_page
async def show_overview(visit: VisitDep) -> Response:
    """The console's first page."""
    overview = await get_overview(visit.call)
    now = overview.at
    standings = [(standing, findings(standing, now)) for standing in overview.integrations]
    standings.sort(key=lambda pair: (_TONES.index(_worst(pair[1])), pair[0].name))
    return visit.show(
        "overview.html",
        "Overview",
        overview=overview,
        causes=[(group, _words(group), _step(group), _link(group)) for group in overview.attention],
        standings=standings[:_MOST_INTEGRATIONS],
        more=max(0, len(standings) - _MOST_INTEGRATIONS),
        plots=_plots(overview.hours),
        oldest_key=min((age.at for age in overview.keys if age.at is not None), default=None),
        rotation=overview.key_rotation,
        waiting_words=WAITING,
        end_words=ENDS,
    )


def _worst(problems: list[Finding]) -> str:
    return problems[0].tone


def _words(group: AttentionView) -> tuple[str, str]:
    """What one connection is, and what several are."""
    if group.state is not LifecycleState.ACTIVE:
        return state_words(group.state), _SEVERAL[group.state]
    words = "to choose an account for" if group.code is ErrorCode.CHOICE_REQUIRED else "failing"
    return words, words


def _step(group: AttentionView) -> str:
    """What has to happen, for who looks at the console."""
    return group.repair if group.code is None else step_after(group.code, group.repairer, group.state).text


def _link(group: AttentionView) -> str:
    """The list that the row is about."""
    wanted = {"integration": group.integration, "state": group.state.value}
    if group.state is LifecycleState.ACTIVE:
        wanted["failing"] = "yes"
    return f"/console/connections?{urlencode(wanted)}"


def _plots(hours: tuple[HourView, ...]) -> list[Any]:
    moments = [hour.hour for hour in hours]
    leases = [Bars("leases", "good", [hour.leases for hour in hours])]
    refreshes = [
        Bars("refreshes", "good", [hour.refreshes for hour in hours]),
        Bars("refreshes that failed", "bad", [hour.failed for hour in hours]),
    ]
    return [
        bar_plot("leases", "Leases by the hour", moments, leases),
        bar_plot("refreshes", "Refreshes by the hour", moments, refreshes),
    ]
