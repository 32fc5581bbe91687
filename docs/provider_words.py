"""Describes the parts of a definition in words."""

from typing import Any

from evergrant_server.core.connections.replaced import RevocationReach
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import BodyFormat, ClientAuth, Pkce
from providers.tools.catalogue_report import unusable_flows
from providers.tools.evidence import PARTS, absent_parts, sourced_parts

_FLOWS = {
    "authorization_code": "authorization code",
    "client_credentials": "client credentials",
    "device_code": "device",
    "jwt_bearer": "JWT bearer",
    "token_exchange": "token exchange",
    "id_jag": "a grant of an identity provider",
    "oauth1": "OAuth 1.0a",
    "implicit": "implicit (off unless an operator allows it)",
    "api_key": "API key",
}
_CLIENT = {
    ClientAuth.BASIC: "secret in the Authorization header (Basic)",
    ClientAuth.POST: "secret among the parameters",
    ClientAuth.NONE: "none: a public client",
    ClientAuth.PRIVATE_KEY_JWT: "signed with a private key (RFC 7523)",
    ClientAuth.SECRET_JWT: "signed with the secret",
    ClientAuth.TLS: "mutual TLS",
}
_REACH = {
    RevocationReach.TOKEN: "; ends one grant",
    RevocationReach.GRANT: "; ends every grant of the account to this client",
    RevocationReach.UNKNOWN: "",
}
_SEPARATORS = {" ": "spaces", ",": "commas", ";": "semicolons", "+": "plus signs"}
_SPANS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is."""
    for bad, good in (("\\", "\\\\"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("[", "\\["), ("_", "\\_")):
        text = text.replace(bad, good)
    return text


def format_duration(seconds: float) -> str:
    """A length of time in its largest whole unit."""
    for length, name in _SPANS:
        if seconds >= length and seconds % length == 0:
            count = int(seconds // length)
            return f"{count} {name}" + ("s" if count != 1 else "")
    return f"{seconds:g} seconds"


def flows(spec: ProviderSpec) -> list[str]:
    return [_FLOWS.get(mode, mode.replace("_", " ")) for mode in spec.auth_modes]


def token_summary(spec: ProviderSpec) -> str:
    if "authorization_code" not in spec.auth_modes:
        return "no consent in a browser"
    if not spec.refresh_supported:
        return "no refresh"
    rotates = {True: "refresh, rotating", False: "refresh", None: "refresh, rotation unknown"}
    return rotates[spec.refresh_rotates]


def parameters(spec: ProviderSpec) -> str:
    parts = []
    for name, rule in spec.template_params.items():
        takes = "any host" if rule.kind == "arbitrary_host" else ""
        if rule.enum:
            takes = "one of " + ", ".join(f"`{value}`" for value in rule.enum)
        usual = "may be omitted" if rule.optional else f"usually `{rule.default}`" if rule.default else ""
        if rule.source != "integration":
            usual = f"from the {rule.source.replace('_', ' ')}"
        facts = "; ".join(fact for fact in (escape_markdown(rule.description), takes, usual) if fact)
        parts.append(f"`{name}`" + (f" ({facts})" if facts else ""))
    return ", ".join(parts)


def scopes(spec: ProviderSpec) -> str:
    if not spec.scopes_supported:
        return "none; the app's registration decides what it may do" if spec.docs_url else "none"
    parts = []
    if spec.scope_separator != " ":
        parts.append(f"separated by {_SEPARATORS.get(spec.scope_separator, spec.scope_separator)}")
    if spec.default_scopes:
        parts.append("requested by default: " + ", ".join(f"`{scope}`" for scope in spec.default_scopes))
    if spec.offline_scope:
        when = "requested where the server lists it" if spec.discovery else "always requested"
        parts.append(f"`{spec.offline_scope}` yields the refresh token and is {when}")
    return "; ".join(parts)


def pkce(spec: ProviderSpec) -> str:
    if "authorization_code" not in spec.auth_modes:
        return ""
    texts = {
        Pkce.REQUIRED: "required",
        Pkce.S256: "S256",
        Pkce.OFF: "not sent: the provider refuses or ignores it",
    }
    return texts.get(spec.pkce, "sent, S256")


def client_authentication(spec: ProviderSpec) -> str:
    text = _CLIENT[spec.client_auth]
    if spec.client_secret_header:
        text = f"secret in the header `{spec.client_secret_header}`"
    if spec.client_secret_generator:
        text = "a secret that is a signed JWT, generated when needed"
    known = spec.sources.agreeing.keys() | set(spec.sources.vendor_documentation)
    if "client_auth" not in known and spec.client_auth is ClientAuth.BASIC:
        text += "; unknown, so the default of RFC 6749"
    if spec.refresh_client_auth:
        text += f"; when refreshing: {_CLIENT[spec.refresh_client_auth]}"
    return text


def access_tokens(spec: ProviderSpec) -> str:
    if spec.assumed_lifetime_s:
        return f"last {format_duration(spec.assumed_lifetime_s)}, which the reply omits"
    if spec.access_token_lifetime_s:
        return f"last {format_duration(spec.access_token_lifetime_s)}; the reply decides"
    return "" if spec.refresh_supported else "no known expiry"


_NARROWING = {
    "refresh": "a refresh may request fewer scopes, for a narrower access token beside the other",
    "unsupported": "the provider issues no narrower access token",
}


def refresh_tokens(spec: ProviderSpec) -> str:
    if not spec.refresh_supported or "authorization_code" not in spec.auth_modes:
        return "none"
    if spec.refresh.kind != "refresh_token":
        return "none; the access token is exchanged for a new one"
    parts = {
        True: ["rotate: each works once"],
        False: ["stay the same"],
        None: ["rotation is unknown, so each is used only once"],
    }[spec.refresh_rotates]
    if spec.rotation_grace_s == "unlimited":
        parts = ["a refresh returns a new one, and the old one stays valid"]
    elif spec.rotation_grace_s:
        parts.append(f"the old one works for {format_duration(spec.rotation_grace_s)} more")
    if spec.on_reuse:
        parts.append("a second use of one ends the grant")
    if spec.refresh_token_lifetime_s:
        parts.append(f"last {format_duration(spec.refresh_token_lifetime_s)}")
    if spec.down_scoping != "unknown":
        parts.append(_NARROWING[spec.down_scoping])
    if spec.refresh_token_idle_s:
        parts.append(f"end after {format_duration(spec.refresh_token_idle_s)} without use")
    return "; ".join(parts)


def revocation(spec: ProviderSpec) -> str:
    if not spec.has_revocation:
        return "none known: the subject ends the grant at the provider" if not spec.discovery else ""
    request = "RFC 7009" if spec.own_revocation is None else "a request of its own"
    return request + _REACH[spec.revocation_reach]


def limits(spec: ProviderSpec) -> str:
    parts = [escape_markdown(spec.rate_limit)] if spec.rate_limit else []
    if spec.token_limit is not None:
        limit = spec.token_limit
        requests = "request" if limit.requests == 1 else "requests"
        every = format_duration(limit.window_s)
        parts.append(f"at the token endpoint {limit.requests:,} {requests} in {every} per {limit.per}")
    return "; ".join(parts)


def deviations(spec: ProviderSpec) -> str:
    """Differences from RFC 6749, and the API's header for the token."""
    response = spec.response
    texts = {
        "the token request is a GET": spec.token_request_method == "GET",
        "the token request is JSON": spec.token_request_format is BodyFormat.JSON,
        "parameters of the token request are in the query": spec.token_request_format is BodyFormat.QUERY,
        "parameters have other names": spec.client_id_param != "client_id"
        or spec.authorization_client_id_param
        or spec.authorization_param_names
        or spec.token_request_param_names,
        "refreshing has its own URL": spec.refresh_endpoint,
        "tokens are nested in the reply": "." in response.access_token_path,
        "fields of the reply have other names": "." not in response.access_token_path
        and response.access_token_path != "access_token",
        "the expiry is a date": response.expires_at_path,
        "errors have status 200": spec.status_field or any(not rule.means for rule in spec.error_rules),
        "the callback has metadata: " + ", ".join(f"`{n}`" for n in spec.callback_metadata_params): (
            spec.callback_metadata_params
        ),
        "the callback is signed": spec.callback_verify,
        "an install that begins at the provider is led to your app": spec.flow == "install",
        "the callback has the granted scopes": spec.scope_from_callback,
        f"a code works for {format_duration(spec.code_lifetime_s or 1)}": spec.code_lifetime_s,
        "the account is looked up after the consent": spec.post_auth,
        f"the API takes the token in `{_api_header(spec)}`": spec.api_request and _api_header(spec),
    }
    return "; ".join(text for text, holds in texts.items() if holds)


def api(spec: ProviderSpec) -> str:
    """Where the provider's API is."""
    named = spec.api_from_reply
    if named is not None:
        return f"`https://{{{named.metadata}}}{named.path}`, whose host each token reply names"
    return f"`{spec.api_base_url}`" if spec.api_base_url else ""


def _api_header(spec: ProviderSpec) -> str:
    rule = spec.api_request
    if rule is None or (rule.auth_header, rule.auth_scheme) == ("Authorization", "Bearer"):
        return ""
    return f"{rule.auth_header}: {rule.auth_scheme}".removesuffix(": ")


def unusable_flows_text(spec: ProviderSpec) -> str:
    texts = [f"{flow.flow.replace('_', ' ')}: `{flow.field}`: {flow.why}" for flow in unusable_flows(spec)]
    return "; ".join(dict.fromkeys(texts))


def evidence(vector: dict[str, Any]) -> str:
    """Which of the provider's replies have a public source."""
    sourced, absent = sourced_parts(vector), absent_parts(vector)
    there = ", ".join(text for part, text in PARTS.items() if part in sourced)
    missing = ", ".join(text for part, text in PARTS.items() if part in absent)
    texts = (f"with a source: {there}" if there else "", f"none found for {missing}" if missing else "")
    return "; ".join(filter(None, texts))


def sources(spec: ProviderSpec) -> str:
    agreeing = spec.sources.agreeing.get("token_endpoint", 0)
    parts = [f"{agreeing} agree on the token endpoint" if agreeing > 1 else ""]
    if agreeing == 1:
        parts = ["one for the token endpoint"]
    if spec.sources.vendor_documentation:
        fields = ", ".join(f"`{name}`" for name in spec.sources.vendor_documentation)
        parts.append(f"only the vendor documents {fields}")
    if spec.sources.disagreements:
        parts.append("the definition lists contradicting sources")
    return "; ".join(part for part in parts if part)
