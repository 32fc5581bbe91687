"""Cuts the injected credential out of a response that repeats it.

It finds the credential as it is, URL-encoded, in JSON, and in base64 at each of the three places where a byte
may begin. What a server has encrypted, reversed, split or encoded otherwise gets through. A compressed
response is decoded first: requests ask for no compression, and what is decoded at once is bounded.
"""

import base64
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from urllib.parse import quote

from evergrant_server.core.errors import ErrorCode, Failure

_PLAIN = re.compile(r"[A-Za-z0-9_.~-]+\Z")  # is the same in a URL and in JSON
_ESCAPE = re.compile("%[0-9A-F]{2}")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_SHORTEST = 8  # bytes: shorter forms stand in innocent text
_BEGINNING = 4  # bytes by which a form is looked for at an end: fewer are compared one by one
_MASK = b"*"
PIECE = 64 * 1024  # bytes


def encodings(secret: str) -> tuple[bytes, ...]:
    """The forms in which a credential is looked for, the longest first."""
    forms = set(_in_base64(secret.encode()))
    forms |= {secret.encode()} if _PLAIN.match(secret) else _as_text(secret)
    return tuple(
        sorted((form for form in forms if len(form) >= _SHORTEST), key=lambda form: (-len(form), form))
    )


def _as_text(secret: str) -> set[bytes]:
    quoted, in_json = quote(secret, safe=""), json.dumps(secret)[1:-1]
    texts = {secret, quoted, _ESCAPE.sub(lambda escape: escape.group().lower(), quoted), in_json}
    texts |= {in_json.replace("/", "\\/"), quote(secret, safe="/"), quote(secret, safe="+/=")}
    for char in "+/=&<>":
        texts.add(in_json.replace(char, f"\\u{ord(char):04x}"))
        texts.add(in_json.replace(char, f"\\u{ord(char):04X}"))
    return {text.encode() for text in texts}


def _in_base64(secret: bytes) -> Iterable[bytes]:
    """The characters that depend on the secret alone, wherever it begins in what is encoded."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret + bytes(2))
        first, end = -(-8 * before // 6), 8 * (before + len(secret)) // 6
        part = whole[first:end]
        yield from (part, part.translate(_URL_SAFE))


class EchoFilter:
    """Filters a stream: what arrives is handed on at once, but for an end that may begin the credential."""

    def __init__(self, forms: tuple[bytes, ...]) -> None:
        self._forms = forms
        self._short = [tuple({form[:length] for form in forms}) for length in range(1, _BEGINNING)]
        self._held = b""
        self.found = 0

    def feed(self, chunk: bytes) -> bytes:
        """What may be handed on now. A credential in it is replaced by as many `*`."""
        data = self._masked(self._held + chunk)
        held = self._length_held(data)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def end(self) -> bytes:
        """What was held: the stream has ended, so it isn't the credential."""
        rest, self._held = self._held, b""
        return rest

    def clean(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers without a credential in their values, and without those that have one as their name."""
        whole = b"\n".join(chain.from_iterable(headers))  # no form has a line's end
        if not any(form in whole for form in self._forms):
            return headers
        return [(name, self._masked(value)) for name, value in headers if self._masked(name) == name]

    def _masked(self, data: bytes) -> bytes:
        for form in self._forms:
            if form in data:
                self.found += data.count(form)
                data = data.replace(form, _MASK * len(form))
        return data

    def _length_held(self, data: bytes) -> int:
        """The length of the longest end that is the beginning of a form."""
        longest = 0
        for form in self._forms:
            end, beginning = data[1 - len(form) :], form[:_BEGINNING]
            at = end.find(beginning)
            while at >= 0 and len(end) - at > longest:
                if form.startswith(end[at:]):
                    longest = len(end) - at
                    break
                at = end.find(beginning, at + 1)
        return longest or next(
            (length for length in range(_BEGINNING - 1, 0, -1) if data.endswith(self._short[length - 1])), 0
        )


def decoder_of(encodings: list[bytes]) -> "zlib._Decompress | None":
    """The decoder of these `Content-Encoding` values; None: not compressed.

    Raises Failure REPLY_UNREADABLE.
    """
    match b",".join(encodings).strip().lower():
        case b"" | b"identity":
            return None
        case b"gzip" | b"x-gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        case b"deflate":
            return zlib.decompressobj()
    raise Failure(ErrorCode.REPLY_UNREADABLE, "The answer has a content encoding that can't be read.")


async def decoded(chunks: AsyncIterator[bytes], decoder: "zlib._Decompress | None") -> AsyncIterator[bytes]:
    """The content, in pieces of at most PIECE bytes where it was compressed."""
    async for chunk in chunks:
        if decoder is None:
            yield chunk
            continue
        try:
            while chunk:
                piece = decoder.decompress(chunk, PIECE)
                chunk = decoder.unconsumed_tail
                if piece:
                    yield piece
        except zlib.error:
            raise Failure(ErrorCode.REPLY_UNREADABLE, "The answer's compression is broken.") from None
