"""OAuth 1.0a at the connect page: a worker gets temporary credentials, then the browser goes on."""

from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.token_pair import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import RequestTemporaryCredentials
from evergrant_server.store import Transaction
from providers.oauth1.flow import oauth1_authorization_url, oauth1_endpoints

PREPARE_TIMEOUT_S = 30.0  # a person waits, and the provider's answer is limited as well


async def save_oauth1_attempt(tx: Transaction, going: ConsentSession) -> Consent:
    """Write an attempt of this flow: it has no state until a worker has a token for it."""
    consent, there = going.consent, oauth1_endpoints(going.spec, going.integration)
    sent = {"issuer": None, "token_endpoint": there.token, "state_hash": None}
    return await tx.consents.replace(consent.model_copy(update=sent), expected=consent.revision)


async def oauth1_redirect_url(
    subjects: SubjectPages, going: ConsentSession, consent: Consent, asked: RequestContext
) -> str:
    """The provider's page, once there are temporary credentials. Raises the Failure that says why not."""
    parts = subjects.parts
    order = RequestTemporaryCredentials(
        tenant=consent.tenant, consent_id=consent.id, revision=consent.revision, context=asked
    )
    prepared = await parts.link.prepare_consent(order, timeout=PREPARE_TIMEOUT_S)
    if prepared.failure is not None:
        raise Failure(prepared.failure, prepared.detail, retry_after=prepared.retry_after)
    async with parts.store.read() as tx:
        newest = await tx.consents.get(consent.tenant, consent.id)
        if newest is None or newest.revision != consent.revision + 1:
            raise Failure(ErrorCode.STORE_CONFLICT, "The consent was begun anew.")
        temporary = TokenPair.from_secret(await tx.consents.verifier(newest))
    return oauth1_authorization_url(going.spec, going.integration, temporary, newest.scopes)
