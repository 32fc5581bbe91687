"""What crosses Temporal for the onboarding of a definition. No secrets: the definition is in the store."""

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.ids import DefinitionId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestContext


class RolloutStart(Message):
    """The input of an onboarding's run. The definition itself is in the store."""

    tenant: Tenant
    definition_id: DefinitionId
    provider: str
    check_interval_s: float  # seconds between two looks at a stage
    context: RequestContext


class DefinitionDecided(Message):
    """An admin has decided; what, is in the store."""

    context: RequestContext


class RollBackDefinition(Message):
    """An admin wants the version before."""

    reason: str
    context: RequestContext


class DefinitionCall(Message):
    """What the activities of an onboarding are told."""

    tenant: Tenant
    definition_id: DefinitionId
    context: RequestContext
    provenance: Provenance
    roll_back: str | None = None  # the reason of whoever asked for it
    overdue: bool = False  # nobody decided in time


class DefinitionResult(Message):
    state: DefinitionState
    share: float = 0
    good: int = 0
    bad: int = 0
    decided: bool = False  # an admin has said yes or no
    next_check_s: float | None = None  # held: nothing speaks for it yet, and it is looked at this rarely


class RolloutResult(Message):
    """The result of an onboarding's workflow."""

    state: DefinitionState
