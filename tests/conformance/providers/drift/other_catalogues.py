"""Reads other catalogues: our own format, Nango's providers.yaml, and plain lists of URLs.

A file of an unknown shape is named and skipped, and so is a value of an unknown type.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.parsing import InvalidYaml, parse_yaml

_MAX_BYTES = 20 * 1024 * 1024
_SUFFIXES = (".yaml", ".yml", ".json")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a large file takes seconds without libyaml

# spelled without case and separators: authorizeUrl, authorize_url
_SPELLINGS = {
    "authorization_endpoint": ("authorizationendpoint", "authorizationurl", "authorizeurl", "authurl"),
    "token_endpoint": ("tokenendpoint", "tokenurl", "accesstokenurl", "accesstokenendpoint"),
    "refresh_endpoint": ("refreshendpoint", "refreshurl", "refreshtokenurl"),
    "revocation_endpoint": ("revocationendpoint", "revocationurl", "revokeurl", "revoketokenurl"),
    "scope_separator": ("scopeseparator", "scopesseparator", "scopedelimiter"),
    "pkce": ("pkce", "usepkce", "supportspkce"),
    "client_auth": (
        *("clientauth", "tokenauthmethod", "tokenendpointauthmethod", "tokenrequestauthmethod"),
        *("clientauthmechanism", "authentication"),
    ),
}
_CLIENT_AUTH = {
    "client_secret_basic": ("basic", "header", "clientsecretbasic", "httpbasicauth", "httpbasic"),
    "client_secret_post": ("post", "body", "form", "clientsecretpost", "requestbody"),
    "none": ("none", "public"),
}
_PKCE = {
    "on": ("true", "required", "supported", "optional", "s256", "on"),
    "off": ("false", "off", "disabled", "none", "unsupported"),
}
_NAMES = ("name", "key", "id", "slug", "provider")


@dataclass
class OtherCatalogue:
    """The facts of other catalogues, by their provider's name and the name of the file that states them.

    `facts` have comparable fields; `definitions` are whole definitions in our own format.
    """

    facts: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    definitions: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def read_catalogues(path: Path) -> OtherCatalogue:
    """Every catalogue in a file, or in a folder and its folders.

    Raises Failure INVALID_REQUEST where there is none.
    """
    if not path.exists():
        raise Failure(ErrorCode.INVALID_REQUEST, f"{path} doesn't exist")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
    catalogue = OtherCatalogue()
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        try:
            _read(catalogue, name, *_load(file))
        except _Unknown as why:
            catalogue.skipped.append((name, str(why)))
    if not catalogue.facts and not catalogue.definitions:
        reasons = "; ".join(f"{name}: {why}" for name, why in catalogue.skipped[:5])
        raise Failure(ErrorCode.INVALID_REQUEST, f"{path} has no catalogue. {reasons}".strip())
    return catalogue


class _Unknown(Exception):
    """A file that is no catalogue of a known shape."""


def _load(file: Path) -> tuple[str, Any]:
    """The text of a file, and what it says."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _Unknown("is too large")
        text = file.read_text(encoding="utf-8")
        return text, json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader=_LOADER)
    except UnicodeDecodeError:
        raise _Unknown("is not UTF-8") from None
    except OSError as error:
        raise _Unknown(f"can't be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _Unknown("is neither YAML nor JSON") from None


def _read(catalogue: OtherCatalogue, file: str, text: str, data: Any) -> None:
    if isinstance(data, dict) and isinstance(data.get("name"), str) and "auth_modes" in data:
        try:
            catalogue.definitions[data["name"], file] = parse_yaml(text)
        except InvalidYaml as error:
            raise _Unknown(str(error)) from None
        return
    entries = dict(_entries(data, _contents(data)))
    nango = any("auth_mode" in entry for entry in entries.values())
    for name, entry in entries.items():
        facts = _nango_facts(entry, entries) if nango else _plain_facts(entry)
        if facts:
            catalogue.facts[name, file] = facts
    if not any(known_file == file for _, known_file in catalogue.facts):
        raise _Unknown("is no catalogue of a known shape")


def _contents(data: Any) -> Any:
    """What a mapping holds under one name alone, such as `providers`."""
    return next(iter(data.values())) if isinstance(data, dict) and len(data) == 1 else None


def _entries(*places: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The named entries of mappings and lists."""
    for data in places:
        if isinstance(data, dict):
            yield from ((str(name), entry) for name, entry in data.items() if isinstance(entry, dict))
        for entry in data if isinstance(data, list) else ():
            if isinstance(entry, dict):
                named = next((entry[key] for key in _NAMES if isinstance(entry.get(key), str)), None)
                if named is not None:
                    yield named, entry


def _nango_facts(entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """An entry of Nango's: an alias has what it doesn't state from another. Its defaults are no facts."""
    base = entries.get(str(entry.get("alias")), {})
    whole = {**base, **entry}
    if not str(whole.get("auth_mode", "")).upper().startswith("OAUTH2"):
        return {}
    facts = _plain_facts(whole)
    facts.pop("pkce", None)
    return facts | ({"pkce": "off"} if whole.get("disable_pkce") is True else {})


def _plain_facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """The comparable facts of an entry, by the names of our fields."""
    fields = {_plain(str(key)): value for key, value in entry.items()}
    facts: dict[str, str] = {}
    for name, spellings in _SPELLINGS.items():
        value = next((fields[key] for key in spellings if fields.get(key) is not None), None)
        known = _normalised(name, value)
        if known is not None:
            facts[name] = known
    has_url = {"authorization_endpoint", "token_endpoint"} & facts.keys()
    return facts if has_url else {}


def _normalised(name: str, value: Any) -> str | None:
    """A value as we write it; None for one that says nothing comparable."""
    if name in ("client_auth", "pkce"):
        words = _CLIENT_AUTH if name == "client_auth" else _PKCE
        plain = _plain(str(value)) if isinstance(value, str | bool) else ""
        return next((ours for ours, theirs in words.items() if plain in theirs), None)
    if not isinstance(value, str) or not value:
        return None
    if name == "scope_separator":
        return value if len(value) == 1 else None
    return value if "/" in value else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
