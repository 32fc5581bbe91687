"""Finds a secret in what is about to leave for Temporal, in the encodings it may be wrapped in."""

import json
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import quote

_SHORTEST = 8  # below this an encoded fragment is too short to mean anything


def contains_secret(data: bytes, secrets: Iterable[str]) -> bool:
    """Whether `data` holds one of `secrets`: raw, JSON- or URL-escaped, base64 or hex."""
    return any(form in data for secret in secrets for form in _forms(secret))


def _forms(secret: str) -> set[bytes]:
    raw = secret.encode()
    if not raw:
        return set()
    escaped = json.dumps(secret)[1:-1]
    forms = {raw, escaped.encode(), escaped.replace("/", "\\/").encode(), quote(secret, safe="").encode()}
    if len(raw) >= _SHORTEST:
        forms |= {raw.hex().encode(), raw.hex().upper().encode(), *_base64_forms(raw)}
    return forms


def _base64_forms(raw: bytes) -> set[bytes]:
    """Its base64 at each of the three alignments, without the characters its neighbours share."""
    forms: set[bytes] = set()
    for before in range(3):
        encoded = b64encode(bytes(before) + raw)
        inner = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return forms
