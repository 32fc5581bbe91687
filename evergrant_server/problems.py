"""Problem documents (RFC 9457), filled from the failure table in `core.errors`.

The API and the gateway answer with them. They name fields of the request, and never repeat their values.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.core.errors import FAILURES, ErrorCode, Failure

T = TypeVar("T")
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
MEDIA_TYPE = "application/problem+json"
_FIELD_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,40}\Z")
_MAX_ERRORS = 20
_ENDED_BY_ADMINS = {ErrorCode.KEY_DENIED, ErrorCode.KEY_GONE}  # of the key service: time ends neither
INVALID_JSON = "not valid JSON"
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


def problem_document(failure: Failure, base_url: str) -> dict[str, Any]:
    """The members of RFC 9457 section 3.1, Evergrant's own, and those of the failure's context."""
    rule = FAILURES[failure.code]
    members: dict[str, Any] = {
        "type": f"{base_url}/docs#{failure.code}",
        "title": rule.meaning,
        "status": rule.status,
        "detail": failure.problem,
        "code": failure.code.value,
        "kind": rule.kind.value,
        "repairer": failure.repairer.value,
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
    if wait is None and body["status"] == 503 and failure.code not in _ENDED_BY_ADMINS:
        wait = 1.0  # every other 503 carries Retry-After
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
    problems: list[dict[str, str]] = []
    for entry in list(error.errors())[:_MAX_ERRORS]:
        if entry["type"] == "json_invalid":  # its loc is an offset, not a field
            return [{"field": "body", "problem": _invalid_json(entry)}]
        loc = [str(part) for part in entry["loc"] if part not in ("body", "query", "path", "header")]
        name = ".".join(part if part.isdigit() or _FIELD_NAME.match(part) else "?" for part in loc)
        problems.append({"field": name or "body", "problem": problem_in_words(entry, members)})
    return problems


def invalid_request_response(
    error: ValidationError | RequestValidationError, base_url: str, members: Collection[str] = ()
) -> Response:
    errors = field_errors(error, members)
    first = errors[0]
    failure = invalid_request(first["field"], f"{first['field']}: {first['problem']}")
    return problem_response(failure, base_url, errors)


def _invalid_json(entry: Mapping[str, Any]) -> str:
    """What the parser found and where; its phrases quote nothing."""
    reason, at = entry.get("ctx", {}).get("error"), entry["loc"][-1] if entry["loc"] else None
    where = f" at character {at}" if isinstance(at, int) else ""
    return f"{INVALID_JSON}: {reason}{where}" if reason else INVALID_JSON


def problem_in_words(entry: Mapping[str, Any], members: Collection[str]) -> str:
    """The reason of one invalid field."""
    kind, value = entry["type"], entry.get("input")
    if kind == "extra_forbidden":
        of_body = members if len([part for part in entry["loc"] if part != "body"]) == 1 else ()
        return f"there is no such member{meant(str(entry['loc'][-1]), of_body)}"
    if kind in ("enum", "literal_error"):
        expected = str(entry.get("ctx", {}).get("expected", ""))
        return f"use {expected}{meant(str(value), _QUOTED.findall(expected))}"
    if kind in ("model_type", "model_attributes_type") and entry["loc"] in ((), ("body",)):
        return _IN_WORDS[kind] + _NO_JSON
    known = _IN_WORDS.get(kind)
    return known.format(**entry.get("ctx", {})) if known else str(entry["msg"]).removeprefix("Value error, ")


def meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(_HUMP.sub("_", name).lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def invalid_request(field: str, why: str) -> Failure:
    """The failure of a request whose `field` can't be accepted."""
    return Failure(ErrorCode.INVALID_REQUEST, why, field=field)


def require_found(row: T | None) -> T:
    """The row. Raises Failure NOT_FOUND for None."""
    if row is None:
        raise Failure(ErrorCode.NOT_FOUND)
    return row
