"""Opaque cursors: where a list goes on, signed, and good for the same list only."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyRing

T = TypeVar("T")

_TAG_BYTES = 16
_MAX_LENGTH = 2048


class Cursors:
    """Writes and reads cursors. One of another tenant, list or filter is refused, as is an edited one."""

    def __init__(self, ring: KeyRing) -> None:
        self._key = ring.derive("api.cursor")

    def encode(self, after: str, tenant: str, **list_of: Any) -> str:
        body = after.encode()
        return base64.urlsafe_b64encode(self._tag(body, tenant, list_of) + body).decode().rstrip("=")

    def decode(self, cursor: str | None, tenant: str, **list_of: Any) -> str | None:
        """Where to go on. Raises Failure INVALID_REQUEST."""
        if cursor is None:
            return None
        try:
            raw = base64.b64decode(
                cursor[:_MAX_LENGTH] + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True
            )
        except (binascii.Error, ValueError):
            raw = b""
        tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(body, tenant, list_of)):
            raise Failure(
                ErrorCode.INVALID_REQUEST, "The cursor doesn't belong to this list.", field="cursor"
            )
        return body.decode()

    def next_cursor(
        self, found: Sequence[T], limit: int, place: Callable[[T], str], tenant: str, **list_of: Any
    ) -> str | None:
        """The cursor of the next page. One more than `limit` was asked for: without it this is the last."""
        return self.encode(place(found[limit - 1]), tenant, **list_of) if len(found) > limit else None

    def _tag(self, body: bytes, tenant: str, list_of: dict[str, Any]) -> bytes:
        bound = json.dumps([tenant, list_of, body.decode(errors="replace")], sort_keys=True, default=str)
        return hmac.new(self._key, bound.encode(), hashlib.sha256).digest()[:_TAG_BYTES]
