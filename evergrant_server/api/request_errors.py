"""What is wrong with a request, in words: the member, value or path that was probably meant.

Suggests names of the API alone, and never repeats what was sent.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel
from starlette.routing import BaseRoute, Route

from evergrant_server.core.errors import ErrorCode, Failure

_NO_JSON = ": send JSON, with Content-Type: application/json"
_TIME = "must be a date and time with its zone, such as 2026-01-31T12:00:00Z"
_IN_WORDS = {
    "missing": "is missing",
    "list_type": 'must be a list, such as ["…"]',
    "tuple_type": 'must be a list, such as ["…"]',
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing"), _TIME),
    "timezone_aware": _TIME,
    "none_required": "must be null",
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
    if kind in ("model_type", "model_attributes_type") and entry["loc"] in ((), ("body",)):
        return _IN_WORDS[kind] + _NO_JSON
    known = _IN_WORDS.get(kind)
    return known.format(**entry.get("ctx", {})) if known else str(entry["msg"]).removeprefix("Value error, ")


def members_of(request: Request) -> Collection[str]:
    """The names that the body of the request's route may have."""
    endpoint = getattr(request.scope.get("route"), "endpoint", None)
    for hint in get_type_hints(endpoint).values() if endpoint else ():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and _refuses_others(kind):
                return kind.model_fields
    return ()


def require_known_query(request: Request) -> None:
    """Raise Failure INVALID_REQUEST for a parameter that the route doesn't have: it would be ignored."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = set(_query_names(dependant)) if dependant and request.query_params else set[str]()
    for name in request.query_params if dependant else ():
        if name not in known:
            has = f"this route has {', '.join(sorted(known)) or 'none'}"
            detail = f"query: there is no such parameter{_meant(name, known)}; {has}"
            raise Failure(ErrorCode.INVALID_REQUEST, detail, field="query")


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for further in dependant.dependencies:
        yield from _query_names(further)


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
