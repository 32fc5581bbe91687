"""Every route of the application, and a request to it that names things of a world by placeholders.

The paths are the application's own. What it adds has to be placed here, or the matrix fails.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from fastapi import FastAPI

from evergrant_server.temporal_link.stories import ENCODING
from tests.security.isolation.rights import RIGHTS
from tests.security.isolation.world import A_CREDENTIAL, PUBLIC_KEY, document

# What `{name}` names in each collection.
NAMED = {"/v1/integrations/": "integration", "/v1/apps/": "app", "/v1/webhooks/": "webhook"}
NAMED |= {"/v1/audit/streams/": "audit_stream"}
NAMED |= {"/v1/issuers/": "trusted_issuer", "/v1/agents/": "agent"}
NAMED |= {"/v1/delegation-rules/": "delegation_rule"}
NAMED |= {"/console/integrations/": "integration", "/console/apps/": "app", "/console/agents/": "agent"}
NAMED |= {"/console/rules/": "delegation_rule", "/console/issuers/": "trusted_issuer"}
NAMED |= {"/console/webhooks/": "webhook", "/console/streams/": "audit_stream"}
NAMED |= {"/console/static/": "app"}  # no file has this name
_NAME = re.compile(r"\{(\w+)\}")
_CON = "/v1/connections/{connection_id}"
_ITEM = {"integration": "{integration}", "subject": "{subject}", "access_token": "a", "expires": "unknown"}

_CALL = {"connection_id": "{connection_id}", "method": "GET", "url": "https://api.example/"}
_ROTATION = {"kind": "connection", "connection_id": "{connection_id}"}
_EXCHANGE = {"flow": "token_exchange"}
_SEALED = {
    "metadata": {"encoding": base64.b64encode(ENCODING).decode(), "evergrant-workflow": "{story}"},
    "data": "{sealed_payload}",
}

_CAMPAIGN = {"successor": "{successor}", "reason": "a", "integration": "{integration}"}
# The query, after `?`, and the body of routes that need one.
QUERIES = {
    "GET /v1/access/explain": ("app={app}&connection={connection_id}",),
    "GET /v1/audit/evidence": ("framework=soc2",),
    "GET /v1/audit/proof": ("record={audit_record}",),
    "GET /v1/audit/record": ("record={audit_record}",),
    "GET /v1/keys/rotations": ("", "connection={connection_id}"),
    "GET /v1/delegations": ("", "app={app}"),
    "GET /v1/delegations/{delegation_id}/explain": ("connection={connection_id}",),
    "GET /v1/connections/export": ("id={export_id}",),
    "DELETE /v1/connections/export": ("id={export_id}",),
    "GET /console/connections": (
        "",
        "integration={integration}",
        "search={subject}",
        "search={connection_id}",
    ),
    "GET /console/audit": ("", "object={connection_id}"),
    "GET /console/authorizations": ("", "app={app}", "subject={subject}"),
    "GET /console/access": ("app={app}&connection={connection_id}",),
    "GET /console/new/definition": ("", "provider={provider}"),
    "GET /console/connect": ("integration={integration}&subject={subject}",),
    "GET /v1/erasures": ("", "subject={subject}"),
    "GET /v1/connections/bulk/plan": (
        *("action=revoke&integration={integration}", "action=refresh&connections={connection_id}"),
    ),
    "GET /console/bulk/plan": (
        *("action=refresh&whole=yes&integration={integration}", "action=label&connection={connection_id}"),
    ),
    "GET /v1/campaigns/plan": ("integration={integration}&successor={successor}",),
    "GET /console/campaigns/plan": ("integration={integration}&successor={successor}&reason=a%20test",),
    "GET /v1/incidents/plan": ("kind=breach&integration={integration}",),
    "GET /console/incidents/plan": ("", "integration={integration}"),
    "GET /console/leavers/plan": ("subject={label}&reason=a%20test",),
    "GET /v1/token-families": ("", "app={app}", "subject={subject}"),
    "GET /v1/connections": (
        *("", "integration={integration}", "provider={provider}", "subject={subject}"),
        *("order=urgency", "search={connection_id}"),  # the beginning of a subject is one of ours too
    ),
    "GET /v1/connections/totals": ("", "integration={integration}", "search={connection_id}"),
}
BODIES: dict[str, tuple[Any, ...]] = {
    "PUT /v1/integrations/{name}": ({"provider": "gitlab", "client_id": "c", "client_secret": "s"},),
    "POST /v1/integrations/{name}/rotate-secret": ({"client_secret": "s2"},),
    "PUT /v1/integrations/{name}/security-events": ({"kind": "slack", "secret": "a-signing-secret"},),
    "PUT /v1/apps/{name}": ({},),
    "POST /v1/call-approvals": ({**_CALL, "reason": "a test"},),
    "POST /v1/call-approvals/use": (_CALL,),
    "PUT /v1/agents/{name}": ({"purpose": "a test", "ends_at": "2026-03-01T00:00:00Z"},),
    "PUT /v1/apps/{name}/permits/{permit_name}": ({"integration": "{integration}", "actions": ["connect"]},),
    "PUT /v1/apps/{name}/credentials/{credential_name}": (A_CREDENTIAL,),
    "PUT /v1/issuers/{name}": ({"kind": "oidc", "issuer": "https://{trusted_issuer}.example"},),
    "PUT /v1/delegation-rules/{name}": (
        {"issuer": "{trusted_issuer}", "token_type": "id_token", "audience": "a", "actors": ["{app}"]},
    ),
    "POST /v1/access/simulate": ({"app": "{app}", "permits": {"narrow": None}},),
    "POST /v1/access-requests": (
        {"permit": {"integration": "{integration}", "actions": ["token"]}, "reason": "a", "app": "{app}"},
    ),
    "POST /v1/providers": ({"definition": document("{provider}")},),
    "POST /v1/providers/{provider}/approve": ({"version": 3},),
    "POST /v1/providers/{provider}/reject": ({"version": 4, "reason": "no"},),
    "POST /v1/providers/{provider}/roll-back": ({"version": 2},),
    "PUT /v1/client-login": ({"app": "{app}", "integration": "{issuer}"},),
    "POST /v1/oauth-clients": ({"name": "{app}", "redirect_uris": ["https://agent.example/cb"]},),
    "PUT /v1/oauth-clients/{oauth_client_id}": ({"disabled": True},),
    "POST /v1/token-families/end": ({"app": "{app}"},),
    "PUT /v1/admin-login": ({"integration": "{issuer}", "roles": {"auditor": ["board"]}},),
    "PUT /v1/audit/streams/{name}": ({"url": "https://siem.example.com/in", "headers": {"DD-API-KEY": "s"}},),
    "PUT /v1/webhooks/{name}": ({"url": "https://hooks.example.com/in", "integration": "{integration}"},),
    "POST /v1/connections": (
        {"integration": "{integration}", "subject": "new"},
        {"integration": "{integration}", "subject": "new", "source": "{connection_id}", **_EXCHANGE},
    ),
    "POST /v1/connections/import": ({"items": [_ITEM], "verify": False},),
    "POST /v1/imports": ({"items": [_ITEM]},),
    "POST /v1/connections/export": (
        {"public_key": PUBLIC_KEY, "filters": {"integration": "{integration}", "subject": "{subject}"}},
    ),
    "POST /v1/erasures": ({"subject": "{subject}", "reason": "a test"},),
    "POST /v1/questions": (
        {"question": "connection_uses", "connection_id": "{connection_id}"},
        {"question": "app_reach", "app": "{app}"},
    ),
    "POST /v1/incidents": (
        {"kind": "breach", "integration": "{integration}", "confirm": "{integration}", "reason": "a test"},
    ),
    "POST /v1/campaigns": (_CAMPAIGN | {"confirm": "{integration}"},),
    "POST /v1/offboardings": ({"subject": "{label}", "reason": "a test"},),
    "POST /v1/offboardings/plan": ({"subject": "{label}", "reason": "a test"},),
    "PUT /v1/offboarding-rule": ({"subject_from": "user_name", "sponsor": "{app}"},),
    "POST /v1/connections/bulk": (
        {"action": "revoke", "integration": "{integration}", "confirm": "{integration}", "reason": "a test"},
        {"action": "refresh", "connections": ["{connection_id}"], "reason": "a test"},
    ),
    "POST /v1/legal-holds": ({"subject": "{label}", "reason": "a test"},),
    "POST /v1/legal-holds/{hold_id}/end": ({"reason": "a test"},),
    "POST /v1/keys/rotations": (_ROTATION,),
    "POST /v1/keys/rotations/pause": (_ROTATION,),
    "POST /v1/keys/rotations/resume": (_ROTATION,),
    "POST /v1/keys/secrets/retire": (
        {"kind": "app_key", "name": "{app}"},
        {"kind": "client_secret", "name": "{integration}"},
        {"kind": "webhook_secret", "name": "{webhook}"},
    ),
    "POST /v1/lease": ({"integration": "{integration}", "subject": "{subject}", "label": "{label}"},),
    "POST /temporal/decode": ({"payloads": [_SEALED]},),
    f"POST {_CON}/choose": ({"choice": "acc-1"},),
    f"POST {_CON}/confirm": ({"code": "{confirm_code}", "subject": "another"},),
    f"POST {_CON}/signatures": ({"method": "GET", "url": "https://api.example/"},),
    f"POST {_CON}/proof": ({"htm": "GET", "htu": "https://api.example/v1"},),
}  # fmt: skip

# Without a caller there is no tenant: what a stranger reads names none, or its id was given out to be read.
PUBLIC = {
    *("GET /", "GET /livez", "GET /readyz", "GET /metrics", "GET /docs", "GET /openapi.json"),
    *("GET /static/evergrant.css", "GET /logos/{file}", "GET /oauth/client/{integration_id}"),
    "GET /console/static/{name}",
    *("GET /.well-known/oauth-authorization-server", "GET /.well-known/openid-configuration"),
}
# A link, a browser's cookie, a provider's signature or an app's stands in for a credential:
# tests/security/pages, tests/security/test_provider_events.py, tests/security/test_app_assertions.py.
PROVED_OTHERWISE = {
    *("GET /connect/{link}", "POST /connect/{link}", "POST /connect/{link}/choice"),
    *("GET /oauth/callback/{integration_id}", "POST /oauth/callback/{integration_id}"),
    *("POST /oauth/callback/{integration_id}/fragment", "POST /v1/security-events/{receiver_id}"),
    *("POST /oauth/token", "POST /oauth/revoke"),
    # of an OAuth client, and of who uses it: tests/security/clients
    *(
        "POST /oauth/register",
        "GET /oauth/authorize",
        "POST /oauth/device_authorization",
        "GET /oauth/device",
    ),
    *("GET /oauth/authorize/{request_id}", "POST /oauth/authorize/{request_id}"),
    # of a person, for whom connections are: tests/security/pages/test_me.py
    *("GET /me", "GET /me/connections/{connection_id}", "POST /me/connections/{connection_id}/end"),
    "GET /me/connections/{connection_id}/receipts/{shard}/{index}",
    *("POST /me/programs/{program_id}/end", "POST /me/log-out"),
    # and what waits for them: tests/security/pages/test_own_approvals.py
    *("GET /me/approvals", "GET /me/approvals/{approval_id}"),
    "POST /me/approvals/{approval_id}/{decision}",
    # of a person who administers: tests/security/pages/test_person_login.py, test_person_sessions.py
    *("GET /login", "POST /login", "POST /login/command", "GET /session", "POST /logout"),
    *("GET /v1/sessions/current", "DELETE /v1/sessions/current"),
    # of another cell, which the operator's offer proves: tests/cells/test_move.py
    "POST /v1/moves/{tenant}/{move_id}/{step}",
    # of the tenant's directory, with SCIM's own errors: tests/unit/api/leavers/test_scim.py
    *(f"{method} /scim/v2/Users/{{user_id}}" for method in ("GET", "PUT", "PATCH", "DELETE")),
    *(f"{method} /scim/v2/{{path:path}}" for method in ("GET", "POST", "PUT", "PATCH", "DELETE")),
    *("GET /scim/v2/Users", "POST /scim/v2/Users", "POST /scim/v2/Users/.search", "POST /scim/v2/.search"),
    *("GET /scim/v2/ServiceProviderConfig", "GET /scim/v2/ResourceTypes", "GET /scim/v2/Schemas"),
    *("GET /scim/v2/ResourceTypes/{name}", "GET /scim/v2/Schemas/{schema_id}"),
}
# A browser's cookie again, for the console: test_console.py, tests/security/pages/test_console_sessions.py.
_CONSOLE_LOGIN = {"GET /console/login", "POST /console/login", "POST /console/logout"}
_CLIENT = {"client_id": "c", "client_secret": "s"}
_DEFINITION = "\n".join(
    (
        *("name: {provider}", "display_name: {provider}", "auth_modes: [authorization_code]"),
        *(
            "authorization_endpoint: https://idp.example/authorize",
            "token_endpoint: https://idp.example/token",
        ),
    )
)
CONSOLE_FORMS = {
    "POST /console/connect": {"integration": "{integration}", "subject": "new"},
    "POST /console/connections/{connection_id}/reconnect": {},
    "POST /console/connections/{connection_id}/choose": {"choice": "acc-1"},
    "POST /console/connections/{connection_id}/refresh": {"generation": "1"},
    "POST /console/connections/{connection_id}/revoke": {},
    "POST /console/connections/{connection_id}/erase": {"confirm": "{subject}"},
    "POST /console/call-approvals/{call_approval_id}/approve": {},
    "POST /console/call-approvals/{call_approval_id}/deny": {},
    "POST /console/agents/{name}/stop": {},
    "POST /console/connections/{connection_id}/confirm": {"code": "{confirm_code}"},
    "POST /console/apps/{name}/keys": {"once": "once-of-this-very-form"},
    "POST /console/apps/{name}/keys/{key_id}/revoke": {},
    "POST /console/requests/{request_id}/approve": {},
    "POST /console/requests/{request_id}/deny": {},
    "POST /console/requests/{request_id}/withdraw": {},
    "POST /console/approvals/{approval_id}": {},
    "POST /console/questions": {"question": "app_reach", "app": "{app}"},
    "POST /console/incidents": {
        **{"kind": "breach", "integration": "{integration}", "confirm": "{integration}", "reason": "a test"}
    },
    "POST /console/bulk": {"action": "refresh", "integration": "{integration}", "reason": "a test"},
    "POST /console/bulk/{bulk_id}/pause": {},
    "POST /console/bulk/{bulk_id}/resume": {},
    "POST /console/incidents/{incident_id}/pause": {},
    "POST /console/incidents/{incident_id}/resume": {},
    "POST /console/campaigns": _CAMPAIGN | {"confirm": "{integration}"},
    **{f"POST /console/campaigns/{{campaign_id}}/{act}": {} for act in ("pause", "resume", "undo", "end")},
    "POST /console/leavers": {"subject": "{label}", "reason": "a test", "confirm": "{label}"},
    "POST /console/leavers/{offboarding_id}/undo": {},
    **RIGHTS,
    "POST /console/new/webhook": {"name": "new", "url": "https://hooks.example.com/new"},
    "POST /console/webhooks/{name}/edit": {"url": "https://hooks.example.com/new"},
    "POST /console/webhooks/{name}/delete": {"confirm": "{webhook}"},
    "POST /console/webhooks/{name}/rotate-secret": {"once": "once-of-this-very-form"},
    "POST /console/webhooks/{name}/test": {},
    "POST /console/webhooks/{name}/replay-failed": {},
    "POST /console/webhooks/{name}/deliveries/{delivery_id}/replay": {},
    "POST /console/keys": {"kind": "tenant"},
    "POST /console/keys/pause": {"kind": "tenant"},
    "POST /console/keys/resume": {"kind": "tenant"},
    "POST /console/keys/secrets/retire": {"kind": "app_key", "name": "{app}"},
    "POST /console/new/integration": {"name": "{integration}", "provider": "gitlab", **_CLIENT},
    "POST /console/integrations/{name}/edit": _CLIENT,
    "POST /console/integrations/{name}/rotate-secret": {"client_secret": "s2"},
    "POST /console/integrations/{name}/try": {"subject": "new"},
    "POST /console/integrations/{name}/delete": {"confirm": "{integration}"},
    "POST /console/new/definition": {"definition": _DEFINITION},
    "POST /console/definitions/{provider}/approve": {"version": "3"},
    "POST /console/definitions/{provider}/reject": {"version": "4", "reason": "no"},
    "POST /console/definitions/{provider}/roll-back": {"version": "2"},
    "POST /console/imports": {"grants": "no grants"},
    "POST /console/imports/{import_id}/begin": {"refresher_stopped": "yes"},
    "POST /console/imports/{import_id}/forget": {},
}
BODIES |= {route: (form,) for route, form in CONSOLE_FORMS.items()}
_OPEN = PUBLIC | PROVED_OTHERWISE
# The tenant's only one, so a request names none: that of another tenant stays is shown by its rows.
ONE_OF_THE_TENANT = {"DELETE /v1/admin-login", "DELETE /v1/client-login", "DELETE /v1/offboarding-rule"}
ONE_OF_THE_TENANT |= {"GET /v1/offboarding-rule"}
# These make or change the caller's own thing of that name, whatever other tenants have.
CREATES = {
    *("PUT /v1/agents/{name}", "PUT /v1/delegation-rules/{name}"),
    *("PUT /v1/integrations/{name}", "PUT /v1/apps/{name}", "PUT /v1/webhooks/{name}", "POST /v1/providers"),
    "PUT /v1/audit/streams/{name}",
    *("POST /v1/connections/import", "POST /v1/connections/export", "POST /v1/access-requests"),
    "POST /v1/imports",
    *("PUT /v1/admin-login", "PUT /v1/client-login", "POST /v1/oauth-clients"),
    *("PUT /v1/apps/{name}/permits/{permit_name}", "PUT /v1/apps/{name}/credentials/{credential_name}"),
    *("PUT /v1/issuers/{name}", "POST /v1/erasures", "POST /v1/legal-holds"),
    *("POST /v1/offboardings", "POST /v1/offboardings/plan", "PUT /v1/offboarding-rule"),
}


_FILTERED = {
    *("GET /v1/connections", "GET /v1/connections/totals", "GET /v1/token-families", "GET /v1/erasures"),
    *("GET /v1/keys/rotations", "GET /v1/audit/evidence"),
}


@dataclass(frozen=True)
class Request:
    """One request; `template` is its URL and its body, as text with placeholders."""

    route: str
    method: str
    url: str
    body: str

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_NAME.findall(self.url + self.body)))

    @property
    def is_list(self) -> bool:
        """It names one thing at most in a filter: it answers 200, with nothing of others."""
        return self.method == "GET" and "{" not in self.url.partition("?")[0] and "=" not in self._required

    @property
    def _required(self) -> str:
        return "" if self.route in _FILTERED else self.url.partition("?")[2]

    def sent(self, values: Mapping[str, str]) -> dict[str, Any]:
        """The arguments for a client."""
        url, body = (_NAME.sub(lambda it: values[it[1]], text) for text in (self.url, self.body))
        headers = {"Content-Type": "application/json"} if self.body else {}
        return {"method": self.method, "url": url, "content": body, "headers": headers}

    def mixes(self) -> Iterator[tuple[str, ...]]:
        """Each way to take at least one of the placeholders from another world."""
        for count in range(1, len(self.placeholders) + 1):
            yield from combinations(self.placeholders, count)


def endpoints(app: FastAPI) -> dict[str, Callable[..., Any]]:
    """Each method and path that the application answers, whatever its description leaves out, with the
    function that answers."""
    found: dict[str, Callable[..., Any]] = {}
    pending = list(app.router.routes)
    while pending:
        route = pending.pop()
        pending += getattr(getattr(route, "original_router", None), "routes", ())
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD":
                found[f"{method} {getattr(route, 'path', '')}"] = getattr(route, "endpoint", route)
    return dict(sorted(found.items()))


def routes(app: FastAPI) -> list[str]:
    """Each method and path that the application answers."""
    return list(endpoints(app))


def guarded(app: FastAPI) -> list[str]:
    """The routes that need a credential of the API."""
    return [it for it in routes(app) if not it.split(" ")[1].startswith("/console") and it not in _OPEN]


def console_routes(app: FastAPI) -> list[str]:
    """The routes of the console that need its session."""
    found = [it for it in routes(app) if it.split(" ")[1].startswith("/console")]
    return [it for it in found if it not in PUBLIC | _CONSOLE_LOGIN]


def parameter(path: str, name: str) -> str:
    """What a parameter of a path names in a world."""
    if name == "name":
        return next(named for prefix, named in NAMED.items() if path.startswith(prefix))
    return name.removesuffix("_name")


def requests_to(route: str) -> list[Request]:
    """The requests to a route."""
    method, path = route.split(" ", 1)
    path = _NAME.sub(lambda it: f"{{{parameter(route.split(' ')[1], it[1])}}}", path)
    usual = ({},) if method in ("POST", "PUT") else ("",)
    return [
        Request(route, method, f"{path}?{query}" if query else path, json.dumps(body) if body != "" else "")
        for query in QUERIES.get(route, ("",))
        for body in BODIES.get(route, usual)
    ]
