"""What crosses Temporal for the rollout of a definition. No secrets: the definition is in the store."""

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.ids import DefinitionId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestContext


class RolloutStart(Message):
    """The input of a rollout's run."""

    tenant: Tenant
    definition_id: DefinitionId
    provider: str
    check_interval_s: float  # seconds between two evaluations of a stage
    context: RequestContext


class DefinitionDecided(Message):
    """An admin has decided; the decision is in the store."""

    context: RequestContext


class RollBackDefinition(Message):
    """An admin goes back to the version before."""

    reason: str
    context: RequestContext


class DefinitionCall(Message):
    """What the activities of a rollout take."""

    tenant: Tenant
    definition_id: DefinitionId
    context: RequestContext
    provenance: Provenance
    roll_back: str | None = None  # the admin's reason
    overdue: bool = False  # no admin decided in time


class DefinitionResult(Message):
    state: DefinitionState
    share: float = 0
    succeeded: int = 0
    failed: int = 0
    decided: bool = False  # an admin has decided
    next_check_s: float | None = None  # held without evidence: evaluated this rarely


class RolloutResult(Message):
    state: DefinitionState
