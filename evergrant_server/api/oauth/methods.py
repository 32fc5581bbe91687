"""Which method a token request uses, and the methods that the metadata names."""

from evergrant_server.api.oauth import mutual_tls, private_key_jwt, workload_identity
from evergrant_server.api.oauth.client_authentication import (
    Authenticate,
    ClientTokenRequest,
    ProvenClient,
    TokenRefused,
    invalid_client,
)
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.store import Transaction
from evergrant_server.telemetry.request_ids import trace_of

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2

# token_endpoint_auth_methods_supported; a platform's token has no name there, and a JWT-SVID has the draft's
ADVERTISED = (AuthenticationMethod.PRIVATE_KEY_JWT.value, "spiffe_jwt")
ADVERTISED_WITH_MTLS = (
    *ADVERTISED,
    AuthenticationMethod.TLS_CLIENT_AUTH.value,
    AuthenticationMethod.SELF_SIGNED_TLS_CLIENT_AUTH.value,
    "spiffe_x509",  # as draft-ietf-oauth-spiffe-client-auth names `x509_svid`
)


async def prove(request: ClientTokenRequest) -> ProvenClient:
    """As `authenticate`; once more when the keys of a workload's issuer had to be read first."""
    try:
        async with request.api.store.read() as tx:
            return await authenticate(tx, request)
    except workload_identity.KeysNeeded as needed:
        context = trace_of(request.http).request_context(f"{CLAIMED}app:{needed.claimed}")
        await workload_identity.read_keys(request.api, needed, context)
    async with request.api.store.read() as tx:
        return await authenticate(tx, request)


async def authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The client that the request proves, by the one method it uses (RFC 6749 section 2.3).

    Raises TokenRefused, Failure AUTHORITY_BROKEN.
    """
    kind, named = request.parameters.get("client_assertion_type", ""), request.parameters.get("client_id")
    if bool(kind) != ("client_assertion" in request.parameters):
        raise TokenRefused("invalid_request", "client_assertion and client_assertion_type go together.")
    if "authorization" in request.http.headers or "client_secret" in request.parameters:
        why = "Secrets and an Authorization header are no way to prove an identity here."
        raise invalid_client(why, named)
    method = METHODS.get(kind)
    if method is None:
        raise invalid_client("The request uses no authentication method that Evergrant knows.", named)
    return await method(tx, request)


async def _jwt_bearer(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """An assertion of the app itself has its id as `iss`; that of its platform has the platform's URL."""
    if workload_identity.is_of_platform(request.parameters["client_assertion"]):
        return await workload_identity.authenticate(tx, request)
    return await private_key_jwt.authenticate(tx, request)


# by `client_assertion_type`; a method without an assertion has the name ""
METHODS: dict[str, Authenticate] = {
    JWT_BEARER: _jwt_bearer,
    workload_identity.JWT_SPIFFE: workload_identity.authenticate,
    "": mutual_tls.authenticate,
}
