"""A bulk order: one act of an admin on the connections of a filter, or on those that were ticked. Pure.

It is carried out as an incident is (`core.connections.incidents`), without a signed report.
"""

from enum import StrEnum

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.incidents import ConnectionsOrder
from evergrant_server.core.ids import BulkId, ConnectionId
from evergrant_server.core.model import FrozenModel

MOST_TICKED = 200  # connections that an order names one by one


class BulkAction(StrEnum):
    """What is done with each connection."""

    REFRESH = "refresh"  # its workflow asks the provider for a new access token
    RECONNECT = "reconnect"  # apps are told once more that its subject has to consent
    REVOKE = "revoke"  # for good
    LABEL = "label"  # it gets another label, by which apps name it

    @property
    def is_dangerous(self) -> bool:
        """Whether a person repeats what the order is about."""
        return self in (BulkAction.REVOKE, BulkAction.LABEL)


class BulkFilter(FrozenModel):
    """Which connections: these ids; or else those of the integration, in the state, whose last refresh
    failed, whose subject or label begins with `subject`. What is None narrows nothing."""

    connections: tuple[ConnectionId, ...] | None = None
    integration: str | None = None
    state: LifecycleState | None = None
    failing: bool = False
    subject: str | None = None

    @property
    def facts(self) -> dict[str, object]:
        """What narrows, for records: never a subject's name."""
        named = {"integration": self.integration, "state": self.state and self.state.value}
        facts: dict[str, object] = {name: value for name, value in named.items() if value is not None}
        if self.connections is not None:
            facts["ticked"] = len(self.connections)
        if self.failing:
            facts["failing"] = True
        if self.subject is not None:
            facts["searched"] = True
        return facts


class BulkOrder(ConnectionsOrder[BulkId]):
    """One order. `label` is the one that connections get."""

    action: BulkAction
    filters: BulkFilter = BulkFilter()
    label: str | None = None

    @property
    def name(self) -> str:
        """What a person repeats to confirm the order."""
        return self.filters.integration or self.tenant

    def done(self) -> "BulkOrder":
        """Without the beginning of a subject, which only the selection needs."""
        return self.__replace__(filters=self.filters.__replace__(subject=None))
