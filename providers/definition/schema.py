"""The schema of a provider's definition (`catalog/*.yaml`). Errors name the field.

The schema can express more than the flows support. `require_usable` refuses a definition that a flow
can't follow.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules, Rotation
from providers.definition.schema_base import TemplateParam, UrlTemplate, placeholders
from providers.definition.schema_description import DescriptivePart
from providers.definition.schema_errors import ErrorPart
from providers.definition.schema_request import (
    AuthorizationPart,
    CallbackPart,
    ClientAuth,
    OtherGrantsPart,
    TokenRequestPart,
)
from providers.definition.schema_response import (
    RefreshPart,
    ResponseSpec,
    RevocationPart,
)

AuthMode = Literal[
    "authorization_code",
    "client_credentials",
    "device_code",
    "jwt_bearer",
    "token_exchange",
    "id_jag",
    "oauth1",
    "api_key",
    "implicit",
]  # no password grant (RFC 9700 section 2.4); `implicit` only where the operator allows it (2.1.2)

_LEFT_OUT_WITH_PARAMS = (
    *("authorization_params", "token_params", "token_query_params", "refresh_params"),
    "install_start_url",
)


class ProviderSpec(
    DescriptivePart,
    AuthorizationPart,
    CallbackPart,
    TokenRequestPart,
    OtherGrantsPart,
    ErrorPart,
    RefreshPart,
    RevocationPart,
):
    """How one provider implements OAuth. It is the same for every tenant and holds no secret."""

    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    version: int = Field(1, ge=1)
    auth_modes: tuple[AuthMode, ...] = Field(min_length=1)
    discovery: bool = False  # endpoints come from the integration's issuer
    protected_resource: str | None = None  # URL of the resource whose metadata names the issuer (RFC 9728)
    issuer: UrlTemplate | None = None
    iss_in_callback: bool = False  # authorization_response_iss_parameter_supported (RFC 9207)
    template_params: dict[str, TemplateParam] = Field(default_factory=dict)
    response: ResponseSpec = Field(default_factory=ResponseSpec)
    quirks: tuple[str, ...] = ()  # see providers/quirks.py

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        self._check_endpoints()
        self._check_placeholders()
        self._check_refresh()
        self._check_additional_tokens()
        if sum(lookup.choose is not None for lookup in self.post_auth) > 1:
            raise ValueError("post_auth has more than one choice")
        reply = self.response
        metadata = {*reply.metadata_paths, *reply.metadata_patterns, *self.callback_metadata_params}
        named = self.api_from_reply
        param = self.api_base_url_param
        if param is not None and (self.api_base_url or named is not None):
            raise ValueError("api_base_url_param: the API has another base URL")
        if param is not None and not (self._param_pattern(param)).startswith(("^https?://", "^https://")):
            raise ValueError("api_base_url_param: the parameter's pattern has to begin with ^https://")
        if named is not None and (named.metadata not in reply.metadata_paths or self.api_base_url):
            raise ValueError("api_from_reply names metadata of the reply, and stands alone")
        if self.account_id is not None and self.account_id not in metadata:
            raise ValueError(f"account_id names {self.account_id}, which no reply or callback brings")
        return self

    def _check_endpoints(self) -> None:
        if {"authorization_code", "implicit"} & set(self.auth_modes) and not self.discovery:
            for needed in ("authorization_endpoint", "token_endpoint"):
                if getattr(self, needed) is None:
                    raise ValueError(f"{needed} is missing, and there is no discovery")
        if self.protected_resource is not None and not self.discovery:
            raise ValueError("protected_resource needs discovery")
        if (self.client_registration == "per_host") is (self.registration_endpoint is None):
            raise ValueError("client_registration: per_host and registration_endpoint go together")

    def _param_pattern(self, name: str) -> str:
        rule = self.template_params.get(name)
        return "" if rule is None or rule.source != "integration" else rule.pattern or ""

    def _check_placeholders(self) -> None:
        known = set(self.template_params)
        urls = self.credential_urls()
        for name, url in urls.items():
            host = url.removeprefix("https://").partition("/")[0]
            in_host = placeholders(host) & known
            if any(self.template_params[param].allows(char) for param in in_host for char in "/ "):
                raise ValueError(f"{name} has a parameter in its host that may hold a / or a space")
        templates = self._param_templates() | {name: (url,) for name, url in urls.items()}
        templates |= {name: (getattr(self, name),) for name in ("install_start_url", "protected_resource")}
        for name, texts in templates.items():
            unknown = placeholders(*texts) - known
            unknown -= {"client_id", "token"} if name == "revocation.url" else set()
            if unknown:
                raise ValueError(f"{name} uses {sorted(unknown)}, which template_params doesn't define")
            omitted = {
                param for param in placeholders(*texts) & known if self.template_params[param].optional
            }
            if omitted and name not in _LEFT_OUT_WITH_PARAMS:
                raise ValueError(f"{name} needs {sorted(omitted)}, which template_params has as optional")

    def _check_refresh(self) -> None:
        if self.rotation_grace_s is not None and self.refresh_rotates is not True:
            raise ValueError("rotation_grace_s needs refresh_rotates: true")
        if self.refresh_token_in == "header" and ClientAuth.BASIC in (
            self.refresh_client_auth or self.client_auth,
        ):
            raise ValueError("refresh_token_in: header and client_secret_basic want the same header")
        exchange = self.post_token_exchange
        if exchange is not None and exchange.kind != "access_token_exchange":
            raise ValueError("post_token_exchange is of kind access_token_exchange")
        if exchange is not None and self.refresh_supported and not self.refreshes_with_access_token:
            raise ValueError("post_token_exchange and refresh tokens exclude each other")

    def _check_additional_tokens(self) -> None:
        additional = self.response.additional_tokens
        if self.scope_params and (additional is None or set(self.scope_params) != {additional.name}):
            raise ValueError("scope_params names the token slot of response.additional_tokens")
        if additional is not None and (self.dpop or "oauth1" in self.auth_modes):
            raise ValueError("response.additional_tokens: these tokens have no proof key and no signature")

    def _param_templates(self) -> dict[str, tuple[str | None, ...]]:
        """The templates of parameters, by field name."""
        names = ("authorization_params", "token_params", "token_query_params", "refresh_params")
        filled = {name: tuple(getattr(self, name).values()) for name in (*names, "callback_expected")}
        return filled | {"redirect_uri_override": (self.redirect_uri_override,)}

    def url_templates(self) -> dict[str, str]:
        """Every URL template of an OAuth request, by field name."""
        urls: dict[str, str | None] = {
            "authorization_endpoint": self.authorization_endpoint,
            "pushed_authorization_request_endpoint": self.pushed_authorization_request_endpoint,
            "token_endpoint": self.token_endpoint,
            "refresh_endpoint": self.refresh_endpoint,
            "refresh.url": self.refresh.url,
            "post_token_exchange.url": self.post_token_exchange.url if self.post_token_exchange else None,
            "request_token_endpoint": self.request_token_endpoint,
            "oauth1.authorization_endpoint": self.oauth1.authorization_endpoint if self.oauth1 else None,
            "oauth1.token_endpoint": self.oauth1.token_endpoint if self.oauth1 else None,
            "revocation_endpoint": self.revocation_endpoint,
            "revocation.url": self.revocation.url if self.revocation else None,
            "introspection_endpoint": self.introspection_endpoint,
            "device_authorization_endpoint": self.device_authorization_endpoint,
            "registration_endpoint": self.registration_endpoint,
            "issuer": self.issuer,
        }
        urls |= {f"post_auth.{index}": lookup.url for index, lookup in enumerate(self.post_auth)}
        return {name: url for name, url in urls.items() if url is not None}

    def credential_urls(self) -> dict[str, str]:
        """`url_templates` and the base URL of the API, to which apps send the tokens."""
        api = {"api_base_url": self.api_base_url} if self.api_base_url is not None else {}
        return self.url_templates() | api

    @cached_property
    def scope_alias_groups(self) -> tuple[frozenset[str], ...]:
        """The names of each scope that has several, without case."""
        groups: dict[str, set[str]] = {}
        for alias, scope in self.scope_aliases.items():
            groups.setdefault(scope.casefold(), {scope.casefold()}).add(alias.casefold())
        return tuple(frozenset(names) for names in groups.values())

    @property
    def code_lifetime(self) -> timedelta | None:
        """How long an authorization code is valid, if that is known."""
        return None if self.code_lifetime_s is None else timedelta(seconds=self.code_lifetime_s)

    def refresh_rules(self) -> RefreshRules:
        """The rotation and lifetimes of refresh tokens. An unknown rotation counts as strict."""
        rotation, grace_s = self._rotation()
        idle = self.refresh_token_idle_s
        if self.refresh_rotates is not False:
            # each rotation starts a new lifetime, so the lifetime bounds the idle time as well
            idle = idle or self.refresh_token_lifetime_s
        return RefreshRules(
            rotation=rotation,
            grace_s=grace_s,
            refresh_token_idle_s=idle,
            margin_s=self.refresh_buffer_s,
            min_age_s=self.min_refresh_age_s,
        )

    def _rotation(self) -> tuple[Rotation, float]:
        if self.refresh_rotates is None:
            return Rotation.UNKNOWN, 0
        if not self.refresh_rotates or self.rotation_grace_s == "unlimited":  # the old token stays good
            return Rotation.NONE, 0
        if self.rotation_grace_s:
            return Rotation.GRACE, self.rotation_grace_s
        return Rotation.STRICT, 0

    @property
    def refreshes_with_access_token(self) -> bool:
        """Whether a refresh exchanges the access token itself, so that an expired one can't be refreshed."""
        return self.refresh_supported and self.refresh.kind == "access_token_exchange"

    @property
    def has_revocation(self) -> bool:
        """Whether the definition has a revocation. Discovery may find one where it has none."""
        return self.revocation_endpoint is not None or self.own_revocation is not None

    def require_usable(self, flow: Flow = Flow.AUTHORIZATION_CODE) -> None:
        """Raise Failure INVALID_REQUEST when this flow doesn't support the definition."""
        if flow.is_static:
            return  # sends the provider no request
        if flow.value not in self.auth_modes:
            raise self._unusable_failure(flow, "auth_modes", f"speaks {', '.join(self.auth_modes)}")
        for field, why in self.unsupported_fields(flow):
            raise self._unusable_failure(flow, field, why)

    def unsupported_fields(self, flow: Flow) -> Iterator[tuple[str, str]]:
        """Fields of the definition that this flow doesn't support, each with the reason."""
        if flow.is_static:
            return
        if self.dpop and flow is Flow.IMPLICIT:
            yield "dpop", "a token in a fragment can't be bound to a key"
        if self.callback_verify is not None and flow is Flow.IMPLICIT:
            yield "callback_verify", "a fragment is not signed"
        later = {name for name, rule in self.template_params.items() if rule.source == "post_auth_lookup"}
        texts = (text for part in self._param_templates().values() for text in part)
        if later & placeholders(*self.url_templates().values(), *texts):
            yield "template_params", "the lookup comes after these requests"

    def require_any_flow(self) -> None:
        """Raise the Failure of `require_usable` for the first flow, unless some flow is usable."""
        failures: list[Failure] = []
        for mode in self.auth_modes:
            try:
                return self.require_usable(Flow(mode))
            except Failure as failure:
                failures.append(failure)
        raise failures[0]

    def _unusable_failure(self, flow: Flow, field: str, why: str) -> Failure:
        name = flow.value.replace("_", " ")
        article = "an" if name[0] in "aeiou" else "a"
        detail = f"provider {self.name} can't be used for {article} {name} connection: {field}: {why}"
        return Failure(ErrorCode.INVALID_REQUEST, detail, provider=self.name, field=field)
