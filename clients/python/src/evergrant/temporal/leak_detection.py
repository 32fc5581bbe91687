"""Finds a secret in data that is about to be sent to Temporal, in the encodings it may have."""

import json
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import quote

_MIN_ENCODED_BYTES = 8  # an encoded fragment of a shorter secret would match by chance


def contains_secret(data: bytes, secrets: Iterable[str]) -> bool:
    """Whether `data` holds one of `secrets`: raw, JSON- or URL-escaped, base64 or hex."""
    return any(encoding in data for secret in secrets for encoding in _encodings(secret))


def _encodings(secret: str) -> set[bytes]:
    raw = secret.encode()
    if not raw:
        return set()
    escaped = json.dumps(secret)[1:-1]
    encodings = {raw, escaped.encode(), escaped.replace("/", "\\/").encode(), quote(secret, safe="").encode()}
    if len(raw) >= _MIN_ENCODED_BYTES:
        encodings |= {raw.hex().encode(), raw.hex().upper().encode(), *_base64_encodings(raw)}
    return encodings


def _base64_encodings(raw: bytes) -> set[bytes]:
    """Its base64 at each of the three alignments, without the characters shared with its neighbours."""
    encodings: set[bytes] = set()
    for offset in range(3):
        encoded = b64encode(bytes(offset) + raw)
        inner = encoded[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]
        encodings |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return encodings
