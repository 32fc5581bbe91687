"""Which flow a new connection uses, and whether the operator allows it."""

from evergrant_server.api.http.context import ApiContext
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from providers.definition.schema import ProviderSpec
from providers.requests.dpop import with_dpop_binding

ALLOW_SETTING = "EVERGRANT_ALLOW_TOKENS_IN_BROWSER"
_NEEDS_CREDENTIALS = (Flow.TOKEN_EXCHANGE, Flow.API_KEY, Flow.BASIC)


def usable_flow(spec: ProviderSpec, integration: Integration, requested: Flow | None) -> Flow:
    """The requested or default flow. Raises Failure INVALID_REQUEST for one that the provider lacks."""
    flow = requested or _default_flow(spec)
    with_dpop_binding(spec, integration, None).require_usable(flow)
    return flow


def _default_flow(spec: ProviderSpec) -> Flow:
    """The definition's first flow that needs no credential in the request; implicit only as the last."""
    known = [Flow(mode) for mode in spec.auth_modes if mode in set(Flow)]
    known.sort(key=lambda flow: flow is Flow.IMPLICIT)  # RFC 9700 section 2.1.2
    return next((flow for flow in known if flow not in _NEEDS_CREDENTIALS), Flow.AUTHORIZATION_CODE)


def require_flow_allowed(flow: Flow, api: ApiContext, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
    """Raise Failure `code`, naming the setting, for the implicit flow unless the operator allows it."""
    if flow is Flow.IMPLICIT and not api.settings.allow_tokens_in_browser:
        detail = f"The flow implicit is off: {ALLOW_SETTING} allows tokens in the browser."
        raise Failure(code, detail, field="flow", setting=ALLOW_SETTING)
