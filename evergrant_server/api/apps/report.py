"""`GET /v1/access`: which app reaches what, through which permit, and when it was last used. JSON or CSV."""

import csv
from datetime import datetime
from io import StringIO
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from evergrant_server.api.http.call import AuditorCall
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, View
from evergrant_server.store.access_review import PermitReview, review_permits

router = APIRouter(tags=["apps"])

CSV = "text/csv"
# in the place of null, with a space where a scope, an id or a network could stand
_WITHOUT = {
    "scope_ceiling": "every scope",
    "scopes": "all requests",
    "connections": "all connections",
    "sources": "all networks",
    "methods": "all methods",
    "paths": "all paths",
    "tools": "all tools",
    "expires_at": "",
    "last_used_at": "never",
    "app_last_used_at": "never",
    "sponsor": "",
    "agent_ends_at": "",
}
# A spreadsheet takes a cell that begins so for a formula, also in full-width forms (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class AccessView(View):
    """A permit of an app, and what it reaches now.

    `authentic` false: the row of the permit or of its app isn't Evergrant's, and every request of the app is
    refused. `live_connections` counts the connections it covers that haven't ended. `last_used_at` is when
    the permit last allowed something, `app_last_used_at` the app's last lease or other authenticated request:
    to the minute, null before the first. An agent has a `sponsor`, and gets nothing from `agent_ends_at` on.
    """

    app: str
    app_disabled: bool
    permit: str
    effect: str
    mode: str
    integration: str
    provider: str
    subjects: tuple[str, ...]
    connections: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    actions: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    exact_scopes: bool
    scopes: tuple[str, ...] | None
    expires_at: datetime | None
    purpose: str
    owner: str
    reason: str
    methods: tuple[str, ...] | None
    paths: tuple[str, ...] | None
    authentic: bool
    live_connections: int
    last_used_at: datetime | None
    app_last_used_at: datetime | None
    call_approval: bool
    sponsor: str | None
    agent_ends_at: datetime | None
    tools: tuple[str, ...] | None


_PAGE_OR_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {CSV: {"schema": {"type": "string"}}}}}


@router.get("/v1/access", response_model=Page[AccessView], responses=_PAGE_OR_CSV)
async def report_access(
    call: AuditorCall,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    format: Annotated[Literal["json", "csv"] | None, Query()] = None,
) -> Page[AccessView] | Response:
    """Every permit of the tenant's apps, sorted by the names of app and permit.

    As CSV with `format=csv`, or where `Accept` names `text/csv` first; the next page is then in `Link`.
    """
    listing = call.listing("access", limit, cursor)
    app, _, permit = (listing.after or "").partition("/")
    async with call.api.store.read() as tx:
        reviews = await review_permits(
            tx, call.tenant, (app, permit) if listing.after else None, listing.most
        )
    page = listing.page([access_view(review) for review in reviews], reviews, _place)
    accepted = call.request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip().lower()
    if format == "csv" or (format is None and accepted == CSV):
        return _csv_response(page, limit, is_first=cursor is None)
    return page


def _place(review: PermitReview) -> str:
    return f"{review.app}/{review.permit['name']}"


def access_view(review: PermitReview) -> AccessView:
    return AccessView.model_validate({**review.permit, **vars(review), "permit": review.permit["name"]})


# --- CSV --------------------------------------------------------------------------------


def _csv_response(page: Page[AccessView], limit: int, *, is_first: bool) -> Response:
    """One page; the first has the line of names, so that pages can be put together (RFC 4180)."""
    text = StringIO()
    lines = csv.writer(text, quoting=csv.QUOTE_ALL)  # a cell may have another program's separator
    if is_first:
        lines.writerow(AccessView.model_fields)
    lines.writerows(_cells(item) for item in page.items)
    headers = {"Content-Disposition": 'attachment; filename="access.csv"'}
    if page.next_cursor is not None:
        headers["Link"] = f'</v1/access?format=csv&limit={limit}&cursor={page.next_cursor}>; rel="next"'
    kind = f"{CSV}; charset=utf-8; header={'present' if is_first else 'absent'}"
    return Response(text.getvalue(), headers=headers, media_type=kind)


def _cells(item: AccessView) -> list[str]:
    """Its values as text, in the order of the names. Members of a list have a line each."""
    return [_plain(_text(_WITHOUT[name] if value is None else value)) for name, value in item]


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return "\n".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType]  # its members are text


def _plain(text: str) -> str:
    """The text as a spreadsheet shows it and never evaluates it."""
    return f"'{text}" if text.startswith(_FORMULA) else text
