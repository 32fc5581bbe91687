"""The page at `/`, the style sheet, `/openapi.json` with the failures of each operation, and `/docs`."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.examples import example_of
from evergrant_server.api.leases.models import LeaseBody, LeaseView, ProofBody, ProofView, TokenBody
from evergrant_server.api.leases.routes import LEASE_PATH, PROOF_PATH, TOKEN_PATH
from evergrant_server.api.pages.browser import html_response
from evergrant_server.console.pages import STYLE, Pages
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.model import CheckedModel
from evergrant_server.problems import MEDIA_TYPE

router = APIRouter(include_in_schema=False)

METHODS = ("get", "put", "post", "delete")
_BY_STATUS = {
    status: sorted(code.value for code, rule in FAILURES.items() if rule.status == status)
    for status in sorted({rule.status for rule in FAILURES.values()})
}
_PAGES = ("/connect/", "/oauth/callback/")
_OF_A_PERSON = ("/me", "/oauth/device")
_PEOPLE = ("/login", "/logout")
_OWN = (  # there may be none
    *("/v1/sessions/current", "/v1/admin-login", "/v1/client-login", "/v1/offboarding-rule"),
    "/v1/audit/checkpoint",
)
_NAMING = ("app",)  # parameters that name what there may not be, where they are given
_CLIENTS = ("/v1/lease", "/v1/connections", "/v1/integrations")  # what an integration's client is used for
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    429: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
    503: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
}
_TAGS = (
    *("integrations", "providers", "apps", "connections", "leases", "webhooks", "audit", "transfer"),
    *("security events", "oauth", "workload identity", "agents", "people", "erasures"),
    *("incidents", "campaigns", "overview", "pages", "health"),
)
_REF = "#/components/schemas/"


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
    page = next(
        (response for response in responses.values() if "text/html" in response.get("content", ())), None
    )
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
    statuses = {429, 500, 503}  # what no app proves its identity for is counted by address
    parameters = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] != "header"]
    body = "requestBody" in operation
    if "security" in operation:
        statuses |= {401, 403}
    if operation.get("parameters") or body:
        statuses.add(400)
    names = any(
        parameter["in"] == "path" or parameter["required"] or parameter["name"] in _NAMING
        for parameter in parameters
    )
    if names or body:
        statuses.add(404)
    if body:
        statuses.add(413)
    if method != "get":
        statuses.add(409)
        if path.startswith(_CLIENTS):
            statuses.add(424)
    if path.startswith(_PAGES):
        statuses |= {403, 409, 424}
    if path.startswith(_OF_A_PERSON):
        statuses |= {401, 403, 404, 424}
    if path in _PEOPLE:
        statuses |= {400, 404, 413, 424}
    if path in _OWN:
        statuses.add(404)
    return statuses


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


@router.get("/static/evergrant.css")
async def get_stylesheet() -> Response:
    return Response(STYLE, media_type="text/css", headers={"Cache-Control": "public, max-age=3600"})


@router.get("/logos/{file}")
async def get_logo(request: Request, file: str) -> Response:
    """An operator's logo, which runs nothing and loads nothing where it is opened by itself."""
    templates: Pages = request.app.state.templates
    logo = templates.logos.file(file)
    if logo is None:
        raise Failure(ErrorCode.NOT_FOUND)
    headers = {
        "Cache-Control": "public, max-age=3600",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(logo[0], media_type=logo[1], headers=headers)


@router.get("/", response_class=HTMLResponse)
async def get_home(request: Request) -> Response:
    """A page that says what this is, and where to go."""
    templates: Pages = request.app.state.templates
    return html_response(templates.home())


@router.get("/openapi.json")
async def get_document(request: Request) -> Response:
    """The OpenAPI 3.1 document."""
    reference: Reference = request.app.state.reference
    document, _ = await reference.rendered()
    return Response(document, media_type="application/json")


@router.get("/docs", response_class=HTMLResponse)
async def get_docs(request: Request) -> Response:
    """A page with the routes, an example of each, and the failure table."""
    reference: Reference = request.app.state.reference
    _, page = await reference.rendered()
    return html_response(page)


class Reference:
    """The OpenAPI document and the page that shows it, rendered once, at the first request for either.

    A thread renders them, which takes most of a second: the event loop issues leases meanwhile.
    """

    def __init__(self, app: FastAPI, templates: Pages, url: str) -> None:
        self._app = app
        self._templates = templates
        self._url = url
        self._rendering: asyncio.Task[tuple[bytes, str]] | None = None

    async def rendered(self) -> tuple[bytes, str]:
        """The document as JSON, and the page as HTML."""
        if self._rendering is None:
            self._rendering = asyncio.create_task(asyncio.to_thread(self._render))
        return await asyncio.shield(self._rendering)  # the deadline of a request ends none of the others

    def _render(self) -> tuple[bytes, str]:
        schema = self._app.openapi()
        version = schema["info"]["version"]
        page = self._templates.reference(sections=_sections(schema), version=version, url=self._url)
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode(), page


def _sections(schema: dict[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    """The routes by tag, in the order in which the guide needs them."""
    sections: dict[str, list[dict[str, str]]] = {tag: [] for tag in _TAGS}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if method not in METHODS:
                continue
            text = operation.get("description") or operation.get("summary", "") + "."
            example = example_of(method.upper(), path, operation)
            shown = {"method": method.upper(), "path": path, "text": text, "example": example}
            sections.setdefault(operation["tags"][0], []).append(shown)
    sections["leases"].sort(key=lambda route: route["path"] != LEASE_PATH)  # what most readers look for
    return [("OAuth" if tag == "oauth" else tag, routes) for tag, routes in sections.items() if routes]


def openapi_schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document, with the lease routes that FastAPI doesn't know."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for shape in (LeaseBody, TokenBody, ProofBody, LeaseView, ProofView):
        described = shape.model_json_schema(ref_template=_REF + "{model}")
        schemas |= described.pop("$defs", {})
        schemas[shape.__name__] = described
    names = "An access token for a connection, by its names."
    schema["paths"][LEASE_PATH] = {"post": _lease_operation("lease", names, LeaseBody)}
    token = _lease_operation("token", "An access token for a connection, by its id.", TokenBody)
    token["parameters"] = [
        {"name": "connection_id", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    schema["paths"][TOKEN_PATH] = {"post": token}
    text = "A DPoP proof (RFC 9449) for one request with a bound token."
    made = _lease_operation("proof", text, ProofBody, ProofView)
    schema["paths"][PROOF_PATH] = {"post": {**made, "parameters": token["parameters"]}}
    for operations in schema["paths"].values():
        if "put" in operations:  # each creates or changes
            responses = operations["put"]["responses"]
            responses["201"] = {**responses["200"], "description": "Created"}
    describe_failures(schema)
    return schema


def _lease_operation(
    operation_id: str, text: str, body: type[BaseModel], view: type[BaseModel] = LeaseView
) -> dict[str, Any]:
    return {
        "tags": ["leases"],
        "summary": text,
        "operationId": operation_id,
        "requestBody": {
            "required": body is not TokenBody,
            "content": {"application/json": {"schema": {"$ref": _REF + body.__name__}}},
        },
        "responses": {
            "200": {
                "description": "The lease" if view is LeaseView else "The proof",
                "content": {"application/json": {"schema": {"$ref": _REF + view.__name__}}},
            }
        },
        "security": [{"HTTPBearer": []}],
    }
