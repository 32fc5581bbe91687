"""Compares the catalogue with others, field by field. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import Pkce
from tests.conformance.providers.drift.other_catalogues import OtherCatalogue

_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "refresh_endpoint", "revocation_endpoint")
_ABOUT_THE_ENTRY = ("sources", "notes", "version")  # and not about the provider
_PLACEHOLDER = re.compile(r"\$?\{+[^{}]*\}+|<[^<>/]+>")
_ABSENT = "(absent)"


@dataclass(frozen=True)
class CatalogueDifference:
    """One field of one provider; `source` is the file that states `theirs`."""

    provider: str
    field: str
    ours: str
    theirs: str
    source: str


@dataclass
class CatalogueDrift:
    """Every difference, how many entries were compared, and what only one side has."""

    differences: list[CatalogueDifference] = field(default_factory=list)
    compared: int = 0
    only_theirs: list[str] = field(default_factory=list)
    only_ours: list[str] = field(default_factory=list)  # of a catalogue in our own format


def compare(
    specs: Mapping[str, ProviderSpec], documents: Mapping[str, Mapping[str, Any]], catalogues: OtherCatalogue
) -> CatalogueDrift:
    """`specs` and `documents` are the catalogue, parsed and as it is written."""
    drift = CatalogueDrift()
    by_name = {_plain(name): name for name in specs}
    by_name |= {_plain(spec.display_name): name for name, spec in specs.items() if _plain(spec.display_name)}
    by_name |= {_plain(name): name for name in specs}  # a name counts before another's display name
    for (theirs, source), facts in sorted(catalogues.facts.items()):
        name = by_name.get(_plain(theirs))
        if name is None:
            drift.only_theirs.append(theirs)
            continue
        drift.compared += 1
        drift.differences += _fact_differences(specs[name], facts, source)
    for (theirs, source), definition in sorted(catalogues.definitions.items()):
        if theirs not in documents:
            drift.only_theirs.append(theirs)
            continue
        drift.compared += 1
        drift.differences += _definition_differences(theirs, documents[theirs], definition, source)
    if len(catalogues.definitions) > 1:
        drift.only_ours += sorted(documents.keys() - {name for name, _ in catalogues.definitions})
    return drift


def _fact_differences(
    spec: ProviderSpec, facts: Mapping[str, str], source: str
) -> Iterator[CatalogueDifference]:
    ours = {name: getattr(spec, name) for name in _ENDPOINTS}
    ours["revocation_endpoint"] = (spec.revocation and spec.revocation.url) or spec.revocation_endpoint
    ours["refresh_endpoint"] = spec.refresh_endpoint or spec.refresh.url
    ours["scope_separator"] = spec.scope_separator
    ours["pkce"] = "off" if spec.pkce is Pkce.OFF else "on"
    ours["client_auth"] = spec.client_auth.value
    for name, theirs in facts.items():
        if name == "refresh_endpoint" and same_url(theirs, spec.token_endpoint or ""):
            continue
        known = ours[name]
        same = known == theirs if name not in _ENDPOINTS else known is not None and same_url(known, theirs)
        if not same and not (known is None and name in ("authorization_endpoint", "token_endpoint")):
            yield CatalogueDifference(spec.name, name, _written(known), _written(theirs), source)


def same_url(ours: str, theirs: str) -> bool:
    """Whether two templates may be of one URL: a placeholder stands for any part of a path or a host.

    The query, a final slash and the case of the host don't count. Nango writes alternatives (`a || b`).
    """
    first = _url_parts(ours)
    each = [_url_parts(alternative) for alternative in theirs.split(" || ")]
    return any(_covers(first, second) or _covers(second, first) for second in each)


def _url_parts(url: str) -> list[str]:
    """The fixed texts between placeholders."""
    marked = _PLACEHOLDER.sub("\0", url)
    bare = re.sub(r"^https?://", "", marked).partition("?")[0].partition("#")[0].rstrip("/")
    host, slash, path = bare.partition("/")
    return f"{host.lower()}{slash}{path}".split("\0")


def _covers(template: list[str], url: list[str]) -> bool:
    pattern = "[^/]*".join(map(re.escape, template))
    return re.fullmatch(pattern, "x".join(url)) is not None


def _definition_differences(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], source: str
) -> Iterator[CatalogueDifference]:
    first, second = dict(_flat(ours)), dict(_flat(theirs))
    for path in sorted(first.keys() | second.keys()):
        if path.split(".")[0] in _ABOUT_THE_ENTRY or first.get(path) == second.get(path):
            continue
        shown = [_written(side[path]) if path in side else _ABSENT for side in (first, second)]
        yield CatalogueDifference(name, path, shown[0], shown[1], source)


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _written(value: Any) -> str:
    """A value for one line of a terminal, which a file must not steer."""
    text = _ABSENT if value is None else repr(value) if value == " " else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)[:300]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
