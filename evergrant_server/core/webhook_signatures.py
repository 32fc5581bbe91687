"""Signatures of webhooks, and of batches of the audit log, as Standard Webhooks makes them. Pure."""

import base64
import hashlib
import hmac
from datetime import datetime

from evergrant_server.core.ids import EventId
from evergrant_server.core.secret import Secret

SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32  # Standard Webhooks asks for 24 to 64


def signed_headers(
    secrets: tuple[Secret, ...], id: EventId, at: datetime, body: str | bytes
) -> dict[str, str]:
    """Standard Webhooks' three headers; with two secrets, a signature by each (its section on rotation)."""
    timestamp = str(int(at.timestamp()))
    content = body.encode() if isinstance(body, str) else body
    signed = f"{id}.{timestamp}.".encode() + content
    return {
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets),
    }


def new_signing_secret(random: bytes) -> Secret:
    return Secret(SECRET_PREFIX + base64.b64encode(random).decode())


def _signature(secret: Secret, signed: bytes) -> str:
    key = base64.b64decode(secret.reveal().removeprefix(SECRET_PREFIX))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
