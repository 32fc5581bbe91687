"""Problem documents (RFC 9457), filled from the failure table in `core.errors`.

A document names fields of the request and never repeats their values.
"""

import json
import logging
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from evergrant_server.api.request_errors import members_of, path_that_is_near, problem_in_words
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import set_problem_code

log = logging.getLogger("evergrant.api")

T = TypeVar("T")

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
MEDIA_TYPE = "application/problem+json"
_FIELD_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,40}\Z")
_MAX_ERRORS = 20
_INVALID_JSON = "not valid JSON"
_INVALID_JSON_ERRORS = [{"field": "body", "problem": _INVALID_JSON}]
_NO_SUCH_PATH = "Nothing is served at this path: /docs lists the routes, and the page at / says what this is."
_CODE_BY_STATUS = {
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.NOT_PERMITTED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.BODY_TOO_LARGE,
}


def problem_document(failure: Failure, base_url: str) -> dict[str, Any]:
    """The members of RFC 9457 section 3.1, Evergrant's own, and those of the failure's context."""
    rule = FAILURES[failure.code]
    members: dict[str, Any] = {
        "type": f"{base_url}/docs#{failure.code}",
        "title": rule.meaning,
        "status": rule.status,
        "detail": failure.detail,
        "code": failure.code.value,
        "kind": rule.kind.value,
        "repairer": rule.repairer.value,
        "repair": failure.repair,
    }
    if failure.code is ErrorCode.RATE_LIMITED:
        members |= {"type": QUOTA_EXCEEDED, "violated-policies": failure.context.get("policy", "").split()}
    if failure.retry_after is not None:
        members["retry_after"] = round(failure.retry_after, 3)
    return {**failure.context, **members}


def problem_response(failure: Failure, base_url: str, errors: list[dict[str, str]] | None = None) -> Response:
    """The response for a failure, with Retry-After or WWW-Authenticate where its status needs them."""
    body = problem_document(failure, base_url)
    if errors:
        body["errors"] = errors
    headers = {"Cache-Control": "no-store"}
    wait = failure.retry_after
    if wait is None and body["status"] == 503:
        wait = 1.0  # every 503 carries Retry-After
        body["retry_after"] = wait
    if wait is not None:
        headers["Retry-After"] = str(max(math.ceil(wait), 1))
    if body["status"] == 401:
        is_bound = failure.code is ErrorCode.CERTIFICATE_REQUIRED
        # RFC 8705 section 3
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if is_bound else "Bearer"
    return Response(json.dumps(body), body["status"], headers, MEDIA_TYPE)


def field_errors(
    error: ValidationError | RequestValidationError, members: Collection[str] = ()
) -> list[dict[str, str]]:
    """The invalid fields and the reason for each, without the values. `members` are those of the body."""
    found: list[dict[str, str]] = []
    for entry in list(error.errors())[:_MAX_ERRORS]:
        if entry["type"] == "json_invalid":  # its loc is an offset, not a field
            return [{"field": "body", "problem": _invalid_json(entry)}]
        loc = [str(part) for part in entry["loc"] if part not in ("body", "query", "path", "header")]
        name = ".".join(part if part.isdigit() or _FIELD_NAME.match(part) else "?" for part in loc)
        found.append({"field": name or "body", "problem": problem_in_words(entry, members)})
    return found


def invalid_request_response(
    error: ValidationError | RequestValidationError, base_url: str, members: Collection[str] = ()
) -> Response:
    errors = field_errors(error, members)
    first = errors[0]
    failure = invalid_request(first["field"], f"{first['field']}: {first['problem']}")
    return problem_response(failure, base_url, errors)


def _invalid_json(entry: Mapping[str, Any]) -> str:
    """What the parser found and where; its phrases quote nothing."""
    found, at = entry.get("ctx", {}).get("error"), entry["loc"][-1] if entry["loc"] else None
    where = f" at character {at}" if isinstance(at, int) else ""
    return f"{_INVALID_JSON}: {found}{where}" if found else _INVALID_JSON


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
            failure = invalid_request("body", f"body: {_INVALID_JSON}")
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


def invalid_request(field: str, why: str) -> Failure:
    """The failure of a request whose `field` can't be accepted."""
    return Failure(ErrorCode.INVALID_REQUEST, why, field=field)


def require_found(row: T | None) -> T:
    """The row. Raises Failure NOT_FOUND for None."""
    if row is None:
        raise Failure(ErrorCode.NOT_FOUND)
    return row
