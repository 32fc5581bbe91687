"""Generates the Python client's models and calls from the OpenAPI document of the HTTP API.

    python clients/generate.py

A test renders them again and compares. What a client does beyond one request (leases, their cache, `auth`,
imports) and calls whose arguments differ from the document's are written by hand: `BY_HAND`.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).parent / "python/src/evergrant/api"
DOCUMENT = Path(__file__).with_name("openapi.json")
WIDTH = 110

# Schemas whose name in the client isn't the document's without `View`.
MODELS = {
    "AccessView": "PermitAccess",
    "AccountOption": "AccountChoice",
    "AuditView": "AuditRecord",
    "CalledView": "ApprovedCall",
    "CheckResult": "Finding",
    "CoveredView": "CoveredConnection",
    "DefinitionView": "ProviderVersion",
    "DeliveryView": "WebhookDelivery",
    "DeviceView": "DeviceCode",
    "EndView": "ComingEnd",
    "EndedFamiliesView": "EndedFamilies",
    "FailedExchangeView": "FailedExchange",
    "HoldView": "LegalHold",
    "HourView": "CountedHour",
    "KeyView": "ApiKey",
    "LinkExplanation": "ExplainedLink",
    "LiveView": "LiveStatus",
    "ReachView": "ReachedPermit",
    "SessionView": "PersonSession",
    "StandingView": "IntegrationStanding",
    "StopView": "AgentStop",
    "WaitingView": "WaitingDecisions",
}
# Responses of a creation, and the schema that every other response about the same thing has.
CREATED = {
    "NewKeyView": "KeyView",
    "WebhookSecretView": "WebhookView",
    "AuditStreamSecretView": "AuditStreamView",
}
ALSO = ("AuditView", "CommandSessionView", "ExportView")  # parsed by calls that are written by hand
BASES = {"CallApprovalView": "Decision"}  # classes of `evergrant.models`
EXTENDED = {"ReachView": "AccessView"}  # schemas that begin with all members of another
# Members that a model's `repr` leaves out.
SECRETS = {
    *("KeyView.key", "WebhookView.secret", "AuditStreamView.secret", "ConnectionView.connect_url"),
    "CommandSessionView.token",
}
SECONDS = {
    "lifetime",
    "overlap",
    "decide_within",
    "wait",
    "grace",
    *("every", "first_wave", "lasts"),
}  # numbers that the client takes as timedelta
# Operations whose name in the client isn't the server's without `get_` or `list_`.
OPERATIONS = {
    "approve_access_request": "approve_access",
    "approve_definition": "approve_provider",
    "choose_account": "choose",
    "create_key": "create_api_key",
    "delete_issuer": "delete_trusted_issuer",
    "deny_access_request": "deny_access",
    "get_import": "import_progress",
    "get_issuer": "trusted_issuer",
    "get_stop": "agent_stop",
    "list_definition_versions": "provider_versions",
    "list_definitions": "own_providers",
    "list_deliveries": "webhook_deliveries",
    "list_issuers": "trusted_issuers",
    "list_keys": "api_keys",
    "propose_definition": "propose_provider",
    "put_issuer": "put_trusted_issuer",
    "reject_definition": "reject_provider",
    "replay_delivery": "replay_webhook",
    "report_access": "access_report",
    "revoke_key": "revoke_api_key",
    "roll_back_definition": "roll_provider_back",
    "send_ping": "test_webhook",
    "simulate_change": "simulate_access",
}
BY_HAND = frozenset(
    {
        *("lease", "token", "proof", "sign_request"),  # evergrant.api.leases
        *("create_connection", "reauthorize_connection", "refresh_connection", "revoke_connection"),
        "confirm_consent",  # evergrant.api.commands, as what follows
        *("list_providers", "list_connection_audit", "rotate_client_secret"),
        *("ask_for_call", "use_approval"),
        *("import_connections", "request_export", "fetch_export", "delete_export"),
        "get_incident_report",  # as those
        *("get_offboarding_report", "get_campaign_report"),  # the same as an incident's
        "delete_connection",  # the same as revoke
        "get_provider",  # a definition as the catalogue writes it: for its authors, who have the file
        "export_audit_log",  # evergrant.api.commands: a page is kept as it came
        "verify_audit_log",  # `evergrant_server audit verify` does it, where the operator is
        "receive_event",  # for providers
    }
)
# Parameters of the query that no method takes: pages' own, and those of `evergrant apply`.
UNSAID = frozenset({"limit", "cursor", "format", "dry_run", "managed_by"})
PREFIX = "#/components/schemas/"


class Schemas:
    """The document's schemas, and the models that were asked for, in the order in which they were."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._all: Mapping[str, Any] = document["components"]["schemas"]
        self.asked: dict[str, str] = {}

    def resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """A schema without its reference, and without its null."""
        if "anyOf" in schema:
            schema = next(option for option in schema["anyOf"] if option.get("type") != "null")
        return self._all[schema["$ref"].removeprefix(PREFIX)] if "$ref" in schema else schema

    def model(self, reference: str) -> str:
        """The client's name of a schema, which is then rendered too."""
        name = reference.removeprefix(PREFIX)
        name = CREATED.get(name, name)
        if name not in self.asked:
            self.asked[name] = MODELS.get(name, name.removesuffix("View"))
            list(self.fields(name))  # asks for the models of its members
        return self.asked[name]

    def type_of(self, schema: Mapping[str, Any]) -> str:
        """A response's member as a Python type. An enum is a text, so that a newer server's value is read."""
        if "anyOf" in schema:
            options = [self.type_of(option) for option in schema["anyOf"]]
            return " | ".join(dict.fromkeys("None" if kind == "null" else kind for kind in options))
        if "$ref" in schema:
            if schema["$ref"] == f"{PREFIX}LifecycleState":
                return "State"
            referred = self._all[schema["$ref"].removeprefix(PREFIX)]
            return "str" if "enum" in referred else self.model(schema["$ref"])
        kind = schema.get("type", "object")
        if kind == "array":
            member = self.type_of(schema["items"])
            return "Texts" if member == "str" else f"tuple[{member}, ...]"
        if kind == "string":
            return "datetime" if schema.get("format") == "date-time" else "str"
        return {"integer": "int", "number": "float", "boolean": "bool", "object": "Facts"}.get(kind, kind)

    def parameter(self, name: str, schema: Mapping[str, Any], *, in_query: bool = False) -> str:
        """A request's member as a Python type."""
        inner = self.resolved(schema)
        if name in SECONDS and inner.get("type") == "number":
            return "timedelta"
        if in_query and name == "scopes":
            return "Texts"
        return "str" if "enum" in inner else "Facts" if "properties" in inner else self.type_of(inner)

    def fields(self, name: str) -> Iterator[tuple[str, str, Mapping[str, Any], bool]]:
        schema = self._all[name]
        created = next((new for new, view in CREATED.items() if view == name), name)
        for member, described in self._all[created]["properties"].items():
            yield member, self.type_of(described), described, member in schema.get("required", ())

    def render(self, name: str) -> Iterator[str]:
        """The lines of one dataclass."""
        base, inherited = BASES.get(name), set[str]()
        if extended := EXTENDED.get(name):
            base, inherited = self.model(extended), {field[0] for field in self.fields(extended)}
        head = f"class {self.asked[name]}({base}):" if base else f"class {self.asked[name]}:"
        yield f"@dataclass(frozen=True, slots=True)\n{head}"
        if text := self._all[name].get("description"):
            yield from docstring(text, "    ", after="")
        fields = sorted(self.fields(name), key=lambda field: not field[3])
        for member, kind, described, required in fields:
            if member in inherited:
                continue
            if required:
                yield f"    {member}: {kind}"
                continue
            default = empty(described)
            if default == "None" and "None" not in kind:
                kind += " | None"
            hidden = f"{name}.{member}" in SECRETS
            yield f"    {member}: {kind} = {f'field(default={default}, repr=False)' if hidden else default}"
        yield ""


def empty(schema: Mapping[str, Any]) -> str:
    """A default that can't be changed, or is made anew."""
    value = schema.get("default", {} if schema.get("type") == "object" else None)
    if isinstance(value, list):
        return repr(tuple(cast(list[Any], value)))
    if value == {}:
        return "field(default_factory=dict[str, Any])"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def docstring(text: str, indent: str, after: str = "\n") -> Iterator[str]:
    """A docstring whose first paragraph is one sentence or more, wrapped anew."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    first, *rest = textwrap.wrap(paragraphs[0], WIDTH - len(indent) - 3)
    if not rest and len(paragraphs) == 1 and len(first) < WIDTH - len(indent) - 6:
        yield f'{indent}"""{first}"""{after}'
        return
    yield f'{indent}"""{first}'
    yield from (indent + line for line in rest)
    for paragraph in paragraphs[1:]:
        yield ""
        yield from textwrap.wrap(paragraph, WIDTH, initial_indent=indent, subsequent_indent=indent)
    yield f'{indent}"""{after}'


def operations(
    document: Mapping[str, Any], by_hand: frozenset[str] = BY_HAND
) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """The API's operations but those that are written by hand: name, method, path, and what is described.

    Sorted by path, so that a router that moves changes nothing.
    """
    for path, methods in sorted(document["paths"].items()):
        for method, operation in sorted(methods.items()):
            # FastAPI's id: the function's name, its path and its method
            ending = re.sub(r"\W", "_", path) + f"_{method}"
            name = operation["operationId"].removesuffix(ending)
            if path.startswith("/v1/") and name not in by_hand:
                yield name, method.upper(), path, operation


def client_name(operation: str) -> str:
    return OPERATIONS.get(operation, operation.removeprefix("get_").removeprefix("list_"))


def path_names(path: str) -> Mapping[str, str]:
    """The client's names for a path's parameters: in `/apps/{name}/permits/{permit_name}` app and name."""
    parts, names = path.split("/"), {}
    for before, part in pairwise(parts):
        if part.startswith("{"):
            last = part == parts[-1]
            names[part[1:-1]] = before.removesuffix("s") if part == "{name}" and not last else part[1:-1]
    return {name: "name" if named.endswith("_name") else named for name, named in names.items()}


def render_operation(
    schemas: Schemas, name: str, method: str, path: str, operation: Mapping[str, Any]
) -> Iterator[str]:
    """The lines of one method."""
    named = path_names(path)
    for old, new in named.items():
        path = path.replace(f"{{{old}}}", f"{{{new}}}")
    content = next(iter(operation.get("requestBody", {}).get("content", {}).values()), {})
    body = schemas.resolved(content.get("schema") or {"type": "null"})
    parameters = list(members(schemas, operation, body))
    required = [*(f"{new}: str" for new in named.values()), *(line for line, needed in parameters if needed)]
    optional = [f"{line} | None = None" for line, needed in parameters if not needed]
    decorator, model = decorated(schemas, operation)
    has_key = any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ()))
    once = ", once=True" if has_key else ""
    arguments = f'"{path}", {model}' if decorator == "lists" else f'"{method}", "{path}", {model}{once}'
    line = f"    @{decorator}({arguments})"
    yield line if len(line) <= WIDTH else f"    @{decorator}(\n        {arguments}\n    )"
    yield from signature(client_name(name), [*required, *(["*", *optional] if optional else [])])
    text = operation.get("description") or f"The {client_name(name).replace('_', ' ')}."
    about = body.get("description", "").partition("\n\n")[0].replace(", in seconds", "")
    yield from docstring("\n\n".join(filter(None, (text, about))), "        ")


def members(
    schemas: Schemas, operation: Mapping[str, Any], body: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
    """The query's parameters and the body's members with their types, and which have to be there."""
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "query" and name not in UNSAID:
            kind = schemas.parameter(name, parameter["schema"], in_query=True)
            yield f"{name}: {kind}", bool(parameter.get("required"))
    if "oneOf" in body:  # the credentials: each method has its own parameters
        yield from (("method: str", True), ("parameters: Facts", True))
    for name, described in body.get("properties", {}).items():
        yield f"{name}: {schemas.parameter(name, described)}", name in body.get("required", ())


def decorated(schemas: Schemas, operation: Mapping[str, Any]) -> tuple[str, str]:
    """`lists` and the model of an item, or `sends` and the response's."""
    response = next(answer for status, answer in sorted(operation["responses"].items()) if status[0] == "2")
    if "content" not in response:
        return "sends", "None"
    schema = next(iter(response["content"].values()))["schema"]
    shape = schemas.resolved(schema).get("properties", {})
    if {"items", "next_cursor"} <= set(shape):
        return "lists", f"models.{schemas.model(shape['items']['items']['$ref'])}"
    return "sends", f"models.{schemas.model(schema['$ref'])}"


def signature(name: str, parameters: list[str]) -> Iterator[str]:
    line = f"    def {name}({', '.join(['self', *parameters])}) -> None:"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"    def {name}("
    yield from textwrap.wrap(
        ", ".join(["self", *parameters]).replace(" ", "\0").replace(",\0", ", "),
        WIDTH,
        initial_indent=" " * 8,
        subsequent_indent=" " * 8,
        break_long_words=False,
    )
    yield "    ) -> None:"


def render(document: Mapping[str, Any]) -> Mapping[str, str]:
    """The generated modules by file name."""
    schemas = Schemas(document)
    methods = ["\n".join(render_operation(schemas, *operation)) for operation in operations(document)]
    for name in ALSO:
        schemas.model(name)
    models = [
        "\n".join(schemas.render(name)) for name in sorted(schemas.asked, key=schemas.asked.__getitem__)
    ]
    return {
        "models.py": (MODELS_HEAD + "\n".join(models)).rstrip() + "\n",
        "operations.py": (OPERATIONS_HEAD + "\n".join(methods)).replace("\0", " ").rstrip() + "\n",
    }


MODELS_HEAD = '''"""Generated by `make docs` from the OpenAPI document: the responses, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evergrant.models import Decision, State

Texts = tuple[str, ...]
Facts = Mapping[str, Any]


'''
OPERATIONS_HEAD = '''"""Generated by `make docs` from the OpenAPI document: a method for each operation."""

from __future__ import annotations

from datetime import datetime, timedelta

from evergrant.api import models
from evergrant.api.methods import Facts, Texts, lists, sends


class Operations:
    """The operations of the API; `evergrant.api.commands` adds those that are written by hand."""

'''


def written(document: Mapping[str, Any]) -> str:
    """The document as it is committed: the TypeScript client is built from it, without the server."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    from evergrant_server.api.app import openapi_document

    document = openapi_document()
    for name, text in render(document).items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    DOCUMENT.write_text(written(document), encoding="utf-8")


if __name__ == "__main__":
    main()
