"""OAuth 1.0a at the connect page: a worker gets temporary credentials, then the browser goes on."""

from evergrant_server.api.subjects import Going, Subjects
from evergrant_server.core.consent import Consent
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import Asked
from evergrant_server.core.preparing import PrepareConsent
from evergrant_server.core.token_pair import TokenPair
from evergrant_server.store import Tx
from providers.oauth1 import authorization_url, endpoints_of

PREPARE_S = 30.0  # a person waits, and the provider's answer is limited as well


async def begun(tx: Tx, going: Going) -> Consent:
    """Write an attempt of this flow: it has no state until a worker has a token for it."""
    consent, there = going.consent, endpoints_of(going.spec, going.integration)
    sent = {"issuer": None, "token_endpoint": there.token, "state_hash": None}
    return await tx.consents.replace(consent.model_copy(update=sent), expected=consent.revision)


async def url_of(subjects: Subjects, going: Going, consent: Consent, asked: Asked) -> str:
    """The provider's page, once there are temporary credentials. Raises the Failure that says why not."""
    parts = subjects.parts
    order = PrepareConsent(
        tenant=consent.tenant, consent_id=consent.id, revision=consent.revision, asked=asked
    )
    prepared = await parts.link.prepare(order, timeout=PREPARE_S)
    if prepared.failure is not None:
        raise Failure(prepared.failure, prepared.detail, retry_after=prepared.retry_after)
    async with parts.store.read() as tx:
        newest = await tx.consents.get(consent.tenant, consent.id)
        if newest is None or newest.revision != consent.revision + 1:
            raise Failure(Code.STORE_CONFLICT, "The consent was begun anew.")
        temporary = TokenPair.from_secret(await tx.consents.verifier(newest))
    return authorization_url(going.spec, going.integration, temporary, newest.scopes)
