"""`/v1/integrations`: OAuth clients at providers, each with its own redirect URI."""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import (
    ApiDep,
    CallerDep,
    ContextDep,
    IdempotencyKey,
    require_permit,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.problems import require_found
from evergrant_server.api.http.requests import PageCursor, PageLimit, Slug
from evergrant_server.api.http.responses import Page
from evergrant_server.api.integrations import client_metadata
from evergrant_server.api.integrations.changes import (
    change_client_secret,
    changed_integration,
    new_integration,
    retry_failing_connections,
)
from evergrant_server.api.integrations.checks import check_body, client_certificate_of, client_key_of
from evergrant_server.api.integrations.definitions import integration_spec, spec_by_name
from evergrant_server.api.integrations.models import IntegrationBody, IntegrationView, RotateSecretBody
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.secret import Secret
from evergrant_server.policy import decide
from evergrant_server.store import Transaction
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["integrations"])

DISCOVERY_TIMEOUT_S = 15.0


async def _view(tx: Transaction, api: ApiContext, integration: Integration) -> IntegrationView:
    with suppress(Failure):  # without a definition the stored rules are shown
        integration = integration.with_provider_rules(
            (await integration_spec(tx, api.registry, integration)).refresh_rules()
        )
    return IntegrationView.of(
        integration,
        redirect_uri=api.redirect_uri(integration.id),
        has_secret=await tx.integrations.client_secret(integration) is not None,
        has_key=await tx.integrations.client_key(integration) is not None,
    )


def _require_admin(caller: Caller, name: str) -> None:
    require_permit(caller, Action.ADMIN, integration=name, subject=None, hidden=False)


@router.put("/v1/integrations/{name}", status_code=200)
async def put_integration(
    name: Slug,
    body: IntegrationBody,
    response: Response,
    api: ApiDep,
    caller: CallerDep,
    context: ContextDep,
) -> IntegrationView:
    """Create or change an integration. Waits for a worker if the endpoints are discovered."""
    _require_admin(caller, name)
    now = api.clock.now()
    key, certificate = client_key_of(body), client_certificate_of(body, now)
    async with api.store.write() as tx:
        spec = await spec_by_name(tx, api.registry, caller.tenant, body.provider)
        check_body(spec, body)
        before = await tx.integrations.by_name(caller.tenant, name)
        if before is None:
            after = new_integration(spec, body, caller.tenant, name, now)
            await tx.integrations.put(
                after, body.client_secret, expected=None, client_key=key, client_certificate=certificate
            )
        else:
            after = await changed_integration(tx, spec, body, before, now)
            public = body.client_auth == "none" and body.client_secret is None and not (key or certificate)
            after = await tx.integrations.put(
                after,
                body.client_secret,
                expected=before.revision,
                client_key=key,
                client_certificate=certificate,
            )
            if public:
                after = await tx.integrations.delete_client_credentials(after, expected=after.revision)
            await retry_failing_connections(tx, after, context, now)
        if body.registration is not None and after.state is IntegrationState.DISCOVERING:
            after = await _request_registration(tx, api, after, body.initial_access_token)
        await _record(tx, AuditAction.INTEGRATION_PUT, after, context, now)
    api.relay.notify()
    if after.state is IntegrationState.DISCOVERING:
        await _discover(api, after, context)
    response.status_code = 201 if before is None else 200
    async with api.store.read() as tx:
        written = await tx.integrations.get(caller.tenant, after.id)
        if written is None:
            raise Failure(ErrorCode.NOT_FOUND)
        return await _view(tx, api, written)


@router.post("/v1/integrations/{name}/rotate-secret", response_model=IntegrationView)
async def rotate_client_secret(
    name: Slug,
    body: RotateSecretBody,
    request: Request,
    api: ApiDep,
    caller: CallerDep,
    context: ContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Use a new client secret first, and keep the previous one for `overlap_s` seconds.

    Workers repeat a refused request with the other secret, so that no lease fails whichever of the
    two the provider accepts. `roll_back` makes the previous secret the only one again.
    """
    _require_admin(caller, name)
    # the secret is not hashed
    command = IdempotentCommand(request, caller, key, body.model_copy(update={"client_secret": None}))

    async def rotate(tx: Transaction) -> CommandResponse:
        now = api.clock.now()
        before = await _require_integration(tx, caller, name)
        after = await change_client_secret(tx, before, body, now)
        action = AuditAction.SECRET_ROLLED_BACK if body.roll_back else AuditAction.SECRET_ROTATED
        await _record(tx, action, after, context, now)
        await retry_failing_connections(tx, after, context, now)
        return CommandResponse.from_view(200, await _view(tx, api, after))

    return (await command.run(api, rotate)).response()


async def _request_registration(
    tx: Transaction, api: ApiContext, integration: Integration, initial: Secret | None
) -> Integration:
    """Store a pending registration. The client id of a metadata document is its URL."""
    if integration.registration is RegistrationMethod.METADATA_DOCUMENT:
        url = client_metadata.client_metadata_url(api.settings.public_url, integration.id)
        integration = integration.model_copy(update={"client_id": url})
    return await tx.integrations.request_registration(integration, initial)


async def _discover(api: ApiContext, integration: Integration, context: RequestContext) -> None:
    """Have a worker read the issuer's metadata. Raises its Failure, which the row holds too."""
    try:
        async with asyncio.timeout(DISCOVERY_TIMEOUT_S + 1):
            found = await api.link.discover(
                integration.tenant, integration.id, context, timeout=DISCOVERY_TIMEOUT_S
            )
    except Failure:
        raise
    except Exception as error:
        # no worker answered, or the workflow ended with an unexpected error
        log_event(
            log, logging.WARNING, LogEvent.DISCOVERY_FAILED, type(error).__name__, object=integration.id
        )
        raise Failure(
            ErrorCode.TEMPORAL_UNAVAILABLE, "No worker read the issuer's metadata in time.", retry_after=5.0
        ) from None
    if found.failure is not None:
        raise Failure(found.failure, found.detail, integration=integration.name)


@router.get("/v1/integrations")
async def list_integrations(
    api: ApiDep,
    caller: CallerDep,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[IntegrationView]:
    """The integrations that the app administers, sorted by name."""
    bound = {"list": "integrations", "app": caller.app.id}
    after = api.cursors.decode(cursor, caller.tenant, **bound)
    async with api.store.read() as tx:
        found = await tx.integrations.page(caller.tenant, after, limit + 1)
        shown = [await _view(tx, api, it) for it in found[:limit] if _administers(caller, it.name)]
    next_cursor = api.cursors.next_cursor(found, limit, lambda it: it.name, caller.tenant, **bound)
    return Page(items=shown, next_cursor=next_cursor)


def _administers(caller: Caller, name: str) -> bool:
    return decide(caller.permits, integration=name, subject=None, action=Action.ADMIN).allowed


@router.get("/v1/integrations/{name}")
async def get_integration(name: Slug, api: ApiDep, caller: CallerDep) -> IntegrationView:
    """An integration, with the redirect URI to register at the provider. Never its client secret."""
    _require_admin(caller, name)
    async with api.store.read() as tx:
        return await _view(tx, api, await _require_integration(tx, caller, name))


@router.delete("/v1/integrations/{name}", status_code=204)
async def delete_integration(name: Slug, api: ApiDep, caller: CallerDep, context: ContextDep) -> Response:
    """Delete the integration with its secret. Refused while it has live connections."""
    _require_admin(caller, name)
    async with api.store.write() as tx:
        integration = await _require_integration(tx, caller, name)
        await tx.integrations.delete(caller.tenant, integration.id)
        await _record(tx, AuditAction.INTEGRATION_DELETED, integration, context, api.clock.now())
    return Response(status_code=204)


async def _require_integration(tx: Transaction, caller: Caller, name: str) -> Integration:
    return require_found(await tx.integrations.by_name(caller.tenant, name))


async def _record(
    tx: Transaction, action: AuditAction, it: Integration, context: RequestContext, now: datetime
) -> None:
    await record(
        tx,
        it.tenant,
        action,
        it.id,
        context,
        now,
        integration=it.name,
        provider=it.provider,
        client_id=it.client_id,
    )
