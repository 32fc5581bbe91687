"""Signs a text as a note (c2sp.org/signed-note), with a key that workers alone have. A reader who has
kept the public key checks it without Evergrant."""

import base64
import hashlib
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evergrant_server.crypto import KeyRing

_ED25519 = b"\x01"  # the type of its signatures


class SignedNote(NamedTuple):
    """A note, and the public key as C2SP writes it: `<name>+<id>+<key>`."""

    note: str
    key: str


def signed_note(ring: KeyRing, public_url: str, text: str) -> SignedNote:
    """The text, which ends with a line end, with the signature of the installation at this URL.

    Raises Failure KEY_UNAVAILABLE where the role lacks the key.
    """
    name = urlsplit(public_url).netloc
    private = Ed25519PrivateKey.from_private_bytes(ring.worker_seed("incident reports"))
    public = private.public_key().public_bytes_raw()
    id = hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]
    signature = base64.b64encode(id + private.sign(text.encode())).decode()
    key = f"{name}+{id.hex()}+{base64.b64encode(_ED25519 + public).decode()}"
    return SignedNote(f"{text}\n\u2014 {name} {signature}\n", key)
