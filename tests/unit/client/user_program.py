"""A user's program that handles every outcome of the client; a type checker proves it."""

from datetime import timedelta
from typing import assert_never

import httpx2
from evergrant import (
    AsyncEvergrant,
    BadRequest,
    ClientMisconfigured,
    Connection,
    ConsentRequired,
    ConsentTimeout,
    Denied,
    Evergrant,
    EvergrantError,
    Lease,
    PlatformUnavailable,
    ProtocolError,
    ProviderUnavailable,
    ReconnectNeeded,
    State,
    Unreachable,
)


def outcome(client: Evergrant) -> str:
    try:
        answer = client.lease("crm", "alice", min_ttl=timedelta(minutes=1))
    except EvergrantError as error:
        return repairer(error)
    match answer:
        case Lease(access_token=str(token), expires_at=until):
            return f"{len(token)} characters until {until}"
        case ConsentRequired(connect_url=url):
            return f"send alice to {url}"
        case _:
            assert_never(answer)


def repairer(error: EvergrantError) -> str:
    match error:
        case ConsentTimeout():
            return f"subject, not in time: {error.repair}"
        case ReconnectNeeded():
            return f"subject: {error.connect_url}"
        case ClientMisconfigured():
            return "integration admin"
        case ProviderUnavailable():
            return f"time: {error.retry_after}"
        case Denied():
            return "permit admin"
        case PlatformUnavailable():
            return "operator"
        case BadRequest():
            return f"you: {error.repair}"
        case Unreachable() | ProtocolError():
            return f"network: {error.code}"
        case _:
            return "a newer client"


async def call(client: AsyncEvergrant) -> int:
    auth = client.auth("crm", "alice", origins="https://api.example.com")
    async with httpx2.AsyncClient(auth=auth) as http:
        return (await http.get("https://api.example.com/contacts")).status_code


def advice(connection: Connection) -> str:
    match connection.state:
        case State.ACTIVE:
            return "lease"
        case State.PENDING_CONSENT | State.NEEDS_REAUTH:
            return f"open {connection.connect_url}"
        case State.REVOKING | State.REVOKED | State.CONSENT_EXPIRED | State.DENIED:
            return "connect again"
        case _:
            assert_never(connection.state)
