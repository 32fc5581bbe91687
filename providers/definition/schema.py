"""A provider's definition: the schema of `catalog/*.yaml`, with errors that name the field.

The schema can say more than today's flows do. What a flow can't honour is refused when the
provider is used (`require_usable`), never ignored.
"""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.refresh_rules import RefreshRules, Rotation
from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema_base import PLACEHOLDER, SpecPart, TextLine, UrlTemplate, placeholders
from providers.definition.schema_lifecycle import RefreshPart, RefreshSpec, RevocationPart, RevocationSpec
from providers.definition.schema_request import (
    AuthorizationPart,
    CallbackPart,
    ClientAuth,
    OtherGrantsPart,
    TokenRequestPart,
)
from providers.definition.schema_response import AccountLookup, ApiRequest, ErrorPart, ResponseSpec
from providers.definition.template import TemplateParam

AuthMode = Literal[
    "authorization_code",
    "client_credentials",
    "device_code",
    "jwt_bearer",
    "token_exchange",
    "oauth1",
    "api_key",
    "implicit",
]  # no password grant (RFC 9700 section 2.4); `implicit` only where an operator allows it (2.1.2)


_WITHOUT_CODE = tuple(flow for flow in Flow if flow not in (Flow.AUTHORIZATION_CODE, Flow.IMPLICIT))
_WITH_TOKEN_REQUEST = tuple(flow for flow in Flow if flow is not Flow.IMPLICIT)
_CLIENT_GRANTS = tuple(flow for flow in Flow if flow.is_client_grant)
_EXEMPT_FLOWS: dict[str, tuple[Flow, ...]] = {  # flows that have nothing to do with a field
    **dict.fromkeys(
        (
            "flow",
            "allow_unsolicited_callback",
            "issuer_template",
        ),
        _WITHOUT_CODE,
    ),
    **dict.fromkeys(
        (
            "refresh_extends_current",
            "refresh_scope_param",
            "min_refresh_age_s",
            "refresh_buffer_s",
        ),
        (*_CLIENT_GRANTS, Flow.IMPLICIT),
    ),
    **dict.fromkeys(("dpop", "callback_verify"), _WITH_TOKEN_REQUEST),
}


class Sources(SpecPart):
    """How many independent public sources agree on a field, and what only the vendor's pages say."""

    agreeing: dict[str, int] = Field(default_factory=dict)
    vendor_documentation: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()


class DescriptivePart(SpecPart):
    """What people and other parts of the platform want to know; no OAuth request depends on it."""

    display_name: TextLine
    categories: tuple[str, ...] = ()
    docs_url: UrlTemplate | None = None
    sources: Sources = Sources()
    notes: tuple[TextLine, ...] = ()
    rate_limit: TextLine | None = None
    token_rate_limit: TextLine | None = None
    api_base_url: UrlTemplate | None = None
    userinfo_endpoint: UrlTemplate | None = None
    api_request: ApiRequest | None = None
    post_auth: tuple[AccountLookup, ...] = ()


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
    """How one service speaks OAuth. The same for every tenant; names no secret."""

    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    version: int = Field(1, ge=1)
    auth_modes: tuple[AuthMode, ...] = Field(min_length=1)
    discovery: bool = False  # endpoints come from the issuer an integration names
    issuer: UrlTemplate | None = None
    issuer_template: bool = False  # the issuer in its metadata is a template: can't be compared
    iss_in_callback: bool = False  # authorization_response_iss_parameter_supported (RFC 9207)
    template_params: dict[str, TemplateParam] = Field(default_factory=dict)
    response: ResponseSpec = Field(default_factory=ResponseSpec)
    quirks: tuple[str, ...] = ()  # named hooks, see providers/quirks

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if {"authorization_code", "implicit"} & set(self.auth_modes) and not self.discovery:
            for needed in ("authorization_endpoint", "token_endpoint"):
                if getattr(self, needed) is None:
                    raise ValueError(f"{needed} is missing, and there is no discovery")
        known = set(self.template_params)
        for name, url in self.credential_urls().items():
            unknown = placeholders(url) - known
            unknown -= {"client_id", "token"} if name == "revocation.url" else set()
            if unknown:
                raise ValueError(f"{name} uses {sorted(unknown)}, which template_params doesn't define")
            host = url.removeprefix("https://").partition("/")[0]
            if any(self.template_params[p].allows(char) for p in placeholders(host) for char in "/ "):
                raise ValueError(f"{name} has a parameter in its host that may hold a / or a space")
        for name, texts in self._param_templates().items():
            unknown = placeholders(*texts) - known
            if unknown:
                raise ValueError(f"{name} uses {sorted(unknown)}, which template_params doesn't define")
        if (self.client_registration == "per_host") is (self.registration_endpoint is None):
            raise ValueError("client_registration: per_host and registration_endpoint go together")
        if sum(lookup.choose is not None for lookup in self.post_auth) > 1:
            raise ValueError("post_auth has more than one choice")
        if self.rotation_grace_s is not None and self.refresh_rotates is not True:
            raise ValueError("rotation_grace_s says something only when refresh_rotates is true")
        if self.refresh_token_in == "header" and ClientAuth.BASIC in (
            self.refresh_client_auth or self.client_auth,
        ):
            raise ValueError("refresh_token_in: header and client_secret_basic want the same header")
        first = self.post_token_exchange
        if first is not None and first.kind != "access_token_exchange":
            raise ValueError("post_token_exchange is of kind access_token_exchange")
        if first is not None and self.refresh_supported and not self.refreshes_with_access_token:
            raise ValueError("post_token_exchange and refresh tokens at once: nobody says which is spent")
        further = self.response.additional_tokens
        if self.scope_params and (further is None or set(self.scope_params) != {further.name}):
            raise ValueError("scope_params asks for the chain that response.additional_tokens names")
        if further is not None and (self.dpop or "oauth1" in self.auth_modes):
            raise ValueError(
                "response.additional_tokens: a chain of its own has no proof key and no signature"
            )
        return self

    def _param_templates(self) -> dict[str, tuple[str | None, ...]]:
        """What is filled in beside URLs, by field name."""
        fields = ("authorization_params", "token_params", "token_query_params", "refresh_params")
        filled = {name: tuple(getattr(self, name).values()) for name in fields}
        expected = tuple(self.callback_expected.values())
        return {
            **filled,
            "redirect_uri_override": (self.redirect_uri_override,),
            "callback_expected": expected,
        }

    def url_templates(self) -> dict[str, str]:
        """Every URL of the OAuth requests, by field name, templates unfilled."""
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
        urls |= {f"post_auth.{place}": lookup.url for place, lookup in enumerate(self.post_auth)}
        return {name: url for name, url in urls.items() if url is not None}

    def credential_urls(self) -> dict[str, str]:
        """The same, and where apps are told to send the tokens."""
        api = {"api_base_url": self.api_base_url} if self.api_base_url is not None else {}
        return self.url_templates() | api

    def refresh_rules(self) -> RefreshRules:
        """How this provider's refresh tokens behave; what isn't known counts as strict."""
        rotation, grace_s = self._rotation()
        idle = self.refresh_token_idle_s
        if self.refresh_rotates is not False:
            # each rotation starts a new lifetime, so a lifetime is also the longest idle time
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
        """The access token is its own refresh token: once it is over, nothing can be made from it."""
        return self.refresh_supported and self.refresh.kind == "access_token_exchange"

    @property
    def has_revocation(self) -> bool:
        """False when the provider is declared to have no revocation. Discovery may still find one."""
        return self.revocation_endpoint is not None or self.revocation is not None

    def require_usable(self, flow: Flow = Flow.AUTHORIZATION_CODE) -> None:
        """Raise Failure INVALID_REQUEST when this flow can't honour this definition."""
        if flow.is_static:
            return  # nothing is ever asked of the provider
        if flow.value not in self.auth_modes:
            raise self._unusable_failure(flow, "auth_modes", f"speaks {', '.join(self.auth_modes)}")
        for field, why in self.unsupported_fields(flow):
            raise self._unusable_failure(flow, field, why)

    def unsupported_fields(self, flow: Flow) -> Iterator[tuple[str, str]]:
        """What this flow would need and doesn't carry out: field and why not."""
        for field, (needed, why) in self._unsupported().items():
            if needed and not flow.is_static and flow not in _EXEMPT_FLOWS.get(field, ()):
                yield field, why

    def require_any_flow(self) -> None:
        """Raise the Failure of `require_usable` for the first flow, unless there is one that works."""
        flows = [flow for flow in Flow if flow.value in self.auth_modes] or [Flow.AUTHORIZATION_CODE]
        failures: list[Failure] = []
        for flow in flows:
            try:
                return self.require_usable(flow)
            except Failure as failure:
                failures.append(failure)
        raise failures[0]

    def _unusable_failure(self, flow: Flow, field: str, why: str) -> Failure:
        name = flow.value.replace("_", " ")
        article = "an" if name[0] in "aeiou" else "a"
        detail = f"provider {self.name} can't be used for {article} {name} connection: {field}: {why}"
        return Failure(ErrorCode.INVALID_REQUEST, detail, provider=self.name, field=field)

    def _unsupported(self) -> dict[str, tuple[Any, str]]:
        """What the schema can say and the flows don't do: field -> (is it asked for, why not)."""
        later = {n for n, p in self.template_params.items() if p.source == "post_auth_lookup"}
        texts = (text for part in self._param_templates().values() for text in part)
        used = placeholders(*self.url_templates().values(), *texts)
        return {
            "flow": (self.flow != "redirect", "the provider begins it, with a callback that has no state"),
            "allow_unsolicited_callback": (self.allow_unsolicited_callback, "every callback needs a state"),
            "response.id_token": (self.response.id_token == "verify", "id tokens are kept, not verified"),
            "refresh_extends_current": (self.refresh_extends_current, "a refresh must bring a token"),
            "refresh_scope_param": (self.refresh_scope_param, "one token per connection"),
            "issuer_template": (self.issuer_template, "an issuer is compared as a plain string"),
            "dpop": (self.dpop, "a token that a browser brings is bound to no key"),
            "callback_verify": (self.callback_verify, "what a browser brings itself is not signed"),
            "template_params": (used & later, "what a lookup brings comes too late for these requests"),
        }


__all__ = ["PLACEHOLDER", "ClientAuth", "ProviderSpec", "RefreshSpec", "RevocationSpec", "TemplateParam"]
