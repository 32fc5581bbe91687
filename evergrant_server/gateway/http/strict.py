"""Requests with more than one reading (RFC 9112 section 11.2), refused before anything else looks at them."""

import re
from typing import Any

import h11

MOST_HEAD = 32 * 1024  # bytes of a request line and its headers
MOST_HEADERS = 200
_BARE_LF = re.compile(rb"(?<!\r)\n")
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"[^:]+:[ \t]*[0-9]{1,20}[ \t]*")


class StrictConnection(h11.Connection):
    """h11 without its tolerance: it accepts bare LF, folded lines, and a length beside chunks."""

    _last = b""  # the last byte that was read of a body

    def next_event(self) -> Any:
        """As h11's. Raises h11.RemoteProtocolError for a request that another server may read otherwise."""
        before, state = self.trailing_data[0], self.their_state
        if state is h11.IDLE:
            _require_strict_head(before)
        event = super().next_event()
        if state is h11.SEND_BODY:
            self._require_strict_framing(before, event)
        if isinstance(event, h11.Request):
            self._last = b""
            _require_one_reading(event)
        return event

    def _require_strict_framing(self, before: bytes, event: Any) -> None:
        """Check what is around the chunks: their sizes, and the end (RFC 9112 section 7.1)."""
        after = self.trailing_data[0]
        read = before[: len(before) - len(after)]
        ends = isinstance(event, h11.EndOfMessage)
        framing = read if ends else before if event is h11.NEED_DATA else b""
        if _BARE_LF.search(self._last + framing, len(self._last)):
            _refuse("a line ends otherwise than with CR LF")
        if ends and event.headers:
            _refuse("no trailers are read")
        self._last = read[-1:] or self._last


def _refuse(why: str) -> None:
    raise h11.RemoteProtocolError(why, error_status_hint=400)


def _require_strict_head(received: bytes) -> None:
    """Check lines as they arrive: each ends with CR LF, and neither stands alone (RFC 9112 section 2.2)."""
    head = received.partition(_END)[0]
    if len(head) > MOST_HEAD:
        _refuse(f"a head of more than {MOST_HEAD} bytes")
    whole = head.removesuffix(b"\r")
    lines = whole.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        _refuse("a line ends otherwise than with CR LF")
    if len(lines) > MOST_HEADERS + 1:
        _refuse("too many header fields")
    if any(line[:1] in (b" ", b"\t") for line in lines):  # RFC 9112 section 5.2
        _refuse("a folded line")
    lengths = [line for line in lines[1:] if line[:15].lower() == b"content-length:"]
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(line) for line in lengths):
        _refuse("not one Content-Length, in digits")  # RFC 9112 section 6.3: "4, 4" is read by some alone


def _require_one_reading(request: h11.Request) -> None:
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        _refuse("a Transfer-Encoding beside a Content-Length")  # RFC 9112 section 6.1
    if b"upgrade" in names:
        _refuse("no protocol is upgraded to")
    if not request.target.startswith(b"/"):  # RFC 9112 section 3.2: not absolute, authority or asterisk form
        _refuse("only targets that begin with / are served")
