"""Renders the pages about providers from the catalogue: an index by category and a page for each letter."""

from collections import defaultdict
from functools import cache
from string import ascii_lowercase
from typing import Any

from docs import provider_words as words
from providers.definition.parsing import parse_yaml
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.validation import CATEGORIES
from providers.tools.catalogue_report import VECTORS
from providers.tools.evidence import PARTS, sourced_parts

_FOLDER = "providers"
_HEAD = ("| provider | name | flows | tokens |", "| --- | --- | --- | --- |")


@cache
def _specs() -> tuple[ProviderSpec, ...]:
    return tuple(sorted(Registry.load().all(), key=lambda spec: spec.name))


def _vector(name: str) -> dict[str, Any]:
    return parse_yaml((VECTORS / f"{name}.yaml").read_text(encoding="utf-8"))


def letter_of(spec: ProviderSpec) -> str:
    return spec.name[0] if spec.name[0] in ascii_lowercase else "0"


def page_names() -> tuple[str, ...]:
    """The pages below `docs/`."""
    letters = sorted({letter_of(spec) for spec in _specs()})
    return (f"{_FOLDER}/README.md", *(f"{_FOLDER}/{letter}.md" for letter in letters))


def render_page(name: str, note: str) -> str:
    """One page's text."""
    letter = name.removeprefix(f"{_FOLDER}/").removesuffix(".md")
    return _index(note) if letter == "README" else _letter(letter, note)


def _index(note: str) -> str:
    specs = _specs()
    by_category: dict[str, list[ProviderSpec]] = defaultdict(list)
    for spec in specs:
        for category in spec.categories:
            by_category[category].append(spec)
    count = {part: sum(part in sourced_parts(_vector(spec.name)) for spec in specs) for part in PARTS}
    lines = [
        note,
        "# Providers",
        "",
        f"{len(specs)} services by category. An entry has the flows, scopes, token lifetimes and revocation",
        "of a provider, where to register a client, and the number of sources. A server that publishes",
        "metadata (RFC 8414, OpenID Connect Discovery) needs no entry: use `generic` with its issuer.",
        "[Adding a provider](../guide/adding-a-provider.md) takes one file and one vector;",
        "[providers of your own](../guide/own-providers.md) need no file in this repository.",
        "",
        "`python -m evergrant_server providers check` checks all of them.",
        "",
        f"The real refusal of a dead refresh token is known, with a public source, of {count['dead_token']},",
        f"of a wrong client of {count['client']}, an error that passes of {count['passing']}.",
        "An entry says what was searched for and not found.",
    ]
    for category in sorted(by_category, key=lambda name: CATEGORIES[name]):
        lines += ["", f"## {CATEGORIES[category]}", "", *_HEAD]
        lines += [_row(spec) for spec in by_category[category]]
    return "\n".join(lines) + "\n"


def _row(spec: ProviderSpec) -> str:
    link = f"[{words.escape_markdown(spec.display_name)}]({letter_of(spec)}.md#{spec.name})"
    return f"| {link} | `{spec.name}` | {', '.join(words.flows(spec))} | {words.token_summary(spec)} |"


def _letter(letter: str, note: str) -> str:
    lines = [note, f"# Providers: {letter.upper()}", "", "[All providers](README.md)"]
    for spec in _specs():
        if letter_of(spec) == letter:
            lines += [
                "",
                f"## {spec.name}",
                "",
                f"**{words.escape_markdown(spec.display_name)}**",
                "",
                *_facts_of(spec),
            ]
    return "\n".join(lines) + "\n"


def _facts_of(spec: ProviderSpec) -> list[str]:
    """A line for each known fact of a provider."""
    facts = {
        "Flows": ", ".join(words.flows(spec)),
        "Register a client": f"<{spec.docs_url}>" if spec.docs_url else "",
        "Parameters": words.parameters(spec),
        "Scopes": words.scopes(spec),
        "PKCE": words.pkce(spec),
        "Client authentication": words.client_authentication(spec),
        "Access tokens": words.access_tokens(spec),
        "Refresh tokens": words.refresh_tokens(spec),
        "Revocation": words.revocation(spec),
        "API": words.api(spec),
        "Userinfo": f"`{spec.userinfo_endpoint}`" if spec.userinfo_endpoint else "",
        "Limits": words.limits(spec),
        "Peculiarities": words.deviations(spec),
        "Notes": "; ".join(words.escape_markdown(note) for note in spec.notes),
        "Not usable yet": words.unusable_flows_text(spec),
        "Sources": words.sources(spec),
        "Real replies": words.evidence(_vector(spec.name)),
    }
    return [f"- {name}: {text}" for name, text in facts.items() if text]
