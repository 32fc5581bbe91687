"""The page `security/roles.md`: what each kind of caller may do, as a running API answers it."""

from collections.abc import Callable, Iterable

from tests.security.isolation.roles import ROLES, observed
from tests.security.isolation.routes import PROVED_OTHERWISE, PUBLIC

_USUAL = {"401 unauthenticated": "401", "403 not_permitted": "403", "404 not_found": "404"}
Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]


def page(note: str, table: Table) -> str:
    answers = observed()
    rows = [
        (f"`{route}`", *(_USUAL.get(answer, answer.replace("_", " ")) for answer in answers[route]))
        for route in sorted(answers, key=_by_path)
        if route not in PUBLIC
    ]
    return "\n".join(
        [
            note,
            "# Roles",
            "",
            "What each kind of caller may do with the things of its own tenant: the answers of a running API",
            "to one request to each route with each role's credential. A test sends them again and compares.",
            "401, 403 and 404 alone are the problems `unauthenticated`, `not_permitted` and `not_found`; 400",
            "and 409 answer a caller who may, about the state of what was named. `confirm` answers 404 to",
            "every app but the one that requested the consent.",
            "",
            "An app's role is the actions of its permits: here one action each, for every integration and",
            "subject unless the role says which. A name or id of another tenant is answered as an absent",
            "one, byte for byte (`tests/security/isolation`).",
            "",
            *table(("route", *ROLES), rows),
            "",
            "These need no credential: " + _listed(PUBLIC) + ".",
            "",
            "A connect link, the browser's cookie or a provider's signature stands in for one: "
            + _listed(PROVED_OTHERWISE)
            + ".",
            "",
            "[The console](../console.md) calls the routes above for whoever has its session.",
            "",
        ]
    )


def _listed(some: Iterable[str]) -> str:
    return ", ".join(f"`{route}`" for route in sorted(some, key=_by_path))


def _by_path(route: str) -> tuple[str, str]:
    method, path = route.split(" ", 1)
    return path, method
