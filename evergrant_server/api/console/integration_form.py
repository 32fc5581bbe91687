"""The form of an integration: what it offers of a provider, its values, and the body that it stands for.

It has a field for each member of the API's body, so that a change loses none of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from evergrant_server.api.console.forms import number_of
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.models import IntegrationBody
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.login import LoginClaim
from evergrant_server.core.integrations import Integration, RegistrationMethod, Rotation
from providers.definition.schema import ProviderSpec

FIELDS = (
    *("name", "provider", "issuer", "client_id", "client_secret", "client_auth", "registration"),
    *("initial_access_token", "default_scopes", "scope_ceiling", "dpop", "binding"),
    *("login.integration", "login.domains", "on_reconnect", "after_grant_over"),
    *("identity_provider", "refresh.rotation", "refresh.grace_s", "refresh.refresh_token_idle_s"),
    *("client_key.private", "client_key.id"),
    *("client_certificate.certificate", "client_certificate.private"),
)
ALIASES = {  # members of the body that have members of their own
    "login": "login.integration",
    "client_key": "client_key.private",
    "client_certificate": "client_certificate.certificate",
}
NO_SCOPES = "-"  # a ceiling that allows none: an empty field is no ceiling
_DAY_S = 86_400
AUTH_WORDS = {
    "": "as the provider's definition says",
    "client_secret_basic": "a secret, in a header",
    "client_secret_post": "a secret, in the body",
    "client_secret_jwt": "a JWT that the secret signs",
    "private_key_jwt": "a JWT that a key signs",
    "tls_client_auth": "a certificate of an authority",
    "self_signed_tls_client_auth": "a certificate of its own",
    "none": "nothing: a public client",
}
REGISTRATION_WORDS = {
    "": "I give its client id, now or later",
    RegistrationMethod.AUTOMATIC: "a worker registers one: in the way that the server offers",
    RegistrationMethod.DYNAMIC: "a worker registers one: dynamically (RFC 7591)",
    RegistrationMethod.METADATA_DOCUMENT: "the server reads a document about Evergrant",
}
BINDING_WORDS = {
    Binding.APP: "the app, when the person comes back",
    Binding.APP_FIRST: "the app, before the person goes to the provider",
    Binding.OIDC: "a login at your own issuer",
    Binding.NONE: "nobody: whoever opens the link",
}
ROTATION_WORDS = {
    "": "as the provider's definition says",
    Rotation.NONE: "they stay",
    Rotation.GRACE: "each use brings a new one, the old one works for a while",
    Rotation.STRICT: "each use brings a new one, at once",
}


class Offer(NamedTuple):
    """What the form shows of a provider."""

    provider: str
    display_name: str
    docs_url: str | None
    takes_issuer: bool
    registers: bool
    params: Mapping[str, Any]
    scopes: tuple[str, ...]
    offline_scope: str | None


def offer_of(spec: ProviderSpec, integration: Integration | None = None) -> Offer:
    """The provider's parts, with the scopes that its definition or the read metadata names."""
    chosen = () if integration is None else integration.default_scopes
    endpoints = None if integration is None else integration.endpoints
    listed = () if endpoints is None else endpoints.resource_scopes
    resource = spec.protected_resource is not None
    return Offer(
        provider=spec.name,
        display_name=spec.display_name,
        docs_url=spec.docs_url,
        takes_issuer=spec.discovery and not resource,
        registers=spec.discovery or spec.client_registration == "per_host",
        params={name: rule for name, rule in spec.template_params.items() if rule.source == "integration"},
        scopes=tuple(dict.fromkeys((*spec.default_scopes, *listed, *chosen))),
        offline_scope=spec.offline_scope,
    )


def values_of(integration: Integration) -> dict[str, str]:
    """What the form of a change begins with. No secret."""
    rules, login = integration.refresh_overrides or {}, integration.login
    idle = rules.get("refresh_token_idle_s")
    ceiling = integration.scope_ceiling
    values: dict[str, str | None] = {
        "issuer": integration.issuer,
        "client_id": None if integration.registration else integration.client_id,
        "client_auth": None if integration.registration else integration.client_auth,
        "registration": integration.registration,
        "default_scopes": " ".join(integration.default_scopes),
        "scope_ceiling": None if ceiling is None else " ".join(ceiling) or NO_SCOPES,
        "dpop": None if integration.dpop is None else ("yes" if integration.dpop else "no"),
        "binding": integration.binding,
        "login.integration": None if login is None else login.integration,
        "login.domains": None if login is None else " ".join(login.domains),
        "on_reconnect": integration.on_reconnect,
        "after_grant_over": integration.after_grant_over,
        "identity_provider": integration.identity_provider,
        "refresh.rotation": rules.get("rotation"),
        "refresh.grace_s": _plain(rules.get("grace_s")),
        "refresh.refresh_token_idle_s": None if idle is None else _plain(idle / _DAY_S),
        **{f"params.{name}": text for name, text in integration.params.items()},
    }
    return {name: str(text) for name, text in values.items() if text}


def body_of(provider: str, fields: Mapping[str, str]) -> IntegrationBody:
    """The body that the form stands for. Raises Failure INVALID_REQUEST, ValidationError."""
    body: dict[str, Any] = {
        name: fields[name]
        for name in (
            *("issuer", "client_id", "client_secret", "client_auth", "registration"),
            *("initial_access_token", "binding", "on_reconnect", "after_grant_over", "identity_provider"),
        )
        if fields.get(name)
    }
    params = {
        name.removeprefix("params."): text for name, text in fields.items() if name.startswith("params.")
    }
    body |= {"provider": provider, "params": {name: text for name, text in params.items() if text}}
    body["default_scopes"] = list(dict.fromkeys(fields.get("default_scopes", "").split()))
    if ceiling := fields.get("scope_ceiling"):
        body["scope_ceiling"] = [] if ceiling == NO_SCOPES else ceiling.split()
    if dpop := fields.get("dpop"):
        body["dpop"] = dpop == "yes"
    if named := fields.get("login.integration"):
        domains = fields.get("login.domains", "").split()
        claim = LoginClaim.EMAIL if domains else LoginClaim.SUB
        body["login"] = {"integration": named, "claim": claim.value, "domains": domains}
    if any(fields.get(name) for name in ("client_key.private", "client_key.id")):
        body["client_key"] = _members(fields, "client_key", ("private", "id"))
    if any(fields.get(f"client_certificate.{name}") for name in ("certificate", "private")):
        body["client_certificate"] = _members(fields, "client_certificate", ("certificate", "private"))
    return IntegrationBody.model_validate({**body, "refresh": _refresh(fields)})


def _members(fields: Mapping[str, str], name: str, members: tuple[str, ...]) -> dict[str, str]:
    return {member: text for member in members if (text := fields.get(f"{name}.{member}"))}


def _refresh(fields: Mapping[str, str]) -> dict[str, Any]:
    """The refresh rules that the form overrides; days become seconds."""
    days = number_of(fields, "refresh.refresh_token_idle_s")
    rules = {
        "rotation": fields.get("refresh.rotation") or None,
        "grace_s": number_of(fields, "refresh.grace_s"),
        "refresh_token_idle_s": None if days is None else days * _DAY_S,
    }
    return {name: rule for name, rule in rules.items() if rule is not None}


def _plain(number: float | None) -> str | None:
    return None if number is None else f"{number:g}"


async def integration_row(call: ApiCall, name: str) -> Integration | None:
    """The integration of this name, as its form needs it."""
    async with call.api.store.read() as tx:
        return await tx.integrations.by_name(call.tenant, name)
