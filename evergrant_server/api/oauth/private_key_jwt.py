"""`private_key_jwt`: an assertion that the app signed with a registered key (RFC 7523 section 2.2)."""

from evergrant_server.api.oauth.client_authentication import (
    UNPROVEN,
    ClientTokenRequest,
    ProvenClient,
    invalid_client,
    registered,
)
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.crypto.client_assertions import AssertionRefused, is_signed_by, read_assertion
from evergrant_server.store import Transaction


async def authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The app that signed `client_assertion`. Raises TokenRefused."""
    named = request.parameters.get("client_id")
    try:
        assertion = read_assertion(request.parameters["client_assertion"], request.issuer, request.now)
    except AssertionRefused as refused:
        raise invalid_client(str(refused), named) from None
    if named not in (None, assertion.client_id):
        raise invalid_client("client_id isn't the assertion's sub.", assertion.client_id)
    found = await registered(tx, assertion.client_id, AuthenticationMethod.PRIVATE_KEY_JWT)
    app, credentials = found or (None, [])
    for credential in credentials:
        if app is not None and is_signed_by(assertion, credential.parameters["jwks"]["keys"]):
            return ProvenClient(app, credential, once=(assertion.jti, assertion.expires_at))
    raise invalid_client(UNPROVEN, assertion.client_id)
