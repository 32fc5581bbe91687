"""What is wrong with a request, in words: the member, value or path that was probably meant.

Suggests names of the API alone, and never repeats what was sent.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from fastapi import Request
from pydantic import BaseModel
from starlette.routing import BaseRoute, Route

_IN_WORDS = {
    "missing": "is missing",
    "list_type": 'must be a list, such as ["…"]',
    "tuple_type": 'must be a list, such as ["…"]',
    "dict_type": "must be an object",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    # every fraction in a request is a duration
    "float_type": "use a number of seconds, such as 3600",
    "float_parsing": "use a number of seconds, such as 3600",
}
_QUOTED = re.compile(r"'([^']*)'")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def problem_in_words(entry: Mapping[str, Any], members: Collection[str]) -> str:
    """The reason of one invalid field."""
    kind, given = entry["type"], entry.get("input")
    if kind == "extra_forbidden":
        of_body = members if len([part for part in entry["loc"] if part != "body"]) == 1 else ()
        return f"there is no such member{_meant(str(entry['loc'][-1]), of_body)}"
    if kind in ("enum", "literal_error"):
        expected = str(entry.get("ctx", {}).get("expected", ""))
        return f"use {expected}{_meant(str(given), _QUOTED.findall(expected))}"
    return _IN_WORDS.get(kind) or str(entry["msg"]).removeprefix("Value error, ")


def members_of(request: Request) -> Collection[str]:
    """The names that the body of the request's route may have."""
    endpoint = getattr(request.scope.get("route"), "endpoint", None)
    for hint in get_type_hints(endpoint).values() if endpoint else ():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and _refuses_others(kind):
                return kind.model_fields
    return ()


def _refuses_others(model: type[BaseModel]) -> bool:
    return model.model_config.get("extra") == "forbid"  # as every request body does


def path_that_is_near(request: Request) -> str:
    """The path that was probably meant, as its route has it, for the end of a sentence."""
    path = request.url.path.rstrip("/")
    for near in (path, f"/v1{path}"):
        for route in _routes(request.app.routes):
            if route.path_regex.match(near):
                return f" Did you mean {route.path}?"
    return ""


def _routes(given: Iterable[BaseRoute]) -> Iterator[Route]:
    """The routes, also of routers that FastAPI includes when they are first used."""
    for route in given:
        if isinstance(route, Route):
            yield route
        elif included := getattr(route, "original_router", None):
            yield from _routes(included.routes)


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(_HUMP.sub("_", name).lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
