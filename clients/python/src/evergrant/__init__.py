"""The client of Evergrant: name a connection, get a lease or a typed answer.

Owns the two clients (`Evergrant`, `AsyncEvergrant`), what they return and what they raise,
the `evergrant` command and, in `evergrant.temporal`, the Temporal plugin. Owns no policy, no
storage and no OAuth: those are the server's, which this package never imports.

Names are loaded when they are first used, so that `evergrant.temporal.workflow` can be
imported inside Temporal's workflow sandbox, where an HTTP library can't.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evergrant.async_client import AsyncEvergrant
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
    from evergrant.models import (
        AccountChoice,
        App,
        AuditRecord,
        Connection,
        ConsentRequired,
        DeviceCode,
        Lease,
        LeaseLeak,
        LiveStatus,
        Proof,
        Provider,
        RevocationProgress,
        State,
    )
    from evergrant.signatures import Signature
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
    "ProviderUnavailable",
    "ReconnectNeeded",
    "RevocationProgress",
    "Signature",
    "State",
    "Unreachable",
]

_MODELS = frozenset(
    {
        "App",
        "AuditItem",
        "Connection",
        "ConsentRequired",
        "Choice",
        "DeviceCode",
        "Lease",
        "LeaseLeak",
        "Live",
        "Proof",
        "Provider",
        "Revoking",
        "State",
    }
)
_ELSEWHERE = {
    "Evergrant": "evergrant.sync_client",
    "AsyncEvergrant": "evergrant.async_client",
    "Signature": "evergrant.signatures",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'evergrant' has no attribute {name!r}")
    home = _ELSEWHERE.get(name) or ("evergrant.models" if name in _MODELS else "evergrant.errors")
    return getattr(import_module(home), name)
