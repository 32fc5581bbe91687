"""Two persons approve a promotion, each with a key of their own that no host of Evergrant's has.

The settings hold public keys (Ed25519, RFC 8032). An approval is a signature over the order's text, which
names the regions, the authority's epoch and the hour: it is good for this promotion, for an hour or two.
"""

import base64
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

NEEDED = 2
_HOUR = timedelta(hours=1)


def new_approver(name: str) -> tuple[bytes, str]:
    """A private key, PEM, for the person alone; and the entry of `EVERGRANT_REGION_APPROVERS`."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return private, f"{name}={_text(public)}"


def order(region: str, old: str, epoch: int, now: datetime) -> str:
    """What is approved, in one line."""
    return f"promote {region}, in place of {old}, epoch {epoch}, {now:%Y-%m-%dT%H}Z"


def approve(private: bytes, ordered: str) -> str:
    """The approval of this order. Raises ValueError for a file that isn't such a key."""
    key = load_pem_private_key(private, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is no Ed25519 key")
    return _text(key.sign(ordered.encode()))


def who_approved(
    approvals: Iterable[str], approvers: Mapping[str, str], region: str, old: str, epoch: int, now: datetime
) -> set[str]:
    """The names of those whose approvals (`NAME=SIGNATURE`) are of this promotion, and no older than an
    hour or two."""
    orders = [order(region, old, epoch, moment) for moment in (now, now - _HOUR)]
    given = (approval.partition("=") for approval in approvals)
    return {
        name
        for name, _, signature in given
        if name in approvers and any(_is_signed(approvers[name], signature, text) for text in orders)
    }


def public_keys(entries: Iterable[str]) -> dict[str, str]:
    """The public keys by name. Raises ValueError for an entry that isn't NAME=KEY."""
    keys: dict[str, str] = {}
    for entry in entries:
        name, _, key = entry.partition("=")
        if not name or len(_bytes(key)) != 32:
            raise ValueError(f"{entry!r} is no NAME=KEY, as `region approver NAME` prints it")
        keys[name] = key
    return keys


def _is_signed(public: str, signature: str, text: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(_bytes(public)).verify(_bytes(signature), text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """Raises ValueError."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
