"""Opaque list cursors, authenticated with HMAC and bound to tenant, list and filters."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from evergrant_server.crypto import KeyRing
from evergrant_server.problems import invalid_request

T = TypeVar("T")

_TAG_BYTES = 16
_MAX_LENGTH = 2048


class Cursors:
    """Encodes and decodes cursors with a key derived from the key ring."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    @property
    def _key(self) -> bytes:
        return self._ring.derive("api.cursor")

    def encode(self, after: str, tenant: str, **list_of: Any) -> str:
        body = after.encode()
        return base64.urlsafe_b64encode(self._tag(body, tenant, list_of) + body).decode().rstrip("=")

    def decode(self, cursor: str | None, tenant: str, **list_of: Any) -> str | None:
        """The position to continue after. Raises Failure INVALID_REQUEST for a cursor of another list."""
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
            raise invalid_request("cursor", "The cursor doesn't belong to this list.")
        return body.decode()

    def next_cursor(
        self, items: Sequence[T], limit: int, place: Callable[[T], str], tenant: str, **list_of: Any
    ) -> str | None:
        """The cursor of the next page. `found` holds `limit` + 1 items unless this page is the last."""
        return self.encode(place(items[limit - 1]), tenant, **list_of) if len(items) > limit else None

    def _tag(self, body: bytes, tenant: str, list_of: dict[str, Any]) -> bytes:
        bound = json.dumps([tenant, list_of, body.decode(errors="replace")], sort_keys=True, default=str)
        return hmac.new(self._key, bound.encode(), hashlib.sha256).digest()[:_TAG_BYTES]
