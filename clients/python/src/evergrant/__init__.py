"""The client of Evergrant: name a connection, get a lease or a typed answer.

Owns the two clients (`Evergrant`, `AsyncEvergrant`), what they return and raise, the `evergrant`
command and, in `evergrant.temporal`, the Temporal plugin. Owns no policy, no storage and no OAuth:
those are the server's, which this package never imports.

Every name is loaded on first use, so that `evergrant.temporal.workflow` can be imported inside Temporal's
workflow sandbox, where an HTTP library can't, and that `evergrant --help` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evergrant.api.models import (
        AccountChoice,
        App,
        AuditRecord,
        Connection,
        DeviceCode,
        LiveStatus,
        ProviderSaid,
        RevocationProgress,
    )
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
    from evergrant.lease import Lease, LeaseLeak, Proof, Signature
    from evergrant.models import ConsentRequired, Provider, State, new_verifier
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

_MODULES = {
    "evergrant.sync_client": {"Evergrant"},
    "evergrant.async_client": {"AsyncEvergrant"},
    "evergrant.lease": {"Lease", "LeaseLeak", "Proof", "Signature"},
    "evergrant.models": {"ConsentRequired", "Provider", "State", "new_verifier"},
    "evergrant.api.models": {
        *("AccountChoice", "App", "AuditRecord", "Connection", "DeviceCode", "LiveStatus", "ProviderSaid"),
        "RevocationProgress",
    },
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'evergrant' has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "evergrant.errors")
    loaded = getattr(import_module(module), name)
    globals()[name] = loaded
    return loaded
