"""The strict reading of requests: what is right passes, however it is cut."""

import h11
import pytest

from evergrant_server.gateway.server import MOST_HEAD, StrictConnection

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"4\r\na\nb\r\r\n5;ext=1\r\n\r\n\r\nc\r\n0\r\n\r\n"


def events(data: bytes, size: int) -> list[object]:
    connection = StrictConnection(h11.SERVER, MOST_HEAD)
    found: list[object] = []
    for at in range(0, len(data), size):
        connection.receive_data(data[at : at + size])
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            found.append(event)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_line_feeds_in_a_chunked_body_are_content(size: int):
    found = events(HEAD + BODY, size)
    assert isinstance(found[0], h11.Request)
    assert isinstance(found[-1], h11.EndOfMessage)
    assert b"".join(bytes(it.data) for it in found if isinstance(it, h11.Data)) == b"a\nb\r\r\n\r\nc"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "wrong", [BODY[:-2] + b"\n", BODY.replace(b"5;ext=1\r\n", b"5\n"), BODY[:-2] + b"X: y\r\n\r\n"]
)
def test_framing_with_two_readings_is_refused(size: int, wrong: bytes):
    with pytest.raises(h11.RemoteProtocolError):
        events(HEAD + wrong + b"1\r\nx", size)
