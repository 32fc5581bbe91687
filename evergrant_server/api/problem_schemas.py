"""Describes the problem documents of each operation in the OpenAPI document, by the failure table.

Each status has a schema of its own, with the codes that it comes with.
"""

from typing import Any

from pydantic import ConfigDict

from evergrant_server.core.errors import FAILURES
from evergrant_server.core.model import CheckedModel
from evergrant_server.problems import MEDIA_TYPE

METHODS = ("get", "put", "post", "delete")
_REF = "#/components/schemas/"
_BY_STATUS = {
    status: sorted(code.value for code, rule in FAILURES.items() if rule.status == status)
    for status in sorted({rule.status for rule in FAILURES.values()})
}
_PAGES = ("/connect/", "/oauth/callback/")
_PEOPLE = ("/login", "/logout")
_OWN = ("/v1/sessions/current", "/v1/admin-login", "/v1/client-login")  # there may be none
_NAMING = ("app",)  # parameters that name what there may not be, where they are given
_CLIENTS = ("/v1/lease", "/v1/connections", "/v1/integrations")  # what an integration's client is used for
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    429: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
    503: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
}


class FieldError(CheckedModel):
    """An invalid field of the request, without its value."""

    field: str
    problem: str


class ProblemDocument(CheckedModel):
    """A problem document (RFC 9457) with a stable `code`, who repairs it and how.

    Some codes come with members of their own, such as `connection_id`, `connect_url` or `approval_id`.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    kind: str
    repairer: str
    repair: str
    retry_after: float | None = None
    field: str | None = None
    errors: list[FieldError] | None = None


def describe_failures(schema: dict[str, Any]) -> None:
    """Add the failures that each operation can answer with, in place of FastAPI's 422."""
    schemas = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    described = ProblemDocument.model_json_schema(ref_template=_REF + "{model}")
    schemas |= described.pop("$defs") | {ProblemDocument.__name__: described}
    for status, codes in _BY_STATUS.items():
        members = {"status": {"const": status}, "code": {"enum": codes}}
        schemas[_name(status)] = {"allOf": [_ref(ProblemDocument.__name__)], "properties": members}
    for path, operations in schema["paths"].items():
        for method in METHODS:
            if method in operations and "health" not in operations[method].get("tags", ()):
                _describe(path, method, operations[method])


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    page = next((it for it in responses.values() if "text/html" in it.get("content", ())), None)
    if page is not None:
        responses["303"] = {"description": "The browser goes on to another page"}
    for status in sorted(_statuses(path, method, operation)):
        if page is not None:
            why = {"description": "A page that says why", "content": page["content"]}
            responses.setdefault(str(status), why)
        elif str(status) in responses:  # with a shape of its own beside ours
            responses[str(status)]["content"][MEDIA_TYPE] = {"schema": _ref(_name(status))}
        else:
            responses[str(status)] = _response(status)


def _statuses(path: str, method: str, operation: dict[str, Any]) -> set[int]:
    """The statuses of the failures that an operation can end with."""
    found = {429, 500, 503}  # what no app proves its identity for is counted by address
    parameters = [it for it in operation.get("parameters", ()) if it["in"] != "header"]
    body = "requestBody" in operation
    if "security" in operation:
        found |= {401, 403}
    if operation.get("parameters") or body:
        found.add(400)
    names = any(it["in"] == "path" or it["required"] or it["name"] in _NAMING for it in parameters)
    if names or body:
        found.add(404)
    if body:
        found.add(413)
    if method != "get":
        found.add(409)
        if path.startswith(_CLIENTS):
            found.add(424)
    if path.startswith(_PAGES):
        found |= {403, 409, 424}
    if path in _PEOPLE:
        found |= {400, 404, 413, 424}
    if path in _OWN:
        found.add(404)
    return found


def _response(status: int) -> dict[str, Any]:
    codes = ", ".join(f"`{code}`" for code in _BY_STATUS[status])
    response: dict[str, Any] = {
        "description": f"A problem document: {codes}",
        "content": {MEDIA_TYPE: {"schema": _ref(_name(status))}},
    }
    return response | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def _name(status: int) -> str:
    return f"Problem{status}"


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}
