"""Rules about the hosts to which a definition sends codes and secrets. Pure."""

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import PLACEHOLDER, placeholders

_PROBES = (
    "evil.com",
    "www.evil.com",
    "evil",
    "com.evil",
    "evil.co.uk",
    "localhost",
    "127.0.0.1",
    "acme.evil.com",
)
# suffixes below which any person may register a domain
_PUBLIC_SUFFIXES = (
    ".co.uk",
    ".com.au",
    ".com.br",
    ".co.jp",
    ".com.cn",
    ".github.io",
    ".vercel.app",
    ".herokuapp.com",
)

# which account a connection is pinned to, and how long its app may take to confirm the subject
_NEED_A_SOURCE = ("account_id", "code_lifetime_s", "token_limit", "api_limits", "down_scoping")


def hosts_are_pinned(spec: ProviderSpec) -> Iterator[tuple[str, str, str]]:
    """A parameter chooses only among the vendor's hosts, unless its kind is `arbitrary_host`."""
    loose: dict[str, tuple[str, str]] = {}
    for field, url in spec.credential_urls().items():
        host = urlsplit(PLACEHOLDER.sub("x", url)).hostname or ""
        if _is_address(host) or ("." not in host and not placeholders(url)):
            yield field, "names an address or a host without a domain", "Name the provider's host"
        authority = url.removeprefix("https://").partition("/")[0]
        for name in placeholders(authority):
            probe = _foreign_host_accepted(spec, authority, name)
            if probe is not None:
                loose.setdefault(name, (probe, field))
    named = spec.api_from_reply
    if named is not None and any(named.base_url(probe) for probe in _PROBES):
        yield "api_from_reply.pattern", "accepts hosts of others", "Pin it to the vendor's domain"
    for name, (probe, field) in loose.items():
        yield (
            f"template_params.{name}",
            f"accepts {probe} in the host of {field}, which would get client secrets or tokens",
            "Pin it to the vendor's domain: a closed list, or a pattern that ends in it",
        )


def _foreign_host_accepted(spec: ProviderSpec, authority: str, name: str) -> str | None:
    """A host of another owner that this parameter accepts, or None."""
    rule = spec.template_params.get(name)
    if rule is None or rule.kind == "arbitrary_host":
        return None
    ending = authority.rpartition(f"{{{name}}}")[2]
    for placeholder in placeholders(ending):
        closed = spec.template_params.get(placeholder)
        first = closed.enum[0] if closed is not None and closed.enum else ""
        ending = ending.replace(f"{{{placeholder}}}", first)
    if ending.count(".") >= 2 and not placeholders(ending) and ending not in _PUBLIC_SUFFIXES:
        return None  # {name}.vendor.com: the vendor owns every value
    return next((probe for probe in _PROBES if rule.problem(rule.normalised(probe)) is None), None)


def sources_are_named(spec: ProviderSpec) -> Iterator[tuple[str, str, str]]:
    """Authorization and token endpoint may have different hosts only where a source confirms it."""
    named = spec.sources
    known = named.agreeing.keys() | set(named.vendor_documentation) | named.by_field.keys()
    urls = (spec.authorization_endpoint, spec.token_endpoint)
    hosts = {urlsplit(url).netloc for url in urls if url is not None}
    if len(hosts) > 1 and "token_endpoint" not in known:
        yield (
            "sources.agreeing",
            "lacks token_endpoint, whose host differs from the authorization endpoint's",
            "Add how many sources agree on it, or list it in vendor_documentation",
        )
    for name in _NEED_A_SOURCE:
        if getattr(spec, name) not in (None, "unknown", ()) and name not in named.by_field:
            yield "sources.by_field", f"lacks {name}", "Name what states it, or remove the field"
    for name in sorted(known):
        if name.split(".")[0] not in ProviderSpec.model_fields:
            yield "sources", f"has {name}, which is no field", "Name the field as the definition does"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return True
