"""What a worker does between a subject's click and the provider's page: the API makes no outbound call."""

from evergrant_server.core.errors import Code
from evergrant_server.core.ids import ConsentId, Tenant
from evergrant_server.core.message import Asked, Message

PREPARE_WORKFLOW = "PrepareConsentWorkflow"
ACTIVITY_PREPARE = "prepare_consent"


def preparing_workflow_id(tenant: Tenant, consent: ConsentId, revision: int) -> str:
    """One per click: a second one of the same subject begins anew."""
    return f"prepare:{tenant}:{consent}:{revision}"


class PrepareConsent(Message):
    """Tell the provider that this consent's browser comes, and keep what it says with the consent."""

    tenant: Tenant
    consent_id: ConsentId
    revision: int  # of the consent as the browser began with it
    asked: Asked


class Prepared(Message):
    """`failure` None: the browser may go on."""

    failure: Code | None = None
    detail: str = ""
    retry_after: float | None = None  # seconds
