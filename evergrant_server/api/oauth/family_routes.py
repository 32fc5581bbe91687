"""`/v1/token-families`: what subjects have authorized clients of the gateway for; an admin ends it."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field, model_validator

from evergrant_server.access.person_ends import end_family
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    Slug,
    StorableText,
    Subject,
    View,
)
from evergrant_server.core.ids import Tenant, TokenFamilyId
from evergrant_server.core.oauth.authorizations import FamilyEnd, TokenFamily
from evergrant_server.core.oauth.clients import known_id
from evergrant_server.crypto.client_registrations import LONGEST_CLIENT_ID
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["clients"])

_BATCH = 50  # families that one transaction ends

_Name = Annotated[StorableText | None, Query(min_length=1, max_length=LONGEST_CLIENT_ID)]


class TokenFamilyView(View):
    """The tokens of one authorization: `client_id` acts as the app, for the subject, at the resource.

    `bound`: its client proves a key, and keeps its refresh token. `used_at` is its last refresh, `called_at`
    its last call to the minute. `replays` counts the repetitions of used refresh tokens. `live`: its refresh
    tokens are accepted; `end` says why it has ended.
    """

    id: str
    client_id: str
    app: str | None
    subject: str
    resource: str
    connection_id: str | None
    scopes: tuple[str, ...]
    bound: bool
    live: bool
    created_at: datetime
    used_at: datetime
    called_at: datetime | None
    expires_at: datetime
    ended_at: datetime | None
    end: FamilyEnd | None
    replays: int


class EndedFamiliesView(View):
    """How many families were ended, and how many access tokens with them that were valid."""

    families: int
    access_tokens: int


class FamilyFilterBody(Body):
    """Which families to end: at least one member. Of an app, of a client by the `client_id` that it presents,
    of a subject."""

    app: Slug | None = None
    client_id: Annotated[StorableText | None, Field(min_length=1, max_length=LONGEST_CLIENT_ID)] = None
    subject: Subject | None = None

    @model_validator(mode="after")
    def _some(self) -> "FamilyFilterBody":
        if self.app is None and self.client_id is None and self.subject is None:
            raise ValueError("name an app, a client_id or a subject")
        return self


@router.get("/v1/token-families")
async def list_token_families(
    call: AuditorCall,
    app: _Name = None,
    client_id: _Name = None,
    subject: _Name = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[TokenFamilyView]:
    """What subjects have authorized clients for, sorted by id; what has ended for 30 days."""
    filters = {"app": app, "client": client_id, "subject": subject}
    listing = call.listing("token-families", limit, cursor, **filters)
    async with call.api.store.read() as tx:
        equal = await _columns(tx, call.tenant, app, client_id, subject)
        known = app is None or equal["app_id"] is not None
        page = tx.token_families.page
        families = await page(call.tenant, listing.after, listing.most, **equal) if known else []
        views = await _views(tx, call, families[:limit])
    return listing.page(views, families, lambda family: family.id)


@router.get("/v1/token-families/{family_id}")
async def get_token_family(family_id: str, call: AuditorCall) -> TokenFamilyView:
    async with call.api.store.read() as tx:
        family = require_found(await tx.token_families.to_end(call.tenant, TokenFamilyId(family_id)))
        return (await _views(tx, call, [family]))[0]


@router.delete("/v1/token-families/{family_id}")
async def end_token_family(family_id: str, call: AdminCall) -> EndedFamiliesView:
    """End one, with its access tokens: their next use is refused. Idempotent."""

    async def end(tx: Transaction) -> EndedFamiliesView:
        family = require_found(await tx.token_families.to_end(call.tenant, TokenFamilyId(family_id)))
        return await _ended(tx, call, [family] if family.ended_at is None else [])

    return await call.write(end)


@router.post("/v1/token-families/end")
async def end_token_families(body: FamilyFilterBody, call: AdminCall) -> EndedFamiliesView:
    """End all of an app, a client or a subject, with their access tokens. Idempotent."""

    async def end(tx: Transaction) -> EndedFamiliesView:
        equal = await _columns(tx, call.tenant, body.app, body.client_id, body.subject)
        require_found(body.app is None or equal["app_id"])
        return await _ended(tx, call, await tx.token_families.live(call.tenant, _BATCH, **equal))

    families = access_tokens = 0
    while (batch := await call.write(end)).families:
        families += batch.families
        access_tokens += batch.access_tokens
    return EndedFamiliesView(families=families, access_tokens=access_tokens)


async def _ended(tx: Transaction, call: ApiCall, families: list[TokenFamily]) -> EndedFamiliesView:
    ended = [await end_family(tx, family, FamilyEnd.ENDED, call.context, call.now) for family in families]
    return EndedFamiliesView(families=len(ended), access_tokens=sum(ended))


async def _columns(
    tx: Transaction, tenant: Tenant, app: str | None, client_id: str | None, subject: str | None
) -> dict[str, str | None]:
    """The filter by columns; without `app_id` for an app that isn't there."""
    row = None if app is None else await tx.access.app_to_replace(tenant, app)
    client = None if client_id is None else known_id(client_id)
    return {"app_id": None if row is None else row.id, "client_id": client, "subject": subject}


async def _views(tx: Transaction, call: ApiCall, families: list[TokenFamily]) -> list[TokenFamilyView]:
    names = await tx.token_families.app_names(call.tenant, {family.app_id for family in families})
    calls = await tx.token_families.last_calls(call.tenant, [family.id for family in families])
    idle = call.api.settings.oauth_idle
    return [
        TokenFamilyView.of(
            family,
            app=names.get(family.app_id),
            called_at=calls.get(family.id),
            live=family.is_live(call.now, idle),
        )
        for family in families
    ]
