"""The body of a credential for each method: what its parameters may be."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from evergrant_server.api.apps.certificate_parameters import SelfSignedBody, TlsClientAuthBody, X509SvidBody
from evergrant_server.api.apps.workload_parameters import WorkloadIdentityBody
from evergrant_server.api.http.models import Body
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.crypto.client_assertions import public_key_set


class PrivateKeyJwtParameters(Body):
    """`jwks` is a JWK set (RFC 7517 section 5) of public asymmetric keys, with an `alg` each."""

    jwks: Annotated[dict[str, Any], AfterValidator(public_key_set)]


class PrivateKeyJwtBody(Body):
    """Assertions that the app signs with a private key of its own (RFC 7523 section 2.2)."""

    method: Literal[AuthenticationMethod.PRIVATE_KEY_JWT]
    parameters: PrivateKeyJwtParameters


# one member for each method, told apart by `method`
CredentialBody = Annotated[
    PrivateKeyJwtBody | TlsClientAuthBody | SelfSignedBody | X509SvidBody | WorkloadIdentityBody,
    Field(discriminator="method"),
]
