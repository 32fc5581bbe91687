"""How a consent is led to the account that is meant."""

from evergrant_server.api.pages.session import ConsentSession
from evergrant_server.core.errors import ErrorCode
from evergrant_server.store import Transaction
from providers.requests.authorization_url import account_params


async def params_for_account(tx: Transaction, session: ConsentSession) -> dict[str, str]:
    """The app's login hint; after a consent with another account also the prompt to select one."""
    consent = session.consent
    hint = (await tx.consents.account(consent)).login_hint
    mismatch = await tx.consents.last_failure(consent) == ErrorCode.ACCOUNT_MISMATCH
    spec, integration = session.spec, session.integration
    return account_params(spec, integration, consent.scopes, login_hint=hint, select_account=mismatch)
