"""The implicit flow (RFC 6749 section 4.2): off by default, and the page that posts its fragment.

RFC 9700 section 2.1.2 advises against the flow; a setting of the operator turns it on.
"""

from starlette.responses import Response

from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.session import SubjectPages, provider_display_name
from evergrant_server.console.pages import FRAGMENT_SCRIPT_HASH
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration


async def fragment_page(pages: SubjectPages, integration: Integration) -> Response | None:
    """The page for a callback without a query; None for a provider without the implicit flow.

    Raises Failure CALLBACK_INVALID if the operator doesn't allow the flow.
    """
    api = pages.api
    async with api.store.read() as tx:
        spec = await integration_spec(tx, api.registry, integration)
    if Flow.IMPLICIT.value not in spec.auth_modes:
        return None
    require_flow_allowed(Flow.IMPLICIT, api, ErrorCode.CALLBACK_INVALID)
    return html_response(
        pages.templates.fragment(provider=provider_display_name(spec, integration)),
        script=FRAGMENT_SCRIPT_HASH,
    )
