"""What crosses Temporal for the onboarding of a definition. No secrets: the definition is in the store."""

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.ids import DefinitionId, Tenant
from evergrant_server.core.messages import Asked, Message, Provenance

ONBOARDING_WORKFLOW = "OnboardingWorkflow"
SIGNAL_DECIDED = "decided"
SIGNAL_ROLL_BACK = "roll_back"


class OnboardingStart(Message):
    """The input of an onboarding's run. The definition itself is in the store."""

    tenant: Tenant
    definition_id: DefinitionId
    provider: str
    watch_s: float  # seconds between two looks at a stage
    asked: Asked


class Decided(Message):
    """An admin has decided; what, is in the store."""

    asked: Asked


class RollBack(Message):
    """An admin wants the version before."""

    reason: str
    asked: Asked


class DefinitionCall(Message):
    """What the activities of an onboarding are told."""

    tenant: Tenant
    definition_id: DefinitionId
    asked: Asked
    provenance: Provenance
    roll_back: str | None = None  # the reason of whoever asked for it
    overdue: bool = False  # nobody decided in time


class DefinitionNews(Message):
    state: DefinitionState
    share: float = 0
    good: int = 0
    bad: int = 0
    decided: bool = False  # an admin has said yes or no
    look_s: float | None = None  # held: nothing speaks for it yet, and it is looked at this rarely


class Onboarded(Message):
    """The result of an onboarding's workflow."""

    state: DefinitionState
