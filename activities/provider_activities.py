"""What every class of activities that talks to a provider is made of."""

from activities.client_secrets import EitherSecret
from activities.definitions import EitherDefinition
from activities.holdings import Holder
from activities.single_use import SingleUse
from evergrant_server.core.clock import Clock
from evergrant_server.store import Store
from providers.flows import Sender


class ProviderActivities:
    """A store, a holder of what is needed, a sender, and the protocol for single-use credentials."""

    def __init__(
        self, store: Store, holder: Holder, sender: Sender, single_use: SingleUse, clock: Clock
    ) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._single_use = single_use
        self._clock = clock
        self._either_secret = EitherSecret(store, clock)
        self._either_definition = EitherDefinition(store)
