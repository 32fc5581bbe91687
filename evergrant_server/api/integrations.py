"""`/v1/integrations`: our OAuth clients at providers, one redirect URI each."""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api import documents
from evergrant_server.api.authentication import Caller
from evergrant_server.api.definitions import spec_named, spec_of
from evergrant_server.api.guards import Asking, By, IdempotencyKey, With, require
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.integration_changes import (
    certificate_of,
    changed,
    check,
    created,
    key_of,
    secret_changed,
    tell_failing,
)
from evergrant_server.api.parts import Parts
from evergrant_server.api.shapes import IntegrationBody, RotateSecretBody, Slug
from evergrant_server.api.views import IntegrationView, Page
from evergrant_server.core.access import Action, Integration, IntegrationState, Registration
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import Asked
from evergrant_server.core.secret import Secret
from evergrant_server.policy import decide
from evergrant_server.store import Tx
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["integrations"])

DISCOVERY_S = 15.0


async def _view(tx: Tx, parts: Parts, integration: Integration) -> IntegrationView:
    with suppress(Failure):  # a definition that is gone knows nothing; what is stored was true
        integration = integration.under((await spec_of(tx, parts.registry, integration)).refresh_rules())
    return IntegrationView.of(
        integration,
        redirect_uri=parts.redirect_uri(integration.id),
        has_secret=await tx.integrations.client_secret(integration) is not None,
        has_key=await tx.integrations.client_key(integration) is not None,
    )


def _require_admin(caller: Caller, name: str) -> None:
    require(caller, Action.ADMIN, integration=name, subject=None, hidden=False)


@router.put("/v1/integrations/{name}", status_code=200)
async def put(
    name: Slug, body: IntegrationBody, response: Response, parts: With, caller: Asking, asked: By
) -> IntegrationView:
    """Create or change an integration. One whose endpoints are discovered waits for a worker."""
    _require_admin(caller, name)
    now = parts.clock.now()
    key, certificate = key_of(body), certificate_of(body, now)
    async with parts.store.write() as tx:
        spec = await spec_named(tx, parts.registry, caller.tenant, body.provider)
        check(spec, body)
        before = await tx.integrations.by_name(caller.tenant, name)
        if before is None:
            after = created(spec, body, caller.tenant, name, now)
            await tx.integrations.put(
                after, body.client_secret, expected=None, client_key=key, client_certificate=certificate
            )
        else:
            after = await changed(tx, spec, body, before, now)
            public = body.client_auth == "none" and body.client_secret is None and not (key or certificate)
            after = await tx.integrations.put(
                after,
                body.client_secret,
                expected=before.revision,
                client_key=key,
                client_certificate=certificate,
            )
            if public:
                after = await tx.integrations.drop_client_secret(after, expected=after.revision)
            await tell_failing(tx, after, asked, now)
        if body.registration is not None and after.state is IntegrationState.DISCOVERING:
            after = await _to_register(tx, parts, after, body.initial_access_token)
        await _record(tx, AuditAction.INTEGRATION_PUT, after, asked, now)
    parts.relay.nudge()
    if after.state is IntegrationState.DISCOVERING:
        await _discover(parts, after, asked)
    response.status_code = 201 if before is None else 200
    async with parts.store.read() as tx:
        written = await tx.integrations.get(caller.tenant, after.id)
        if written is None:
            raise Failure(Code.NOT_FOUND)
        return await _view(tx, parts, written)


@router.post("/v1/integrations/{name}/rotate-secret", response_model=IntegrationView)
async def rotate_secret(
    name: Slug,
    body: RotateSecretBody,
    request: Request,
    parts: With,
    caller: Asking,
    asked: By,
    key: IdempotencyKey = None,
) -> Response:
    """Put a new client secret first, and keep the one before it for `overlap_s` seconds.

    What the provider refuses with the one is tried with the other, so that no lease fails
    whichever of the two it knows. `roll_back` makes the one before the only one again.
    """
    _require_admin(caller, name)
    once = Once(request, caller, key, body.model_copy(update={"client_secret": None}))  # no hash of it

    async def rotate(tx: Tx) -> Answer:
        now = parts.clock.now()
        before = await _named(tx, caller, name)
        after = await secret_changed(tx, before, body, now)
        action = AuditAction.SECRET_ROLLED_BACK if body.roll_back else AuditAction.SECRET_ROTATED
        await _record(tx, action, after, asked, now)
        await tell_failing(tx, after, asked, now)
        return Answer.of(200, await _view(tx, parts, after))

    answer = await once.committed(parts, rotate)
    parts.relay.nudge()
    return answer.response()


async def _to_register(tx: Tx, parts: Parts, integration: Integration, initial: Secret | None) -> Integration:
    """Leave it to the worker; of a metadata document the client id is its URL, which is ours to say."""
    if integration.registration is Registration.METADATA_DOCUMENT:
        url = documents.url_of(parts.settings.public_url, integration.id)
        integration = integration.model_copy(update={"client_id": url})
    return await tx.integrations.wants_registration(integration, initial)


async def _discover(parts: Parts, integration: Integration, asked: Asked) -> None:
    """Have a worker read the issuer's metadata. Raises Failure; the row says the same."""
    try:
        async with asyncio.timeout(DISCOVERY_S + 1):
            found = await parts.link.discover(integration.tenant, integration.id, asked, timeout=DISCOVERY_S)
    except Failure:
        raise
    except Exception as error:
        # the worker didn't answer, or its workflow ended in a way the port has no name for
        say(log, logging.WARNING, Event.DISCOVERY_FAILED, type(error).__name__, object=integration.id)
        raise Failure(
            Code.TEMPORAL_UNAVAILABLE, "No worker read the issuer's metadata in time.", retry_after=5.0
        ) from None
    if found.failure is not None:
        raise Failure(found.failure, found.detail, integration=integration.name)


@router.get("/v1/integrations")
async def listed(
    parts: With,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=2000)] = None,
) -> Page[IntegrationView]:
    """Those that the app administers, sorted by name."""
    bound = {"list": "integrations", "app": caller.app.id}
    after = parts.cursors.read(cursor, caller.tenant, **bound)
    async with parts.store.read() as tx:
        found = await tx.integrations.page(caller.tenant, after, limit + 1)
        shown = [await _view(tx, parts, it) for it in found[:limit] if _administers(caller, it.name)]
    following = parts.cursors.following(found, limit, lambda it: it.name, caller.tenant, **bound)
    return Page(items=shown, next_cursor=following)


def _administers(caller: Caller, name: str) -> bool:
    return decide(caller.permits, integration=name, subject=None, action=Action.ADMIN).allowed


@router.get("/v1/integrations/{name}")
async def shown(name: Slug, parts: With, caller: Asking) -> IntegrationView:
    """One integration, with the redirect URI to register at the provider. Never the client secret."""
    _require_admin(caller, name)
    async with parts.store.read() as tx:
        return await _view(tx, parts, await _named(tx, caller, name))


@router.delete("/v1/integrations/{name}", status_code=204)
async def delete(name: Slug, parts: With, caller: Asking, asked: By) -> Response:
    """Delete it with its secret. Refused while it has connections that are not ended."""
    _require_admin(caller, name)
    async with parts.store.write() as tx:
        integration = await _named(tx, caller, name)
        await tx.integrations.delete(caller.tenant, integration.id)
        await _record(tx, AuditAction.INTEGRATION_DELETED, integration, asked, parts.clock.now())
    return Response(status_code=204)


async def _named(tx: Tx, caller: Caller, name: str) -> Integration:
    found = await tx.integrations.by_name(caller.tenant, name)
    if found is None:
        raise Failure(Code.NOT_FOUND)
    return found


async def _record(tx: Tx, action: AuditAction, it: Integration, asked: Asked, now: datetime) -> None:
    entry = AuditEntry(
        tenant=it.tenant,
        at=now,
        action=action,
        object=it.id,
        asked=asked,
        detail={"integration": it.name, "provider": it.provider, "client_id": it.client_id},
    )
    await audit.append(tx, entry)
