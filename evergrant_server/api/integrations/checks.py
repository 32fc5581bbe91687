"""Checks the body of an integration against the provider's definition."""

from datetime import datetime

from evergrant_server.api.integrations.models import IntegrationBody
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RegistrationMethod
from evergrant_server.core.secret import Secret
from evergrant_server.policy import scopes_above
from providers.client_auth import import_signing_key, parse_client_certificate
from providers.definition.schema import ProviderSpec
from providers.definition.templates import definition_endpoints


def check_body(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Check the body against the provider's definition. Raises Failure INVALID_REQUEST with the field."""
    spec.require_any_flow()
    if spec.discovery and not body.issuer:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{spec.name} needs an issuer.", field="issuer")
    if body.issuer and not spec.discovery:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{spec.name} has its own issuer.", field="issuer")
    if not spec.discovery:
        definition_endpoints(spec, body.params)
    _check_client(spec, body)
    if body.client_secret is not None:
        require_nonempty(body.client_secret)
    if scopes_above(body.default_scopes, body.scope_ceiling):
        raise Failure(
            ErrorCode.INVALID_REQUEST, "A default scope is above the ceiling.", field="default_scopes"
        )


def client_key_of(body: IntegrationBody) -> ClientKey | None:
    """The client key of the body. Raises Failure INVALID_REQUEST for one that can't sign."""
    if body.client_key is None:
        return None
    key = ClientKey(private=body.client_key.private, id=body.client_key.id)
    try:
        import_signing_key(key)
    except Failure as failure:
        raise Failure(ErrorCode.INVALID_REQUEST, failure.detail, field="client_key") from None
    return key


def client_certificate_of(body: IntegrationBody, now: datetime) -> ClientCertificate | None:
    """The client certificate of the body. Raises Failure INVALID_REQUEST for an unusable one."""
    given = body.client_certificate
    return None if given is None else parse_client_certificate(given.certificate, given.private, now)


def _check_client(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Check that the body has either a client id or a registration, and only members that go with it."""
    if (body.client_id is None) is (body.registration is None):
        raise Failure(ErrorCode.INVALID_REQUEST, "Give a client id, or a registration.", field="client_id")
    if body.registration is None:
        if body.initial_access_token is not None:
            raise Failure(ErrorCode.INVALID_REQUEST, "It needs a registration.", field="initial_access_token")
        return
    per_host = spec.client_registration == "per_host" and body.registration is RegistrationMethod.DYNAMIC
    if not spec.discovery and not per_host:
        why = f"{spec.name} has no issuer whose metadata says where to register."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="registration")
    if body.client_secret is not None or body.client_auth is not None:
        why = "The registration determines the client authentication."
        raise Failure(
            ErrorCode.INVALID_REQUEST, why, field="client_secret" if body.client_secret else "client_auth"
        )
    if body.initial_access_token is not None and body.registration is not RegistrationMethod.DYNAMIC:
        raise Failure(
            ErrorCode.INVALID_REQUEST, "A metadata document needs none.", field="initial_access_token"
        )


def require_nonempty(secret: Secret) -> None:
    if not secret.reveal().strip():
        raise Failure(ErrorCode.INVALID_REQUEST, "The client secret is empty.", field="client_secret")
