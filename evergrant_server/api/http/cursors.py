"""One page of a list: opaque cursors, authenticated with HMAC and bound to tenant, list and filters."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from evergrant_server.api.http.models import Page
from evergrant_server.crypto import KeyRing
from evergrant_server.problems import invalid_request

RowT = TypeVar("RowT")
ViewT = TypeVar("ViewT")

_TAG_BYTES = 16
_MAX_LENGTH = 2048


def moment_place(at: datetime, id: str) -> str:
    """The place of a row in a list by moment and id."""
    return f"{at.isoformat()}/{id}"


class Listing:
    """The page that a request asks for: `most` rows after the place `after`, None for the first page.

    `bound` names the list and its filters. Raises Failure INVALID_REQUEST for a cursor of another list.
    """

    def __init__(
        self, ring: KeyRing, tenant: str, bound: Mapping[str, object], limit: int, cursor: str | None
    ) -> None:
        self._key = ring.derive("api.cursor")
        self._bound = [tenant, dict(bound)]
        self.limit = limit
        self.most = limit + 1  # the row behind a page shows that there is another page
        self.after = None if cursor is None else self._decode(cursor)

    def page(self, items: Sequence[ViewT], rows: Sequence[RowT], place: Callable[[RowT], str]) -> Page[ViewT]:
        """The page of the `items` that show these `rows`; each row's place follows the place before it."""
        return Page(items=list(items[: self.limit]), next_cursor=self.next_cursor(rows, place))

    def next_cursor(self, rows: Sequence[RowT], place: Callable[[RowT], str]) -> str | None:
        """The cursor of the next page; None where these rows are all."""
        return self.cursor_after(place(rows[self.limit - 1])) if len(rows) > self.limit else None

    def cursor_after(self, place: str) -> str:
        body = place.encode()
        return base64.urlsafe_b64encode(self._tag(body) + body).decode().rstrip("=")

    @property
    def after_moment(self) -> tuple[datetime, str] | None:
        """The place after which the page begins, in a list by `moment_place`."""
        if self.after is None:
            return None
        at, _, id = self.after.partition("/")
        return datetime.fromisoformat(at), id

    def _decode(self, cursor: str) -> str:
        padded = cursor[:_MAX_LENGTH] + "=" * (-len(cursor) % 4)
        try:
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(body)):
            raise invalid_request("cursor", "The cursor doesn't belong to this list.")
        return body.decode()

    def _tag(self, body: bytes) -> bytes:
        bound: list[Any] = [*self._bound, body.decode(errors="replace")]
        text = json.dumps(bound, sort_keys=True, default=str)
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()[:_TAG_BYTES]
