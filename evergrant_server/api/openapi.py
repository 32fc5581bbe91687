"""The page at `/`, `/docs`, `/openapi.json` and the style sheet."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.examples import example_of
from evergrant_server.api.leases.models import LeaseBody, LeaseView, ProofBody, ProofView, TokenBody
from evergrant_server.api.leases.routes import LEASE_PATH, PROOF_PATH, TOKEN_PATH
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.problem_schemas import METHODS, describe_failures
from evergrant_server.console.pages import STYLE, Pages
from evergrant_server.core.errors import ErrorCode, Failure

router = APIRouter(include_in_schema=False)

_TAGS = (
    *("integrations", "providers", "apps", "connections", "leases", "webhooks", "audit", "transfer"),
    *("security events", "oauth", "workload identity", "agents", "people", "pages", "health"),
)
_REF = "#/components/schemas/"


@router.get("/static/evergrant.css")
async def get_stylesheet() -> Response:
    return Response(STYLE, media_type="text/css", headers={"Cache-Control": "public, max-age=3600"})


@router.get("/logos/{file}")
async def get_logo(request: Request, file: str) -> Response:
    """An operator's logo, which runs nothing and loads nothing where it is opened by itself."""
    templates: Pages = request.app.state.templates
    found = templates.logos.file(file)
    if found is None:
        raise Failure(ErrorCode.NOT_FOUND)
    headers = {
        "Cache-Control": "public, max-age=3600",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(found[0], media_type=found[1], headers=headers)


@router.get("/", response_class=HTMLResponse)
async def get_home(request: Request) -> Response:
    """A page that says what this is, and where to go."""
    templates: Pages = request.app.state.templates
    return html_response(templates.home())


@router.get("/docs", response_class=HTMLResponse)
async def get_docs(request: Request) -> Response:
    """A page with the routes, an example of each, and the failure table."""
    schema, templates = request.app.openapi(), request.app.state.templates
    version, url = schema["info"]["version"], request.app.state.api.settings.public_url
    return html_response(templates.reference(sections=_sections(schema), version=version, url=url))


def _sections(schema: dict[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    """The routes by tag, in the order in which the guide needs them."""
    found: dict[str, list[dict[str, str]]] = {tag: [] for tag in _TAGS}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if method not in METHODS:
                continue
            text = operation.get("description") or operation.get("summary", "") + "."
            example = example_of(method.upper(), path, operation)
            shown = {"method": method.upper(), "path": path, "text": text, "example": example}
            found.setdefault(operation["tags"][0], []).append(shown)
    found["leases"].sort(key=lambda it: it["path"] != LEASE_PATH)  # what most readers look for
    return [("OAuth" if tag == "oauth" else tag, routes) for tag, routes in found.items() if routes]


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
