"""No token in any answer but a lease's: what the OpenAPI document says, and what every route answers."""

import re
from collections.abc import Iterator
from typing import Any

from evergrant_server.core.access import Action
from tests.fakes.api import TENANT, Api
from tests.security.isolation.roles import bearer, is_last
from tests.security.isolation.routes import PROVED_OTHERWISE, requests_to, routes
from tests.security.isolation.world import a_world

# Members that hold a secret, by the shape that they are allowed in.
ALLOWED = {
    ("LeaseView", "access_token"),
    ("ProofView", "proof"),  # for one request, DPoP (RFC 9449)
    *(("AuditProofView", it) for it in ("proof", "head_proof")),  # of a record, by Merkle trees
    ("TokenView", "access_token"),  # of Evergrant's own API
    *(("FamilyTokenView", it) for it in ("access_token", "refresh_token")),  # for the gateway alone
    ("NewKeyView", "key"),
    ("CommandSessionView", "token"),  # a person's, which leases nothing
    ("WebhookSecretView", "secret"),
    ("AuditStreamSecretView", "secret"),
    ("ExportView", "key"),  # the thumbprint of a public one
    ("ConnectionView", "token_state"),  # what the access token is, in a word
    ("DeviceAuthorizationView", "device_code"),  # of the client that asked, and worth nothing undecided
    ("DeviceAuthorizationView", "user_code"),
    ("DeviceView", "user_code"),  # for a person's eyes (RFC 8628), with the action connect
    ("SignatureView", "headers"),  # OAuth 1.0a, for one request
    ("CalledView", "headers"),  # as an agent asks to send them; credentials are refused
}
_SECRET = re.compile(
    "token|secret|password|private|credential|verifier|assertion|proof|cookie|^key$|^headers$|_code$"
)
_ABOUT = re.compile("_(at|until|type|s|supported|endpoint|auth_method)$")  # says something about a secret
LEASES = {"POST /v1/lease", "POST /v1/connections/{connection_id}/token"}


def _is_text(schema: dict[str, Any]) -> bool:
    return schema.get("type") not in ("boolean", "integer", "number")


def members(schema: dict[str, Any], shape: str, schemas: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each member of a shape, and of those that it refers to, with the shape's name."""
    pending, seen = [(shape, schema)], set()
    while pending:
        shape, here = pending.pop()
        if isinstance(here, list):
            pending += [(shape, it) for it in here]
        elif isinstance(here, dict):
            name = here.get("$ref", "").rpartition("/")[2]
            if name and name not in seen:
                seen.add(name)
                pending.append((name, schemas[name]))
            yield from ((shape, it) for it, type_ in here.get("properties", {}).items() if _is_text(type_))
            pending += [(shape, it) for key, it in here.items() if key != "enum"]


async def test_no_answer_of_the_openapi_document_has_a_token_but_a_leases(api: Api):
    document = api.app.openapi()
    schemas = document["components"]["schemas"]
    found = {
        (shape, name)
        for operations in document["paths"].values()
        for operation in operations.values()
        for response in operation["responses"].values()
        for content in response.get("content", {}).values()
        for shape, name in members(content["schema"], "", schemas)
        if _SECRET.search(name) and not _ABOUT.search(name)
    }
    assert found == ALLOWED


async def test_no_route_answers_with_a_stored_secret_but_a_lease_with_its_access_token(api: Api):
    own = await a_world(api, TENANT)
    headers = bearer(await api.app_with("caller", *Action))
    refreshed = [f"at-{number}-of-{TENANT}" for number in range(2, 50)]
    api.refreshes_with(*refreshed)
    tokens = {f"at-of-{TENANT}", *refreshed}
    secrets = {f"rt-of-{it}" for it in tokens} | {"hush-hush", f"signing-secret-of-{TENANT}"}
    carried: set[str] = set()
    for route in sorted(routes(api.app), key=is_last):
        for request in requests_to(route) if route not in PROVED_OTHERWISE else ():
            sent = request.sent(own)
            answer = await api.client.request(**sent | {"headers": sent["headers"] | headers})
            text = answer.text + str(answer.headers)
            assert not [it for it in secrets if it in text], route
            if any(it in text for it in tokens):
                carried.add(route)
    assert carried == LEASES
