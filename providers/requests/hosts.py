"""The hosts to which refresh tokens and client credentials are sent, and which of them are pinned. Pure.

A host is written `idp.example`, `idp.example:8443` for another port, and `http://127.0.0.1:9000` without TLS.
One that a connection's callback names is written with the placeholder and a hash of its rule:
`{shop#1f0c6a52}.shops.example`.
"""

import hashlib
from collections.abc import Collection, Mapping
from functools import cache, lru_cache

import httpx2
from publicsuffixlist import PublicSuffixList

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration, PinnedHosts
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import PLACEHOLDER
from providers.definition.templates import checked_params

_WITHOUT_SECRETS = ("authorization_endpoint", "oauth1.authorization_endpoint", "registration_endpoint")
_DISCOVERED = (
    *("token_endpoint", "refresh_endpoint", "revocation_endpoint", "introspection_endpoint"),
    *("device_authorization_endpoint", "pushed_authorization_request_endpoint"),
)


def host_of(url: str) -> str:
    """The host of a URL as the HTTP client connects to it. Raises Failure EGRESS_REFUSED for no URL."""
    try:
        parts = httpx2.URL(url)
        name = parts.raw_host.decode("ascii").lower().rstrip(".")
    except (httpx2.InvalidURL, ValueError):
        raise Failure(ErrorCode.EGRESS_REFUSED, "not a URL") from None
    host = f"[{name}]" if ":" in name else name
    host = host if parts.port is None else f"{host}:{parts.port}"
    return host if parts.scheme == "https" else f"{parts.scheme}://{host}"


def is_pinned(host: str, pinned: Collection[str]) -> bool:
    """Whether it is one of these hosts, or within the registrable domain of one, at the same port."""
    if host in pinned:
        return True
    domain = _registrable_domain(host)
    return domain is not None and any(_registrable_domain(pinned_host) == domain for pinned_host in pinned)


def secret_hosts(
    spec: ProviderSpec, integration: Integration, params: Mapping[str, str]
) -> list[tuple[str, str | None]]:
    """Each host to which secrets of the integration are sent: as its definition has it, then with `params`.

    None: no callback has named it yet. Raises Failure INVALID_REQUEST for a parameter.
    """
    own_params = {name: rule for name, rule in spec.template_params.items() if rule.source == "integration"}
    values = checked_params(spec, params)
    fixed = {name: value for name, value in values.items() if name in own_params}
    for name, rule in spec.template_params.items():
        if name not in own_params:
            digest = hashlib.sha256(rule.model_dump_json(exclude={"default", "description"}).encode())
            fixed[name] = f"{{{name}#{digest.hexdigest()[:8]}}}"
    hosts: dict[str, str | None] = {}
    for url in _secret_urls(spec, integration):
        filled = _filled(url, values)
        pattern = _filled(_authority(url), fixed)
        hosts[pattern if "{" in pattern else host_of(filled)] = (
            None if "{" in _authority(filled) else host_of(filled)
        )
    return sorted(hosts.items())


def hosts_to_pin(
    spec: ProviderSpec, integration: Integration, params: Mapping[str, str], pins: PinnedHosts
) -> PinnedHosts:
    """What a new grant pins; `integration` is written with the first one. Raises as `secret_hosts`."""
    hosts = secret_hosts(spec, integration, params)
    return PinnedHosts(
        grant=tuple(host for written, host in hosts if host and _is_accepted(written, pins)),
        integration=tuple(written for written, _ in hosts),
    )


def waiting_hosts(spec: ProviderSpec, integration: Integration, pinned: Collection[str]) -> list[str]:
    """The hosts of this definition that wait until an operator accepts them. Raises as `secret_hosts`."""
    hosts = secret_hosts(spec, integration, integration.params)
    return [written for written, _ in hosts if not is_pinned(written, pinned)]


def require_granted_host(url: str, integration: Integration, pins: PinnedHosts) -> None:
    """Raise Failure HOST_NOT_ACCEPTED unless the secrets of this grant may be sent there."""
    host = host_of(url)
    if not is_pinned(host, (*(pins.grant or ()), *(pins.integration or ()))):
        raise host_not_accepted(host, integration)


def require_definition_host(
    url: str, spec: ProviderSpec, integration: Integration, params: Mapping[str, str], pins: PinnedHosts
) -> None:
    """Raise Failure HOST_NOT_ACCEPTED unless a new grant may be asked for there.

    It is a host of the definition, and one that is pinned to the integration, if it has had a grant.
    """
    host, hosts = host_of(url), secret_hosts(spec, integration, params)
    accepted = [resolved for written, resolved in hosts if resolved and _is_accepted(written, pins)]
    if is_pinned(host, (*accepted, *(pins.integration or ()))):
        return
    written = next((written_host for written_host, resolved in hosts if resolved == host), host)
    raise host_not_accepted(written, integration)


def host_not_accepted(host: str, integration: Integration) -> Failure:
    detail = (
        f"no grant of {integration.name} was made at {host}, so neither a token nor a client credential is "
        "sent there until an operator runs: python -m evergrant_server authority accept-hosts "
        f"{integration.id} --host '{host}'"
    )
    return Failure(ErrorCode.HOST_NOT_ACCEPTED, detail, host=host, integration=integration.name)


def _is_accepted(written: str, pins: PinnedHosts) -> bool:
    return pins.integration is None or is_pinned(written, pins.integration)


def _secret_urls(spec: ProviderSpec, integration: Integration) -> list[str]:
    templates = {
        name: url
        for name, url in spec.url_templates().items()
        if name not in (*_WITHOUT_SECRETS, "issuer") and not name.startswith("post_auth.")
    }
    discovered = integration.endpoints
    if discovered is None:
        return list(templates.values())
    oauth1 = {"token_endpoint"} if spec.request_token_endpoint else set[str]()
    kept = [url for name, url in templates.items() if name not in _DISCOVERED or name in oauth1]
    urls = [
        getattr(endpoints, name)
        for endpoints in (discovered, discovered.for_mutual_tls())
        for name in _DISCOVERED
    ]
    return [*kept, *(url for url in urls if url is not None)]


def _authority(url: str) -> str:
    return url.removeprefix("https://").partition("/")[0]


def _filled(template: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda name: values.get(name.group(1), name.group(0)), template)


@lru_cache(maxsize=4096)
def _registrable_domain(host: str) -> tuple[str, str] | None:
    """The domain that one owner has registered, with the port; None for an address, and for a name whose
    suffix isn't known."""
    name, _, port = host.partition(":")
    domain = _public_suffixes().privatesuffix(name)
    return None if domain is None else (domain, port)


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)
