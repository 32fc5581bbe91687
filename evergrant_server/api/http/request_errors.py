"""The handlers that answer every error, and the member, parameter or path that was probably meant.

Suggests names of the API alone, and never repeats what was sent.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import get_args, get_type_hints

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import (
    INVALID_JSON,
    invalid_request,
    invalid_request_response,
    meant,
    problem_response,
)
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import set_problem_code

log = logging.getLogger("evergrant.api")

_INVALID_JSON_ERRORS = [{"field": "body", "problem": INVALID_JSON}]
_NO_SUCH_PATH = "Nothing is served at this path: /docs lists the routes, and the page at / says what this is."
_CODE_BY_STATUS = {
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.NOT_PERMITTED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.BODY_TOO_LARGE,
}


def install_error_handlers(app: FastAPI, base_url: str) -> None:
    """Register the handlers that answer every error with a problem document."""

    async def on_failure(request: Request, failure: Exception) -> Response:
        assert isinstance(failure, Failure)
        set_problem_code(failure.code)
        report_broken_authority(failure)
        if failure.rule.status >= 500:
            log_event(log, logging.WARNING, LogEvent.REQUEST_FAILED, failure.detail, code=failure.code)
        return problem_response(failure, base_url)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | ValidationError)
        return invalid_request_response(error, base_url, members_of(request))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400:  # FastAPI's status for a body that can't be decoded
            failure = invalid_request("body", f"body: {INVALID_JSON}")
            return problem_response(failure, base_url, _INVALID_JSON_ERRORS)
        code = _CODE_BY_STATUS.get(error.status_code, ErrorCode.INVALID_REQUEST)
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"This route takes {allowed} alone." if allowed else ""
        if error.status_code == 404:
            detail = _NO_SUCH_PATH + path_that_is_near(request)
        response = problem_response(Failure(code, detail), base_url)
        if allowed:
            response.headers["Allow"] = allowed
        return response

    app.add_exception_handler(Failure, on_failure)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


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
            detail = f"query: there is no such parameter{meant(name, known)}; {has}"
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


def _routes(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """The routes, also of routers that FastAPI includes when they are first used."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif included := getattr(route, "original_router", None):
            yield from _routes(included.routes)
