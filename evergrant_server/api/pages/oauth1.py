"""OAuth 1.0a connect: a worker requests temporary credentials before the redirect (RFC 5849 section 2)."""

from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import RequestTemporaryCredentials
from evergrant_server.store import Transaction
from providers.oauth1.flow import oauth1_authorization_url, oauth1_endpoints

PREPARE_TIMEOUT_S = 30.0  # the subject waits; the request to the provider has a shorter limit


async def save_oauth1_attempt(tx: Transaction, session: ConsentSession) -> Consent:
    """Store the attempt. Its state is the temporary token, which a worker will request."""
    consent, there = session.consent, oauth1_endpoints(session.spec, session.integration)
    sent = {"issuer": None, "token_endpoint": there.token, "state_hash": None}
    return await tx.consents.replace(consent.model_copy(update=sent), expected=consent.revision)


async def oauth1_redirect_url(
    pages: SubjectPages, session: ConsentSession, consent: Consent, context: RequestContext
) -> str:
    """The provider's authorization URL. Raises the Failure of the request for temporary credentials."""
    api = pages.api
    order = RequestTemporaryCredentials(
        tenant=consent.tenant, consent_id=consent.id, revision=consent.revision, context=context
    )
    prepared = await api.link.prepare_consent(order, timeout=PREPARE_TIMEOUT_S)
    if prepared.failure is not None:
        raise Failure(prepared.failure, prepared.detail, retry_after=prepared.retry_after)
    async with api.store.read() as tx:
        newest = await tx.consents.get(consent.tenant, consent.id)
        if newest is None or newest.revision != consent.revision + 1:
            raise Failure(ErrorCode.STORE_CONFLICT, "The consent was started again.")
        temporary = TokenPair.from_secret(await tx.consents.verifier(newest))
    return oauth1_authorization_url(session.spec, session.integration, temporary, newest.scopes)
