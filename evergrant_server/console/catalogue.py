"""The catalogue for people: searched, with the facts of a definition and what each is known from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from providers.definition.validation import CATEGORIES

_ROWS = 40
_URL = re.compile(r"https://[^\s()<>\"']+")
_FACTS = {
    "auth_modes": "Flows",
    "authorization_endpoint": "Authorization endpoint",
    "token_endpoint": "Token endpoint",
    "userinfo_endpoint": "Userinfo",
    "api_base_url": "API",
    "pkce": "PKCE",
    "client_auth": "Client authentication",
    "default_scopes": "Default scopes",
    "offline_scope": "Scope for refresh tokens",
    "refresh_supported": "Refreshes",
    "rate_limit": "Limits",
}


class ProviderPage(NamedTuple):
    """One page of providers; `next_after` is the name that the next one begins after."""

    items: list[dict[str, Any]]
    total: int
    next_after: str | None


class Difference(NamedTuple):
    """A field of a definition that another version has otherwise; None: it hasn't the field."""

    field: str
    before: object
    after: object


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What a version changes, field by field."""
    fields = (_fields(before), _fields(after))
    return [
        Difference(field, fields[0].get(field), fields[1].get(field))
        for field in sorted(fields[0].keys() | fields[1].keys())
        if fields[0].get(field) != fields[1].get(field)
    ]


def _fields(definition: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The members by their path; lists are whole."""
    fields: dict[str, Any] = {}
    for name, value in definition.items():
        if isinstance(value, dict) and value:
            fields |= _fields(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


class Evidence(NamedTuple):
    """What a field of a definition is known from."""

    field: str
    agreeing: int
    vendor_only: bool
    source: str
    url: str | None


def search(providers: Sequence[dict[str, Any]], words: str, category: str, after: str) -> ProviderPage:
    """The providers whose name or kind has all of the words, of the category if one is given."""
    wanted = words.casefold().split()
    fitting = [
        provider
        for provider in providers
        if _fits(provider, wanted) and (not category or category in provider["categories"])
    ]
    left = [provider for provider in fitting if provider["name"] > after]
    page = left[:_ROWS]
    return ProviderPage(page, len(fitting), page[-1]["name"] if len(left) > _ROWS else None)


def _fits(provider: dict[str, Any], words: list[str]) -> bool:
    kinds = " ".join(CATEGORIES.get(str(name), str(name)) for name in provider["categories"])
    text = f"{provider['name']} {provider['display_name']} {kinds}".casefold()
    return all(word in text for word in words)


def facts_of(definition: dict[str, Any]) -> list[tuple[str, Any]]:
    """The facts that people ask for, as far as the definition has them."""
    return [
        (words, definition[name]) for name, words in _FACTS.items() if definition.get(name) not in (None, [])
    ]


def evidence_of(definition: dict[str, Any]) -> list[Evidence]:
    """For each field that has a source: how many agree, and one to open."""
    sources = definition.get("sources", {})
    agreeing, by_field = sources.get("agreeing", {}), sources.get("by_field", {})
    vendor = set(sources.get("vendor_documentation", ()))
    rows: list[Evidence] = []
    for field in dict.fromkeys((*agreeing, *by_field, *sorted(vendor))):
        source = by_field.get(field, "")
        url = _URL.search(source)
        only = field in vendor and field not in agreeing
        rows.append(Evidence(field, agreeing.get(field, 0), only, source, url and url.group()))
    return rows
