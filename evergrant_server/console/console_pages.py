"""Renders the console's pages. Every value is escaped; times are UTC, with how long ago beside them."""

from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment

from evergrant_server.console.next_steps import TOKEN_NOTES, WHO, cause_of, repair_of, state_words, step_of
from evergrant_server.console.pages import FOLDER, new_environment
from evergrant_server.console.times import span
from evergrant_server.core.errors import FAILURES

_SHORT = {word: word.upper() for word in ("api", "id", "uri", "url")}
_HTMX = "htmx-4.0.1.min.js"
_JAVASCRIPT = "text/javascript; charset=utf-8"
STATIC = {
    name: ((FOLDER / "static" / name).read_bytes(), kind)
    for name, kind in (
        ("console.css", "text/css; charset=utf-8"),
        ("console.js", _JAVASCRIPT),
        (_HTMX, _JAVASCRIPT),
    )
}


class MenuEntry(NamedTuple):
    """A page that the console's menu leads to. `whole`: only for who sees what is the whole tenant's."""

    name: str
    path: str
    text: str
    whole: bool = True


# a group's link leads to the first of its pages that the visitor sees
MENU: dict[str, tuple[MenuEntry, ...]] = {
    "Overview": (MenuEntry("overview", "", "Overview", whole=False),),
    "Connections": (
        MenuEntry("connections", "connections", "Connections", whole=False),
        MenuEntry("bulk", "bulk", "Bulk orders"),
        MenuEntry("imports", "imports", "Imports"),
        MenuEntry("campaigns", "campaigns", "Campaigns"),
    ),
    "Setup": (
        MenuEntry("integrations", "integrations", "Integrations", whole=False),
        MenuEntry("providers", "providers", "Catalogue", whole=False),
        MenuEntry("webhooks", "webhooks", "Webhooks"),
    ),
    "Access": (
        MenuEntry("apps", "apps", "Apps"),
        MenuEntry("access", "access", "Who may"),
        MenuEntry("rules", "rules", "Delegation"),
        MenuEntry("agents", "agents", "Agents"),
        MenuEntry("leavers", "leavers", "Leavers"),
        MenuEntry("clients", "clients", "Clients"),
        MenuEntry("people", "people", "People"),
        MenuEntry("requests", "requests", "Requests", whole=False),
        MenuEntry("approvals", "approvals", "Approvals"),
    ),
    "Trust": (
        MenuEntry("audit", "audit", "Audit log"),
        MenuEntry("questions", "questions", "Questions"),
        MenuEntry("incidents", "incidents", "Incidents"),
        MenuEntry("keys", "keys", "Keys"),
        MenuEntry("streams", "streams", "Streams"),
    ),
}


class Visitor(NamedTuple):
    """Who is there, for the head of each page. `audits`: sees what is the whole tenant's. `old_login`: a
    person who logs in again, at `step_up`, before a dangerous command."""

    name: str
    kind: str
    tenant: str
    audits: bool
    csrf: str
    step_up: str | None
    old_login: bool


@cache
def _templates() -> Environment:
    environment = new_environment()
    environment.filters |= {"span": span, "plain": plain, "pair": pair, "label": label}
    environment.globals |= {
        "htmx": _HTMX,
        "state_words": state_words,
        "cause_of": cause_of,
        "step_of": step_of,
        "repair_of": repair_of,
        "token_notes": TOKEN_NOTES,
        "who": WHO,
        "failures": FAILURES,
        "menu_of": menu_of,
    }
    return environment


class ConsolePages:
    """The console's templates, each compiled once in a process."""

    def render(self, template: str, *, title: str, **values: Any) -> str:
        return _templates().get_template(f"console/{template}").render(title=title, **values)


def menu_of(visitor: Visitor) -> dict[str, list[MenuEntry]]:
    """The groups of the menu, each with the places that the visitor sees."""
    groups = {
        group: [place for place in places if visitor.audits or not place.whole]
        for group, places in MENU.items()
    }
    return {group: places for group, places in groups.items() if places}


def pair(value: str) -> tuple[str, str]:
    """A choice that is its own words."""
    return value, value


def label(name: str) -> str:
    """The name of a member as a field's label: `api_base_url` is API base URL."""
    words = [_SHORT.get(word, word) for word in name.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def plain(value: object) -> str:
    """A value of a record's detail as text."""
    if isinstance(value, dict):
        return (
            ", ".join(f"{name.replace('_', ' ')} {plain(member)}" for name, member in value.items()) or "none"
        )  # pyright: ignore[reportUnknownArgumentType,reportUnknownMemberType,reportUnknownVariableType]  # JSON's values
    if isinstance(value, list | tuple):
        return " ".join(plain(member) for member in value) or "none"  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]  # JSON's values
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)
