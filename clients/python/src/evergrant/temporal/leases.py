"""The running activity's leases, requested from Evergrant directly, and the search for their secrets in
data that is about to be sent to Temporal.
"""

import json
from base64 import b64encode
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Unpack
from urllib.parse import quote

from temporalio.exceptions import ApplicationError

from evergrant.api.leases import LeaseOptions
from evergrant.async_client import AsyncEvergrant
from evergrant.lease import Lease
from evergrant.models import ConsentRequired
from evergrant.sync_client import Evergrant

_MIN_ENCODED_BYTES = 8  # an encoded fragment of a shorter secret would match by chance


@dataclass(frozen=True, slots=True)
class WorkerClients:
    """One worker's clients: for async activities, and for those that run in threads."""

    asyncio: AsyncEvergrant
    blocking: Evergrant


class ActivityLeases:
    """The secrets that one running activity has received, so that none leaves with its result."""

    def __init__(self, clients: WorkerClients) -> None:
        self.clients = clients
        self.secrets: list[str] = []

    def record(self, answer: Lease | ConsentRequired) -> Lease:
        """Remember the token or the connect link. Raises ReconnectNeeded for ConsentRequired."""
        match answer:
            case Lease():
                self.secrets.append(answer.access_token)
                return answer
            case ConsentRequired():
                self.secrets.append(answer.connect_url)
                raise answer.as_error()


CURRENT_LEASES: ContextVar[ActivityLeases | None] = ContextVar("evergrant_activity_leases", default=None)


async def lease(integration: str, subject: str, **options: Unpack[LeaseOptions]) -> Lease:
    """A lease for the running async activity. Raises EvergrantError.

    Left uncaught, the error becomes a failure that is retried or not by its kind. Without a consent
    it is ReconnectNeeded; its connect link stays out of Temporal. The subject consents in an app that
    confirms it; `TokenInbox.token_repaired` waits for the token that follows.
    """
    leases = current_leases()
    return leases.record(await leases.clients.asyncio.lease(integration, subject, **options))


def lease_blocking(integration: str, subject: str, **options: Unpack[LeaseOptions]) -> Lease:
    """`lease` for an activity that runs in a thread."""
    leases = current_leases()
    return leases.record(leases.clients.blocking.lease(integration, subject, **options))


def current_leases() -> ActivityLeases:
    """The running activity's. Raises a failure that isn't retried where no plugin has opened any."""
    if (leases := CURRENT_LEASES.get()) is None:
        raise ApplicationError(
            "no lease here: this isn't an activity of a worker with EvergrantPlugin, or it runs in another "
            "process. Give the worker the plugin: Worker(client, …, plugins=[EvergrantPlugin()])",
            type="EvergrantPluginMissing",
            non_retryable=True,  # until the worker is another one
        )
    return leases


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
