"""What every class of activities that talks to a provider is made of."""

from activities.grants.client_secrets import ClientSecretFallback
from activities.integrations.staged_definitions import StagedDefinitionFallback
from activities.single_use.protocol import SingleUseProtocol
from activities.support.provider_context import ProviderContextLoader
from evergrant_server.core.clock import Clock
from evergrant_server.store import Store
from providers.requests.sender import Sender


class ProviderActivities:
    """A store, a holder of what is needed, a sender, and the protocol for single-use credentials."""

    def __init__(
        self,
        store: Store,
        holder: ProviderContextLoader,
        sender: Sender,
        single_use: SingleUseProtocol,
        clock: Clock,
    ) -> None:
        self._store = store
        self._contexts = holder
        self._sender = sender
        self._single_use = single_use
        self._clock = clock
        self._client_secrets = ClientSecretFallback(store, clock)
        self._definitions = StagedDefinitionFallback(store)
