"""`ANY /ext_authz/{path}`: Envoy's HTTP service for external authorization, with the path_prefix /ext_authz.

Envoy sends method, path, Host and Authorization of the app's request, and the headers that its configuration
names. 200 lets the request pass, with those headers of the answer that the configuration names.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from evergrant_server.gateway.envoy.check import AskedCall, EnvoyCheck
from evergrant_server.gateway.envoy.headers import CONNECTION, KEY
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.problems import invalid_request

PREFIX = b"/ext_authz/"
_REMOVE = "x-envoy-auth-headers-to-remove"


class EnvoyHttpService:
    """Answers Envoy's questions over HTTP."""

    def __init__(self, parts: GatewayParts) -> None:
        self._check = EnvoyCheck(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Failure."""
        request = Request(scope)
        query = scope["query_string"]
        asked = AskedCall(
            key=_one_of(request, KEY),
            connection=_one_of(request, CONNECTION),
            method=scope["method"],
            host=_one_of(request, "host"),
            target=scope["raw_path"][len(PREFIX) - 1 :] + (b"?" + query if query else b""),
            headers=request.headers.raw,
        )
        allowed = await self._check.decide(request, asked)
        answer = Response(headers={"Cache-Control": "no-store", _REMOVE: ",".join(allowed.removed)})
        answer.raw_headers += [(name.lower(), value) for name, value in allowed.headers]
        await answer(scope, receive, send)


def _one_of(request: Request, name: str) -> str:
    """The header, "" when it is absent. Raises Failure INVALID_REQUEST when it came twice."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise invalid_request(name, "The header came more than once.")
    return values[0] if values else ""
