"""An MCP server on loopback that takes no request without a token, with its authorization server (both
scripted: see `scripted_provider`).

`challenge` is its 401's header; `about` is put over its RFC 9728 document, which is at both well-known URLs
and at `/about`; None removes a field, or the document.
"""

from typing import Any
from urllib.parse import urlsplit

from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.providers.scripted_server import Call

_WELL_KNOWN = "/.well-known/oauth-protected-resource"


class ScriptedMcp(ScriptedProvider):
    def __init__(self, **metadata: Any) -> None:
        super().__init__(metadata=metadata)
        self.challenge = "Bearer"
        self.about: dict[str, Any] | None = {}

    @property
    def mcp(self) -> str:
        """The MCP server's URL."""
        return f"{self.origin}/mcp"

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        path = urlsplit(call.target).path
        if path == "/mcp":
            return 401, {"WWW-Authenticate": self.challenge}, {"error": "invalid_token"}
        if path not in (_WELL_KNOWN, f"{_WELL_KNOWN}/mcp", "/about"):
            return super()._act(call)
        if self.about is None:
            return 404, {}, None
        document = {"resource": self.mcp, "authorization_servers": [self.issuer], **self.about}
        said = {name: value for name, value in document.items() if value is not None}
        return 200, {"Content-Type": "application/json"}, said
