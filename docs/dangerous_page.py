"""The page `security/dangerous.md`: which commands are dangerous, as the routes themselves declare it."""

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from fastapi import FastAPI

from tests.fakes.api import running_api
from tests.security.isolation.dangers import declared, reason
from tests.security.isolation.routes import PROVED_OTHERWISE, routes

Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]


def page(note: str, table: Table) -> str:
    app = _application()
    dangerous = declared(app)
    rows = [
        (f"`{route}`", it.content, "yes" if it.second else "no")
        for route, it in sorted(dangerous.items(), key=lambda entry: _by_path(entry[0]))
    ]
    return "\n".join(
        [
            note,
            "# Dangerous commands",
            "",
            "A person's session needs a login of the last five minutes for them (403 `step_up_required`;",
            "a `PUT` that changes nothing of the kind needs none). With `EVERGRANT_FOUR_EYES` another admin",
            "has to approve those that say so, of apps and people (403 `approval_required`): see",
            "[a second admin](../guide/security.md#what-an-app-may-do). Each route declares itself; a test",
            "asks a running API with a session that is hours old, and with `EVERGRANT_FOUR_EYES`, and",
            "compares.",
            "",
            *table(("command", "what of it is dangerous", "a second admin"), rows),
            "",
            "## The others",
            "",
            "What else changes something isn't dangerous, by these rules; a route that none fits is a",
            "failing test.",
            "",
            *table(("commands", "what each does"), _others(app, set(dangerous))),
            "",
        ]
    )


def _others(app: FastAPI, dangerous: set[str]) -> list[tuple[str, str]]:
    """The remaining commands of the API, by reason."""
    found: dict[str, list[str]] = {}
    for route in sorted(routes(app), key=_by_path):
        if route in dangerous or route in PROVED_OTHERWISE or "/console" in route:
            continue
        if not route.startswith(("GET ", "OPTIONS ")):
            found.setdefault(reason(route) or "", []).append(f"`{route}`")
    return [(", ".join(some), why) for why, some in found.items()]


def _application() -> FastAPI:
    async def run() -> FastAPI:
        with tempfile.TemporaryDirectory() as folder:
            async with running_api(Path(folder)) as api:
                return api.app

    return asyncio.run(run())


def _by_path(route: str) -> tuple[str, str]:
    method, path = route.split(" ", 1)
    return path, method
