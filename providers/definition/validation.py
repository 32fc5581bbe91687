"""Rules that find mistakes in a definition that the schema accepts. Pure.

For example contradictory fields, hosts that the vendor doesn't own, secrets kept as metadata.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from providers.definition.host_validation import hosts_are_pinned, sources_are_named
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import placeholders
from providers.definition.schema_request import BodyFormat, ClientAuth, Pkce
from providers.definition.schema_response import RefreshPart

CATEGORIES = {
    "analytics": "Analytics",
    "cloud": "Cloud and hosting",
    "cms": "Content management",
    "commerce": "Commerce",
    "comms": "Communication",
    "crm": "CRM and sales",
    "design": "Design",
    "dev": "Development",
    "docs": "Documents",
    "education": "Education",
    "erp": "ERP and operations",
    "finance": "Accounting and finance",
    "forms": "Forms and surveys",
    "gaming": "Games",
    "geo": "Maps and places",
    "health": "Health and fitness",
    "hr": "People and recruiting",
    "identity": "Identity",
    "iot": "Devices",
    "legal": "Contracts and signatures",
    "marketing": "Marketing",
    "media": "Music, pictures and reading",
    "ml": "Machine learning",
    "payments": "Payments",
    "productivity": "Projects and productivity",
    "scheduling": "Scheduling",
    "social": "Social networks",
    "storage": "Files and storage",
    "support": "Customer support",
    "travel": "Travel",
    "video": "Video",
    "warehouse": "Data warehouses",
}


@dataclass(frozen=True)
class DefinitionProblem:
    """A mistake: its file and field, and how to repair it."""

    file: str
    field: str
    what: str
    repair: str

    def __str__(self) -> str:
        return f"{self.file}: {self.field}: {self.what}. {self.repair}."


RuleFindings = Iterator[tuple[str, str, str]]  # field, what is wrong, the repair

# whether and how a token is refreshed, and lifetimes of access tokens, are stated without refresh tokens too
_NOT_ABOUT_REFRESH_TOKENS = {
    *("refresh_supported", "refresh", "post_token_exchange", "access_token_lifetime_s", "assumed_lifetime_s"),
}
_REFRESH_FIELDS = (
    *(name for name in RefreshPart.model_fields if name not in _NOT_ABOUT_REFRESH_TOKENS),
    *("refresh_client_auth", "offline_scope"),
)
_SCOPE_FIELDS = (
    "default_scopes",
    "offline_scope",
    "scope_separator",
    "scope_raw_encoding",
    "scope_params",
    "scope_param_name",
    "down_scoping",
)
_SECRET_NAME = re.compile(
    r"token|secret|session_key|session_nonce|password|assertion|webhook\.url", re.IGNORECASE
)
_REMOVE = "Remove it"


def problems_of(spec: ProviderSpec, file: str) -> list[DefinitionProblem]:
    """The mistakes of one definition, by all rules."""
    return [DefinitionProblem(file, *problem) for rule in RULES for problem in rule(spec)]


def differs_from_default(spec: ProviderSpec, field: str) -> bool:
    """Whether the field has another value than its default."""
    return bool(
        getattr(spec, field) != ProviderSpec.model_fields[field].get_default(call_default_factory=True)
    )


def refresh_fields_are_used(spec: ProviderSpec) -> RuleFindings:
    if spec.refresh_supported or spec.refresh.kind != "refresh_token":
        return
    for field in _REFRESH_FIELDS:
        if differs_from_default(spec, field):
            yield field, "is about refreshing, and refresh_supported is false", _REMOVE
    if spec.revocation_endpoint and (spec.revocation is None or spec.revocation.token == "refresh_token"):
        yield (
            "revocation.token",
            "needs a refresh token, and there is none",
            "Set revocation: {token: access_token}",
        )


def rotation_makes_sense(spec: ProviderSpec) -> RuleFindings:
    if spec.refresh_rotates is False and spec.on_reuse:
        yield "on_reuse", "is about reused tokens, and refresh_rotates is false", _REMOVE


def scope_fields_are_used(spec: ProviderSpec) -> RuleFindings:
    for field in _SCOPE_FIELDS if not spec.scopes_supported else ():
        if differs_from_default(spec, field):
            yield field, "is about scopes, and scopes_supported is false", _REMOVE
    for scope in (*spec.default_scopes, *([spec.offline_scope] if spec.offline_scope else [])):
        if spec.scope_separator in scope:
            yield "default_scopes", f"{scope!r} holds the separator", "Make it two scopes"
    if spec.offline_scope in spec.default_scopes:
        yield (
            "default_scopes",
            "lists the offline scope, which is always added",
            "Leave it in offline_scope only",
        )


def credential_fields_are_used(spec: ProviderSpec) -> RuleFindings:
    methods = {spec.client_auth, spec.refresh_client_auth} - {None}
    if ClientAuth.POST not in methods:
        for field in ("client_secret_param", "client_secret_header"):
            if differs_from_default(spec, field):
                yield (
                    field,
                    f"is used by client_secret_post only, and client_auth is {spec.client_auth}",
                    _REMOVE,
                )
    if spec.basic_auth_template is not None and ClientAuth.BASIC not in methods:
        yield "basic_auth_template", "is used by client_secret_basic only", _REMOVE
    if spec.pkce is Pkce.OFF and differs_from_default(spec, "pkce_challenge_encoding"):
        yield "pkce_challenge_encoding", "is about the challenge, and pkce is off", _REMOVE
    if (
        spec.client_auth is ClientAuth.NONE
        and spec.pkce is Pkce.OFF
        and "authorization_code" in spec.auth_modes
    ):
        yield (
            "pkce",
            "is off for a public client, so a stolen code can be used",
            "Find out how codes are bound",
        )
    if spec.token_request_method == "GET" and spec.token_request_format is not BodyFormat.FORM:
        yield "token_request_format", "is about the body, and a GET has none", _REMOVE


def flows_have_what_they_need(spec: ProviderSpec) -> RuleFindings:
    needs = {"device_code": "device_authorization_endpoint", "oauth1": "request_token_endpoint"}
    for mode, field in needs.items():
        listed, has_field = mode in spec.auth_modes, getattr(spec, field) is not None
        if listed and not has_field and not spec.discovery:
            yield field, f"is missing, and auth_modes lists {mode}", f"Add it, or remove {mode}"
        if has_field and not listed:
            yield "auth_modes", f"lacks {mode}, and {field} is present", f"List {mode}, or remove {field}"
    for mode in ("client_credentials", "jwt_bearer", "token_exchange"):
        if getattr(spec, mode, None) is not None and mode not in spec.auth_modes:
            yield mode, "describes a flow that auth_modes doesn't list", f"List {mode}, or leave it out"
    if spec.install_start_url is not None and spec.flow != "install":
        yield "install_start_url", "is about installs, and flow is redirect", _REMOVE
    if spec.token_endpoint is None and not spec.discovery:
        yield "token_endpoint", "is missing, and there is no discovery", "Add it"


def revocation_has_a_url(spec: ProviderSpec) -> RuleFindings:
    rule = spec.revocation
    if rule is None:
        return
    if spec.revocation_endpoint is None and rule.url is None and not spec.discovery:
        yield "revocation", "has no URL", "Add revocation_endpoint or revocation.url"
    if spec.revocation_endpoint is not None and rule.url is not None:
        yield "revocation_endpoint", "is unused, since revocation.url takes precedence", _REMOVE
    if rule.auth == "header" and rule.auth_template is None:
        yield "revocation.auth_template", "is missing for auth: header", "Add the header's value"


def dates_have_a_path(spec: ProviderSpec) -> RuleFindings:
    for prefix in ("expires_at", "refresh_expires_at"):
        default = type(spec.response).model_fields[f"{prefix}_format"].default
        format_ = getattr(spec.response, f"{prefix}_format")
        if format_ != default and getattr(spec.response, f"{prefix}_path") is None:
            yield (
                f"response.{prefix}_format",
                f"is about a date, and there is no {prefix}_path",
                _REMOVE,
            )


def metadata_holds_no_secret(spec: ProviderSpec) -> RuleFindings:
    """Metadata is shown to people and written to logs."""
    secrets = {spec.response.access_token_path, spec.response.refresh_token_path, "id_token"}
    for field, names in (
        ("response.metadata_paths", spec.response.metadata_paths),
        ("callback_metadata_params", spec.callback_metadata_params),
    ):
        for name in names:
            if name in secrets or _SECRET_NAME.search(name) or name == spec.callback_code_param:
                yield field, f"{name} looks like a secret, and metadata is shown", _REMOVE


def parameters_are_used(spec: ProviderSpec) -> RuleFindings:
    dumped = spec.model_dump(mode="json", exclude={"template_params", "notes", "sources"})
    used = placeholders(*_nested_texts(dumped))
    if spec.jwt_bearer is not None:
        used |= spec.jwt_bearer.claims_when.keys()
    if spec.api_base_url_param is not None:
        used.add(spec.api_base_url_param)
    for name in spec.template_params:
        if name not in used:
            yield f"template_params.{name}", "is unused", _REMOVE


def categories_are_known(spec: ProviderSpec) -> RuleFindings:
    for name in spec.categories:
        if name not in CATEGORIES:
            yield "categories", f"{name} is unknown", "Choose one of providers/definition/validation.py"
    if not spec.categories:
        yield "categories", "is empty", "Choose one of providers/definition/validation.py"


def _nested_texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _nested_texts(item)
        case list() | tuple():
            for item in value:
                yield from _nested_texts(item)
        case _:
            return


RULES: tuple[Callable[[ProviderSpec], RuleFindings], ...] = (
    refresh_fields_are_used,
    rotation_makes_sense,
    scope_fields_are_used,
    credential_fields_are_used,
    flows_have_what_they_need,
    revocation_has_a_url,
    dates_have_a_path,
    metadata_holds_no_secret,
    parameters_are_used,
    hosts_are_pinned,
    sources_are_named,
    categories_are_known,
)
