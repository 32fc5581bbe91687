"""Grants: refresh, revocation, and what happens to tokens that arrive late or without a connection.

Owns token requests, the fallbacks between client secrets and definitions, and the commit of a
reply's tokens. Doesn't own first grants (`activities.consents`), the protocol that spends a
credential (`activities.single_use`), the format of requests and replies (`providers`), or when to
act (`workflows`).
"""

from dataclasses import dataclass

from activities.single_use.protocol import SingleUseProtocol
from activities.support.provider_context import ProviderContextLoader
from evergrant_server.core.clock import Clock
from evergrant_server.store import Store
from providers.requests.sender import Sender


@dataclass(frozen=True)
class GrantServices:
    """What every activity that asks a provider for tokens is given."""

    store: Store
    contexts: ProviderContextLoader
    sender: Sender
    single_use: SingleUseProtocol
    clock: Clock
    control_requests: bool = True  # a setting of the operator
