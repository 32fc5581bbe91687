"""`/v1/integrations`: OAuth clients at providers, each with its own redirect URI."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, fingerprint, use_approval
from evergrant_server.access.context import integration_spec, spec_by_name
from evergrant_server.api.http.call import ApiCall, ApiDep, Call, Change, Command, CommandResponse
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, Slug
from evergrant_server.api.integrations.changes import (
    change_client_secret,
    change_facts,
    changed_integration,
    changed_secrets,
    integration_facts,
    is_dangerous_change,
    new_integration,
    retry_failing_connections,
    secrets_of,
    without_secrets,
)
from evergrant_server.api.integrations.checks import (
    check_body,
    client_certificate_of,
    client_key_of,
    login_rule,
    pinned_login,
    require_binding_allowed,
    require_identity_provider,
    with_default_registration,
)
from evergrant_server.api.integrations.models import (
    FailedExchangeView,
    IntegrationBody,
    IntegrationView,
    RotateSecretBody,
)
from evergrant_server.audit.exchanges import Exchange, newest_exchanges
from evergrant_server.core.access import READING_ACTIONS, Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, is_id
from evergrant_server.core.integrations import Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.messages.integrations import DiscoverEndpoints
from evergrant_server.core.messages.jobs import DISCOVER_ENDPOINTS
from evergrant_server.policy import Target
from evergrant_server.problems import require_found
from evergrant_server.settings.types import CLIENT_METADATA_PATH
from evergrant_server.store import Transaction
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.definition.schema import ProviderSpec
from providers.registration.client_metadata import client_metadata, client_metadata_url, scopes_to_register

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["integrations"])
metadata_router = APIRouter(tags=["pages"])

DISCOVERY_TIMEOUT_S = 15.0


async def _view(tx: Transaction, call: ApiCall, integration: Integration) -> IntegrationView:
    used_until = None
    with suppress(Failure):  # without a definition the stored rules are shown
        spec = await integration_spec(tx, call.api.registry, integration)
        integration = integration.with_provider_rules(spec.refresh_rules())
        used_until = await _share_used_until(tx, call, integration, spec)
    return IntegrationView.of(
        integration,
        redirect_uri=call.api.redirect_uri(integration.id),
        has_client_secret=await tx.integrations.client_secret(integration) is not None,
        has_client_key=await tx.integrations.client_key(integration) is not None,
        refreshes_postponed_until=used_until,
    )


async def _share_used_until(
    tx: Transaction, call: ApiCall, integration: Integration, spec: ProviderSpec
) -> datetime | None:
    if spec.token_limit is None or (share := spec.token_limit.share) is None:
        return None
    until = await tx.attempts.share_used_until(integration.tenant, integration.id, share)
    return until if until is not None and until > call.api.clock.now() else None


@router.put("/v1/integrations/{name}", status_code=200)
@dangerous("a new one, and each change but one of default scopes and refresh rules")
async def put_integration(
    name: Slug, body: IntegrationBody, response: Response, call: Change
) -> IntegrationView:
    """Create or change an integration. Waits for a worker if the endpoints are discovered."""
    target = await call.integration_target(name, body.provider)
    for provider in {target.provider, body.provider}:
        call.require_permit(*call.changing(*secrets_of(body).values()), of=target._replace(provider=provider))
    require_binding_allowed(body.binding, call.api)

    async def write(tx: Transaction) -> tuple[Integration | None, Integration, IntegrationView]:
        spec = await spec_by_name(tx, call.api.registry, call.tenant, body.provider)
        sent = with_default_registration(spec, body)
        before, after = await _changed(tx, call, spec, name, sent)
        approved: dict[str, str] = {}
        if await is_dangerous_change(tx, before, after, sent):
            facts = await change_facts(tx, call, before, after, sent)
            approved = await use_approval(tx, call, without_secrets(sent), facts)
        if call.dry_run is not None and before is not None:
            call.dry_run.note_secrets(await changed_secrets(tx, before, sent, call.now))
        after = await _write(tx, call, sent, before, after)
        await _record(tx, call, AuditAction.INTEGRATION_PUT, after, approved)
        return before, after, await _view(tx, call, after)

    before, after, view = await call.write(write)
    response.status_code = 201 if before is None else 200
    if call.dry_run is not None:
        return view
    if after.state is IntegrationState.DISCOVERING:
        await _discover(call, after)
    async with call.api.store.read() as tx:
        return await _view(tx, call, require_found(await tx.integrations.get(call.tenant, after.id)))


async def _changed(
    tx: Transaction, call: ApiCall, spec: ProviderSpec, name: str, body: IntegrationBody
) -> tuple[Integration | None, Integration]:
    """The integration before the change, if there is one, and after it. Raises Failure INVALID_REQUEST."""
    check_body(spec, body)
    if (param := spec.api_base_url_param) in body.params:
        call.api.require_endpoint(f"params.{param}", body.params[param])  # names are resolved at each call
    login = await pinned_login(tx, call.tenant, login_rule(body))
    await require_identity_provider(tx, call, name, body.identity_provider)
    before = await tx.integrations.by_name(call.tenant, name)
    if before is None:
        return None, new_integration(spec, body, login, call.tenant, name, call.now)
    return before, await changed_integration(tx, spec, body, login, before, call.now)


async def _write(
    tx: Transaction, call: ApiCall, body: IntegrationBody, before: Integration | None, after: Integration
) -> Integration:
    """Write the integration with its credentials, and what follows: retries and a registration."""
    key, certificate = client_key_of(body), client_certificate_of(body, call.now)
    after = await tx.integrations.put(
        after,
        body.client_secret,
        expected=None if before is None else before.revision,
        client_key=key,
        client_certificate=certificate,
    )
    if before is not None:
        if body.client_auth == "none" and body.client_secret is None and not (key or certificate):
            after = await tx.integrations.delete_client_credentials(after, expected=after.revision)
        await retry_failing_connections(tx, after, call.context, call.now)
    if body.registration is not None and not after.client_id:
        if after.registration is RegistrationMethod.METADATA_DOCUMENT:
            client_id = client_metadata_url(call.api.settings.client_metadata_url, after.id)
            after = after.__replace__(client_id=client_id)
        after = await tx.integrations.request_registration(after, body.initial_access_token)
    return after


@router.post("/v1/integrations/{name}/rotate-secret", response_model=IntegrationView)
@dangerous("another secret than the one that is stored, and the way back")
async def rotate_client_secret(name: Slug, body: RotateSecretBody, call: Command) -> Response:
    """Use a new client secret or signing key first, and keep the previous one for `overlap_s` seconds.

    Workers repeat a refused request with the other one, so that no lease fails whichever of the
    two the provider accepts. `roll_back` makes the previous one the only one again.
    """
    call.require_permit(Action.ADMIN, of=await call.integration_target(name))
    without_secret = body.__replace__(client_secret=None, client_key=None)

    async def rotate(tx: Transaction) -> CommandResponse:
        before = await _require_integration(tx, call, name)
        after = await change_client_secret(tx, before, body, call.now)
        approved: dict[str, str] = {}
        if after != before:
            facts = {
                "integration": await integration_facts(tx, call.api.registry, before),
                "client_secret": fingerprint(call, body.client_secret),
                "client_key": fingerprint(call, body.client_key and body.client_key.private),
            }
            approved = await use_approval(tx, call, without_secret, facts)
        action = AuditAction.SECRET_ROLLED_BACK if body.roll_back else AuditAction.SECRET_ROTATED
        await _record(tx, call, action, after, approved)
        await retry_failing_connections(tx, after, call.context, call.now)
        return CommandResponse.of(await _view(tx, call, after))

    return await call.run(without_secret, rotate)  # the secret is not hashed


async def _discover(call: ApiCall, integration: Integration) -> None:
    """Have a worker read the issuer's metadata. Raises its Failure, which the row holds too."""
    tenant, id, limit = integration.tenant, integration.id, DISCOVERY_TIMEOUT_S
    try:
        async with asyncio.timeout(limit + 1):
            discover = DiscoverEndpoints(tenant=tenant, integration_id=id, context=call.context)
            discovery = await call.api.link.run_job(DISCOVER_ENDPOINTS, discover, timeout=limit)
    except Failure:
        raise
    except Exception as error:
        # no worker answered, or the workflow ended with an unexpected error
        log_event(log, logging.WARNING, LogEvent.DISCOVERY_FAILED, type(error).__name__, object=id)
        why = "No worker read the issuer's metadata in time."
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, why, retry_after=5.0) from None
    if discovery.failure is not None:
        raise Failure(discovery.failure, discovery.detail, integration=integration.name)


@router.get("/v1/integrations")
async def list_integrations(
    call: Call, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[IntegrationView]:
    """The integrations that the app administers or audits, sorted by name."""
    listing = call.listing("integrations", limit, cursor, app=call.caller.app.id)
    async with call.api.store.read() as tx:
        integrations = await tx.integrations.page(call.tenant, listing.after, listing.most)
        mine = [
            integration
            for integration in integrations[:limit]
            if call.may_audit(Target(integration.name, integration.provider))
        ]
        exchanges = await newest_exchanges(tx, call.tenant) if mine else {}
        shown = [with_exchange(await _view(tx, call, integration), call, exchanges) for integration in mine]
    return listing.page(shown, integrations, lambda integration: integration.name)


@router.get("/v1/integrations/{name}")
async def get_integration(name: Slug, call: Call) -> IntegrationView:
    """An integration, with the redirect URI to register at the provider. Never its client secret."""
    call.require_permit(*READING_ACTIONS, of=await call.integration_target(name))
    async with call.api.store.read() as tx:
        view = await _view(tx, call, await _require_integration(tx, call, name))
        return with_exchange(view, call, await newest_exchanges(tx, call.tenant))


@router.delete("/v1/integrations/{name}", status_code=204)
async def delete_integration(name: Slug, call: Call) -> Response:
    """Delete the integration with its secret. Refused while it has live connections."""
    call.require_permit(Action.ADMIN, of=await call.integration_target(name))

    async def delete(tx: Transaction) -> None:
        integration = await _require_integration(tx, call, name)
        await tx.integrations.delete(call.tenant, integration.id)
        await _record(tx, call, AuditAction.INTEGRATION_DELETED, integration)

    await call.write(delete)
    return Response(status_code=204)


async def _require_integration(tx: Transaction, call: ApiCall, name: str) -> Integration:
    return require_found(await tx.integrations.by_name(call.tenant, name))


async def _record(
    tx: Transaction,
    call: ApiCall,
    action: AuditAction,
    integration: Integration,
    approved: Mapping[str, str] | None = None,
) -> None:
    detail: dict[str, object] = {
        "integration": integration.name,
        "provider": integration.provider,
        "client_id": integration.client_id,
    }
    if integration.login is not None:
        detail |= {"login": integration.login.integration, "login_issuer": integration.login.issuer}
    await call.record(tx, action, integration.id, **detail, **(approved or {}))


@metadata_router.get("/oauth/client/{integration_id}")
async def get_client_metadata(integration_id: str, response: Response, api: ApiDep) -> dict[str, Any]:
    """The public metadata of one integration's client."""
    # draft-ietf-oauth-client-id-metadata-document, section 4
    if not is_id(integration_id, "int"):
        raise Failure(ErrorCode.NOT_FOUND)
    async with api.store.read() as tx:
        integration = await tx.integrations.find_in_any_tenant(IntegrationId(integration_id))
    templates = (api.settings.client_metadata_url, api.settings.public_url + CLIENT_METADATA_PATH)
    urls = [client_metadata_url(template, integration_id) for template in templates]
    if integration is None or integration.registration is None or integration.client_id not in urls:
        raise Failure(ErrorCode.NOT_FOUND)
    response.headers["Cache-Control"] = "public, max-age=3600"
    return client_metadata(
        api.redirect_uri(integration.id),
        auth="none",
        scopes=scopes_to_register(integration, integration.endpoints),
        client_id=integration.client_id,
        dpop=integration.dpop is True,
    )


def with_exchange(view: IntegrationView, call: ApiCall, exchanges: Mapping[str, Exchange]) -> IntegrationView:
    """With the newest exchange, if it failed after the integration's last change, which may be the repair."""
    return view.__replace__(failed_exchange=failed_exchange(call, view, exchanges))


def failed_exchange(
    call: ApiCall, integration: IntegrationView | Integration, exchanges: Mapping[str, Exchange]
) -> FailedExchangeView | None:
    """The newest exchange, if it failed after the integration's last change."""
    exchange = exchanges.get(integration.name)
    if exchange is None or exchange.failure is None or exchange.at < integration.changed_at:
        return None
    threshold = call.api.settings.circuit_threshold
    return FailedExchangeView(
        failure=exchange.failure,
        repairer=FAILURES[exchange.failure].repairer,
        at=exchange.at,
        connection_id=exchange.connection,
        unanswered=exchange.unanswered,
        circuit_open=0 < threshold <= exchange.unanswered,
    )
