"""The filter of an echoed credential: each encoding, every cut of the stream, and only a tail is held."""

import base64
import json
from random import Random
from urllib.parse import quote

import pytest

from evergrant_server.gateway.proxy.echo import EchoFilter, encodings

TOKEN = "ya29.a0Af/H6+SMB_x-9k~Qz=Yw7/tt+ZZ"
FORMS = encodings(TOKEN)


def filtered(pieces: list[bytes]) -> tuple[bytes, int]:
    it = EchoFilter(FORMS)
    out = b"".join([*map(it.feed, pieces), it.end()])
    return out, it.found


@pytest.mark.parametrize(
    "echo",
    [
        TOKEN.encode(),
        quote(TOKEN, safe="").encode(),
        quote(TOKEN, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d").encode(),
        quote(TOKEN).encode(),
        json.dumps(TOKEN).encode(),
        json.dumps(TOKEN).replace("/", "\\/").encode(),
        TOKEN.replace("+", "\\u002b").encode(),
        TOKEN.replace("/", "\\u002F").encode(),
        *(base64.b64encode(b"x" * before + TOKEN.encode() + b"yz") for before in range(4)),
        *(base64.urlsafe_b64encode(b"Bearer "[before:] + TOKEN.encode()) for before in range(4)),
        base64.b64encode(TOKEN.encode()).rstrip(b"="),
    ],
)
def test_every_encoding_is_cut_at_every_border(echo: bytes):
    whole = b'{"you sent": "' + echo + b'", "more": 1}'
    for at in range(len(whole) + 1):
        out, found = filtered([whole[:at], whole[at:]])
        assert (len(out), found) == (len(whole), 1), at
        assert out.count(b"*") >= len(TOKEN) - 2
    out, found = filtered([whole[at : at + 1] for at in range(len(whole))])
    assert (len(out), found) == (len(whole), 1)


def test_other_text_passes_unchanged_and_at_once():
    random = Random(3)
    for _ in range(300):
        text = "".join(random.choice(TOKEN[:6] + " x") for _ in range(200)).encode()
        pieces, at = [], 0
        while at < len(text):
            size = random.randint(1, 40)
            pieces.append(text[at : at + size])
            at += size
        assert filtered(pieces) == (text, 0)
    it = EchoFilter(FORMS)
    assert it.feed(b"data: 1\n\n") == b"data: 1\n\n", "an event isn't held back"
    assert it.feed(b"data: ya29.") == b"data: ", "but what may begin the credential is"
    assert it.feed(b"x") == b"ya29.x"
    assert it.feed(b"ya2") + it.end() == b"ya2"


def test_a_short_credential_cuts_no_innocent_text():
    assert EchoFilter(encodings("abc")).feed(b"abc abcdef") == b"abc abcdef"
