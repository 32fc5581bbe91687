"""What every activity that asks a provider for tokens is given."""

from dataclasses import dataclass

from activities.single_use.protocol import SingleUseProtocol
from activities.support.context_loader import ProviderContextLoader
from evergrant_server.core.clock import Clock
from evergrant_server.store import Store
from providers.requests.sender import Sender


@dataclass(frozen=True)
class GrantServices:
    """The collaborators of the grant activities."""

    store: Store
    contexts: ProviderContextLoader
    sender: Sender
    single_use: SingleUseProtocol
    clock: Clock
