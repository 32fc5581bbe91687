"""What a worker does between a subject's click and the provider's page: the API makes no outbound call."""

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConsentId, Tenant
from evergrant_server.core.messages.base import Message, RequestContext

TEMPORARY_CREDENTIALS_WORKFLOW = "PrepareConsentWorkflow"
ACTIVITY_REQUEST_TEMPORARY_CREDENTIALS = "prepare_consent"


def temporary_credentials_workflow_id(tenant: Tenant, consent: ConsentId, revision: int) -> str:
    """One per click: a second one of the same subject begins anew."""
    return f"prepare:{tenant}:{consent}:{revision}"


class RequestTemporaryCredentials(Message):
    """Tell the provider that this consent's browser comes, and keep what it says with the consent."""

    tenant: Tenant
    consent_id: ConsentId
    revision: int  # of the consent as the browser began with it
    context: RequestContext


class TemporaryCredentialsResult(Message):
    """`failure` None: the browser may go on."""

    failure: ErrorCode | None = None
    detail: str = ""
    retry_after: float | None = None  # seconds
