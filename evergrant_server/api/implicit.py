"""The implicit flow (RFC 6749 section 4.2): whether it may be used, and the page that its fragment comes to.

RFC 9700 section 2.1.2 advises against it, so it is off until an operator says otherwise.
"""

from starlette.responses import Response

from evergrant_server.api.browsers import page
from evergrant_server.api.definitions import spec_of
from evergrant_server.api.parts import Parts
from evergrant_server.api.subjects import Subjects, known_as
from evergrant_server.console.pages import FRAGMENT_HASH
from evergrant_server.core.access import Integration
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow

SETTING = "EVERGRANT_ALLOW_TOKENS_IN_BROWSER"


def require_allowed(flow: Flow, parts: Parts, code: Code = Code.INVALID_REQUEST) -> None:
    """Raise Failure `code`, which names the setting, for a flow that the operator doesn't allow."""
    if flow is Flow.IMPLICIT and not parts.settings.allow_tokens_in_browser:
        detail = f"The flow implicit is off: {SETTING} allows tokens in the browser."
        raise Failure(code, detail, field="flow", setting=SETTING)


async def fragment_page(subjects: Subjects, integration: Integration) -> Response | None:
    """What a browser gets that brings no query; None where nobody brings tokens.

    Raises Failure CALLBACK_INVALID where the operator doesn't allow it.
    """
    parts = subjects.parts
    async with parts.store.read() as tx:
        spec = await spec_of(tx, parts.registry, integration)
    if Flow.IMPLICIT.value not in spec.auth_modes:
        return None
    require_allowed(Flow.IMPLICIT, parts, Code.CALLBACK_INVALID)
    return page(subjects.pages.fragment(provider=known_as(spec, integration)), script=FRAGMENT_HASH)
