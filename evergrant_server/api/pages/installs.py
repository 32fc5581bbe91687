"""Installs that begin at the provider: its callback has no state, so that no consent is known (ADR 0032)."""

import logging

from starlette.responses import Response

from evergrant_server.access.context import integration_spec
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.callback_checks import parse_query
from evergrant_server.api.pages.names import provider_display_name
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import IntegrationId
from evergrant_server.core.integrations import Integration
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.definition.schema import ProviderSpec
from providers.definition.templates import checked_params, fill_template

log = logging.getLogger("evergrant.api")


async def install_page(pages: SubjectPages, integration_id: IntegrationId, raw: bytes) -> Response | None:
    """The page that says where our own flow begins; None for a callback with a state, or another flow.

    The sender of a browser chooses its code (RFC 6749 section 10.12), so it is neither stored nor
    exchanged, and the page depends on nothing but the integration.
    """
    try:
        if any(name == "state" for name, _ in parse_query(raw)):
            return None
    except Failure:  # the callback's own checks refuse and count it
        return None
    async with pages.api.store.read() as tx:
        integration = await tx.integrations.find_in_any_tenant(integration_id)
        if integration is None:
            return None
        await tx.tenants.require_enabled(integration.tenant)
        spec = await integration_spec(tx, pages.api.registry, integration)
    if spec.flow != "install":
        return None
    metrics.count(metrics.CALLBACKS_REFUSED, "begun_at_provider")
    log_event(log, logging.INFO, LogEvent.CALLBACK_REFUSED, "it began at the provider, without a state")
    name = provider_display_name(spec, integration)
    page = pages.templates.install(provider=name, start_url=_start_url(spec, integration))
    return html_response(page, framed=True)


def _start_url(spec: ProviderSpec, integration: Integration) -> str | None:
    """The app's page that begins our own flow, if the integration names one."""
    if spec.install_start_url is None:
        return None
    try:
        return fill_template(spec.install_start_url, checked_params(spec, integration.params), spec)
    except Failure:
        return None
