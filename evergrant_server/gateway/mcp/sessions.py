"""A server's session ids, sealed: what a caller holds is of no use to another caller, nor at the server.

The revisions 2025-03-26 to 2025-11-25 have `Mcp-Session-Id`. Its sealed form names the connection and the
caller that the session belongs to, so no process keeps a table of sessions.
"""

import base64
import binascii
import re

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.crypto import AssociatedData, KeyRing, SealingKey, open_sealed, seal

HEADER = b"mcp-session-id"
_VISIBLE = re.compile(rb"[\x21-\x7e]{1,1024}\Z")  # RFC-visible ASCII, as MCP has it; bounded here
_MOST_SEALED = 4096


class SessionIds:
    """The ids of one caller's sessions at one connection's server. `principal` names the caller."""

    def __init__(self, ring: KeyRing, tenant: Tenant, connection_id: ConnectionId, principal: str) -> None:
        self._key = SealingKey("mcp", ring.derive("mcp-session"))
        self._place = AssociatedData(tenant, "mcp-session", connection_id, principal)

    def sealed(self, theirs: bytes) -> bytes:
        """Raises Failure REPLY_UNREADABLE for an id that MCP doesn't allow."""
        if not _VISIBLE.match(theirs):
            raise Failure(ErrorCode.REPLY_UNREADABLE, "The server's session id has characters of no header.")
        return base64.urlsafe_b64encode(seal(self._key, self._place, theirs)).rstrip(b"=")

    def opened(self, ours: bytes) -> bytes:
        """Raises Failure NOT_FOUND for an id that was altered, or is another caller's: begin a session."""
        try:
            if len(ours) > _MOST_SEALED:
                raise ValueError
            sealed = base64.b64decode(ours + b"=" * (-len(ours) % 4), altchars=b"-_", validate=True)
            return open_sealed(self._key, self._place, sealed)
        except (Failure, binascii.Error, ValueError):
            raise Failure(ErrorCode.NOT_FOUND, "No session of yours: initialize again.") from None
