"""The running activity's leases, requested from Evergrant directly and never through Temporal."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Unpack

from evergrant.async_client import AsyncEvergrant
from evergrant.calls.leases import LeaseOptions
from evergrant.models import ConsentRequired, Lease
from evergrant.sync_client import Evergrant


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
    it is ReconnectNeeded; its connect link stays out of Temporal.
    """
    leases = _current()
    return leases.record(await leases.clients.asyncio.lease(integration, subject, **options))


def lease_blocking(integration: str, subject: str, **options: Unpack[LeaseOptions]) -> Lease:
    """`lease` for an activity that runs in a thread."""
    leases = _current()
    return leases.record(leases.clients.blocking.lease(integration, subject, **options))


def _current() -> ActivityLeases:
    if (leases := CURRENT_LEASES.get()) is None:
        raise RuntimeError(
            "no lease here: this isn't an activity of a worker with EvergrantPlugin, "
            "or it runs in another process"
        )
    return leases
