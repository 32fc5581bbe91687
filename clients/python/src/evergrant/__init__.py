"""The client of Evergrant: name a connection, get a lease or a typed answer.

Owns the two clients (`Evergrant`, `AsyncEvergrant`), what they return and raise, the `evergrant`
command and, in `evergrant.temporal`, the Temporal plugin. Owns no policy, no storage and no OAuth:
those are the server's, which this package never imports.

The clients are loaded on first use, so that `evergrant.temporal.workflow` can be imported inside
Temporal's workflow sandbox, where an HTTP library can't.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from evergrant.binding import new_verifier
from evergrant.errors import (
    BadRequest,
    ClientMisconfigured,
    ConsentTimeout,
    Denied,
    EvergrantError,
    PlatformUnavailable,
    ProtocolError,
    ProviderUnavailable,
    ReconnectNeeded,
    Unreachable,
)
from evergrant.lease import Lease, LeaseLeak, Proof, Signature
from evergrant.models import (
    AccountChoice,
    App,
    AuditRecord,
    Connection,
    ConsentRequired,
    DeviceCode,
    LiveStatus,
    Provider,
    ProviderSaid,
    RevocationProgress,
    State,
)

if TYPE_CHECKING:
    from evergrant.async_client import AsyncEvergrant
    from evergrant.sync_client import Evergrant

__all__ = [
    "AccountChoice",
    "App",
    "AsyncEvergrant",
    "AuditRecord",
    "BadRequest",
    "ClientMisconfigured",
    "Connection",
    "ConsentRequired",
    "ConsentTimeout",
    "Denied",
    "DeviceCode",
    "Evergrant",
    "EvergrantError",
    "Lease",
    "LeaseLeak",
    "LiveStatus",
    "PlatformUnavailable",
    "Proof",
    "ProtocolError",
    "Provider",
    "ProviderSaid",
    "ProviderUnavailable",
    "ReconnectNeeded",
    "RevocationProgress",
    "Signature",
    "State",
    "Unreachable",
    "new_verifier",
]

_CLIENTS = {"Evergrant": "evergrant.sync_client", "AsyncEvergrant": "evergrant.async_client"}


def __getattr__(name: str) -> object:
    if name not in _CLIENTS:
        raise AttributeError(f"module 'evergrant' has no attribute {name!r}")
    return getattr(import_module(_CLIENTS[name]), name)
