"""Checks of an integration's body: against its provider's definition, and of where its subjects log in.

Nothing is written here.
"""

import re
from datetime import datetime

from evergrant_server.access.context import ApiContext
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.models import IntegrationBody, RotateSecretBody
from evergrant_server.core.access import Action
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import RegistrationMethod, require_login
from evergrant_server.core.secret import Secret
from evergrant_server.policy import Target, scopes_above
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.client_auth import import_signing_key, parse_client_certificate
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth
from providers.definition.templates import checked_params, definition_endpoints, protected_resource_url

UNBOUND_SETTING = "EVERGRANT_ALLOW_UNBOUND_CONSENT"
_AUTH_WITHOUT_SECRET = (ClientAuth.NONE, ClientAuth.PRIVATE_KEY_JWT, *MUTUAL_TLS)
NO_CERTIFICATE = "A client certificate is needed to present."
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+")


def has_client(body: IntegrationBody) -> bool:
    """False for an integration that only gets its redirect URI, with which its client is registered."""
    return body.client_id is not None or body.registration is not None


def with_default_registration(spec: ProviderSpec, body: IntegrationBody) -> IntegrationBody:
    """The body; for a protected resource without a client id, whose issuer is yet unknown, the registration
    is automatic."""
    if spec.protected_resource is None or has_client(body) or body.identity_provider is not None:
        return body
    return body.__replace__(registration=RegistrationMethod.AUTOMATIC)


def require_credentials(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Raise Failure INVALID_REQUEST for a new client without the secret or key that its provider needs."""
    method = ClientAuth(body.client_auth or spec.client_auth)
    signs_secret = spec.client_secret_generator is not None
    if method is ClientAuth.PRIVATE_KEY_JWT and body.client_key is None:
        raise invalid_request("client_key", "A client key is needed to sign with.")
    if method in MUTUAL_TLS and body.client_certificate is None:
        raise invalid_request("client_certificate", NO_CERTIFICATE)
    if signs_secret and body.client_key is None:
        raise invalid_request("client_key", "A client key is needed: the secret is signed with it.")
    secret_given = signs_secret or body.client_secret is not None or body.registration is not None
    if not secret_given and method not in _AUTH_WITHOUT_SECRET:
        why = "A client secret is needed, or client_auth none for a public client."
        raise invalid_request("client_secret", why)


def check_body(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Check the body against the provider's definition. Raises Failure INVALID_REQUEST with the field."""
    spec.require_any_flow()
    if spec.discovery and not body.issuer and spec.protected_resource is None:
        raise invalid_request("issuer", f"{spec.name} needs an issuer.")
    if body.issuer and not spec.discovery:
        raise invalid_request("issuer", f"{spec.name} has its own issuer.")
    if not spec.discovery:
        definition_endpoints(spec, body.params)
    checked_params(spec, body.params)
    protected_resource_url(spec, body.params)
    _check_client(spec, body)
    _check_identity_provider(spec, body)
    if body.client_secret is not None:
        require_nonempty(body.client_secret)
    if scopes_above(body.default_scopes, body.scope_ceiling):
        raise invalid_request("default_scopes", "A default scope is above the ceiling.")


def require_binding_allowed(binding: Binding, api: ApiContext) -> None:
    """Raise Failure INVALID_REQUEST for a binding that the operator doesn't allow."""
    if binding is Binding.NONE and not api.settings.allow_unbound_consent:
        detail = f"The binding none is off: {UNBOUND_SETTING} allows consents of any person who opens a link."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="binding", setting=UNBOUND_SETTING)


def client_key_of(body: IntegrationBody | RotateSecretBody) -> ClientKey | None:
    """The client key of the body. Raises Failure INVALID_REQUEST for one that can't sign."""
    if body.client_key is None:
        return None
    key = ClientKey(private=body.client_key.private, id=body.client_key.id)
    try:
        import_signing_key(key)
    except Failure as failure:
        raise invalid_request("client_key", failure.detail) from None
    return key


def client_certificate_of(body: IntegrationBody, now: datetime) -> ClientCertificate | None:
    """The client certificate of the body. Raises Failure INVALID_REQUEST for an unusable one."""
    pair = body.client_certificate
    return None if pair is None else parse_client_certificate(pair.certificate, pair.private, now)


def _check_client(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Check that the body has not both, a client id and a registration, and only members that go with it."""
    alone = body.client_secret or body.client_key or body.client_certificate or body.client_auth
    if (body.client_id and body.registration) or (alone and not has_client(body)):
        raise invalid_request("client_id", "Give a client id, or a registration.")
    if body.registration is None:
        if body.initial_access_token is not None:
            raise invalid_request("initial_access_token", "It needs a registration.")
        return
    per_host = spec.client_registration == "per_host" and body.registration is RegistrationMethod.DYNAMIC
    if not spec.discovery and not per_host:
        why = f"{spec.name} has no issuer whose metadata says where to register."
        raise invalid_request("registration", why)
    if body.client_secret is not None or body.client_auth is not None:
        why = "The registration determines the client authentication."
        raise invalid_request("client_secret" if body.client_secret else "client_auth", why)
    if body.initial_access_token is not None and body.registration is not RegistrationMethod.DYNAMIC:
        raise invalid_request("initial_access_token", "A metadata document needs none.")


def _check_identity_provider(spec: ProviderSpec, body: IntegrationBody) -> None:
    """ID-JAGs are for confidential clients that the identity provider knows by their id
    (draft-ietf-oauth-identity-assertion-authz-grant sections 5 and 8.1)."""
    if body.identity_provider is None:
        return
    if Flow.ID_JAG.value not in spec.auth_modes:
        raise invalid_request("identity_provider", f"{spec.name} takes no grants of identity providers.")
    if body.client_id is None or body.client_auth == ClientAuth.NONE:
        why = "It needs a confidential client of the issuer, whose id the identity provider knows."
        raise invalid_request("client_id", why)


def require_nonempty(secret: Secret) -> None:
    if not secret.reveal().strip():
        raise invalid_request("client_secret", "The client secret is empty.")


def login_rule(body: IntegrationBody) -> LoginRule | None:
    """The body's rule. Raises Failure INVALID_REQUEST for one that is missing, superfluous or incomplete."""
    login = body.login
    if login is None:
        if body.binding is Binding.OIDC:
            why = "The binding oidc needs it: the integration at whose issuer the subjects log in."
            raise invalid_request("login", why)
        return None
    if body.binding is not Binding.OIDC:
        raise invalid_request("login", "It belongs to the binding oidc.")
    domains = checked_domains(login.claim, login.domains, "login.domains")
    return LoginRule(integration=login.integration, claim=login.claim, domains=domains)


def checked_domains(claim: LoginClaim, names: tuple[str, ...], field: str) -> tuple[str, ...]:
    """The domains of email addresses, in lower case. Raises Failure INVALID_REQUEST."""
    if (claim is LoginClaim.EMAIL) is not bool(names):
        raise invalid_request(field, "The claim email needs domains; no other claim has them.")
    domains = tuple(dict.fromkeys(domain.lower() for domain in names))
    for domain in domains:
        if not _DOMAIN.fullmatch(domain):
            raise invalid_request(field, f"{domain[:80]!r} is no domain such as example.com.")
    return domains


async def require_identity_provider(
    tx: Transaction, call: ApiCall, name: str, provider_name: str | None
) -> None:
    """Raise Failure INVALID_REQUEST unless this is another integration, of which the caller is an admin too:
    it decides for what its subjects' id tokens are used."""
    if provider_name is None:
        return
    provider = None if provider_name == name else await tx.integrations.by_name(call.tenant, provider_name)
    if provider is None or provider.identity_provider is not None:
        why = "It is to be the name of the integration at the identity provider."
        raise invalid_request("identity_provider", why)
    call.require_permit(Action.ADMIN, of=Target(provider.name, provider.provider))


async def pinned_login(tx: Transaction, tenant: Tenant, rule: LoginRule | None) -> LoginRule | None:
    """The rule with the issuer at which its subjects log in now. Raises Failure INVALID_REQUEST, with the
    repair, when none could."""
    if rule is None:
        return None
    try:
        issuer_client = require_login(rule, await tx.integrations.by_name(tenant, rule.integration))
    except Failure as failure:
        raise invalid_request("login.integration", failure.detail) from None
    return rule.__replace__(issuer=issuer_client.issuer)
