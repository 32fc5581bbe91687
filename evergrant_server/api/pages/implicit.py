"""The implicit flow (RFC 6749 section 4.2): whether it may be used, and the page that its fragment comes to.

RFC 9700 section 2.1.2 advises against it, so it is off until an operator says otherwise.
"""

from starlette.responses import Response

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.session import SubjectPages, provider_display_name
from evergrant_server.console.pages import FRAGMENT_SCRIPT_HASH
from evergrant_server.core.access import Integration
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure

ALLOW_SETTING = "EVERGRANT_ALLOW_TOKENS_IN_BROWSER"


def require_flow_allowed(flow: Flow, parts: ApiContext, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
    """Raise Failure `code`, which names the setting, for a flow that the operator doesn't allow."""
    if flow is Flow.IMPLICIT and not parts.settings.allow_tokens_in_browser:
        detail = f"The flow implicit is off: {ALLOW_SETTING} allows tokens in the browser."
        raise Failure(code, detail, field="flow", setting=ALLOW_SETTING)


async def fragment_page(subjects: SubjectPages, integration: Integration) -> Response | None:
    """What a browser gets that brings no query; None where nobody brings tokens.

    Raises Failure CALLBACK_INVALID where the operator doesn't allow it.
    """
    parts = subjects.parts
    async with parts.store.read() as tx:
        spec = await integration_spec(tx, parts.registry, integration)
    if Flow.IMPLICIT.value not in spec.auth_modes:
        return None
    require_flow_allowed(Flow.IMPLICIT, parts, ErrorCode.CALLBACK_INVALID)
    return html_response(
        subjects.pages.fragment(provider=provider_display_name(spec, integration)),
        script=FRAGMENT_SCRIPT_HASH,
    )
