"""A user's program: every outcome of the client, checked for exhaustiveness by a type checker."""

from datetime import timedelta
from typing import assert_never

from evergrant import (
    BadRequest,
    ClientMisconfigured,
    Connection,
    ConsentRequired,
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
            return f"whoever runs the network: {error.code}"
        case _:
            return "a newer client"


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
