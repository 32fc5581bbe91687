"""Which commands are dangerous, as the routes declare it, and by which rule each other one isn't."""

import re

from fastapi import FastAPI

from evergrant_server.access.approvals import Danger, danger_of
from tests.security.isolation.routes import PROVED_OTHERWISE, endpoints

# The first rule that fits a route without a declaration: a method, a part of its path, and the reason.
RULES: tuple[tuple[str, str, str], ...] = (
    (r"GET|OPTIONS", r"/", "reads"),
    (r"POST", r"/console/(login|logout)", "begins or ends a session of one's own"),
    (r"POST", r"/(console|me/approvals)/", "calls one of the API's commands, and is judged as that is"),
    (r"POST", r"/v1/access/simulate|/temporal/decode", "changes nothing"),
    (r"POST", r"/v1/(access-requests|call-approvals)", "asks, withdraws, refuses, or uses what is approved"),
    (r"POST", r"/v1/questions", "has what an auditor reads anyway put together"),
    (r"POST", r"/v1/providers", "proposes, refuses, or returns to the version before"),
    (r"POST", r"/v1/(connections/import|imports)", "adds grants that the caller holds; replaces none in use"),
    (r"POST", r"/v1/(lease|connections)", "is about one connection, by the permits of an app"),
    (r"POST", r"/v1/webhooks/\{name\}/", "sends to the URL that is there already"),
    (r"POST", r"/v1/token-families/end", "ends what was authorized"),
    (r"POST", r"/v1/keys/rotations/", "lets a rotation wait, or go on"),
    (r"POST", r"/v1/keys/secrets/retire", "takes away what was replaced; what replaced it was judged"),
    (r"POST", r"/v1/incidents/", "lets an incident wait, or go on"),
    (r"POST", r"/v1/offboardings/plan", "changes nothing"),
    (r"POST", r"/v1/connections/bulk/", "lets a bulk order wait, or go on"),
    (r"DELETE", r"/", "takes away; what is made in its place is judged as new"),
)  # fmt: skip
_IN_A_FLOW = "belongs to the flow of a subject, a client or a person who logs in"


def declared(app: FastAPI) -> dict[str, Danger]:
    """The routes whose commands are dangerous."""
    found = {route: danger_of(endpoint) for route, endpoint in endpoints(app).items()}
    return {route: danger for route, danger in found.items() if danger is not None}


def reason(route: str) -> str | None:
    """Why the commands of a route aren't dangerous; None: no rule says so."""
    if route in PROVED_OTHERWISE:
        return _IN_A_FLOW
    method, path = route.split(" ", 1)
    fits = (why for methods, part, why in RULES if re.fullmatch(methods, method) and re.search(part, path))
    return next(fits, None)
