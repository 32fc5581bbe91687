"""An example of each request, for `/docs`: a curl command that a reader can copy, with made-up names."""

import json
import re
from collections.abc import Mapping
from shlex import quote
from typing import Any

_KEY = "Authorization: Bearer $EVERGRANT_API_KEY"
_NAMES = {
    "integrations": "crm",
    "apps": "report",
    "agents": "support",
    "webhooks": "alerts",
    "streams": "siem",
    "issuers": "github",
    "logos": "x",
}
_VALUES = {
    "permit_name": "crm",
    "credential_name": "laptop",
    "provider": "google",
    "connection": "con_5f0c2n8v3k7qmx1d9rtzab",
    "oauth_client_id": "cli_5f0c2n8v3k7qmx1d9rtzab",
    "connection_id": "con_5f0c2n8v3k7qmx1d9rtzab",
    "app": "report",
    "kind": "tenant",
    "since": "2026-01-01T00:00:00Z",
    "id": "exp_5f0c2n8v3k7qmx1d9rtzab",
}
_PERMIT = {"integration": "crm", "subjects": ["alice"], "actions": ["token", "connect"]}
_PUBLIC_KEY = {"kty": "OKP", "crv": "X25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
_SIGNING_KEY = {**_PUBLIC_KEY, "crv": "Ed25519", "kid": "1", "alg": "EdDSA"}
_CALL = {
    "connection_id": _VALUES["connection"],
    "method": "POST",
    "url": "https://api.example.com/v1/refunds",
    "headers": [{"name": "Content-Type", "value": "application/json"}],
    "body": '{"order": 7}',
}
BODIES: dict[str, Mapping[str, Any]] = {
    "POST /v1/providers": {"definition": {"name": "acme", "display_name": "Acme", "extends": "generic"}},
    "POST /v1/providers/{provider}/approve": {"version": 2, "accept_hosts": True},
    "POST /v1/providers/{provider}/reject": {"version": 2, "reason": "its hosts are not ours"},
    "POST /v1/providers/{provider}/roll-back": {"version": 2, "reason": "refreshes fail"},
    "PUT /v1/integrations/{name}": {
        "provider": "google",
        "client_id": "…",
        "client_secret": "…",
        "default_scopes": ["openid", "email"],
    },
    "POST /v1/keys/rotations": {"kind": "tenant", "purposes": ["lease", "refresh", "intake"]},
    "POST /v1/keys/rotations/pause": {"kind": "tenant"},
    "POST /v1/keys/rotations/resume": {"kind": "tenant"},
    "POST /v1/keys/secrets/retire": {"kind": "app_key", "name": "report"},
    "POST /v1/integrations/{name}/rotate-secret": {"client_secret": "…", "overlap_s": 86400},
    "PUT /v1/integrations/{name}/security-events": {"kind": "set", "issuer": "https://login.example.com"},
    "PUT /v1/apps/{name}": {"return_to": ["https://app.example/evergrant/connected"]},
    "PUT /v1/agents/{name}": {"purpose": "answers support mails", "ends_at": "2026-12-31T00:00:00Z"},
    "POST /v1/agents/{name}/stop": {"reason": "it sends too much", "revoke_connections": True},
    "POST /v1/call-approvals": {**_CALL, "reason": "the customer wants their money back"},
    "POST /v1/call-approvals/use": _CALL,
    "POST /v1/call-approvals/{call_approval_id}/approve": {"note": "once"},
    "POST /v1/call-approvals/{call_approval_id}/deny": {"note": "ask the customer again"},
    "PUT /v1/apps/{name}/permits/{permit_name}": _PERMIT,
    "POST /v1/apps/{name}/keys": {"lifetime": 2592000},
    "PUT /v1/apps/{name}/credentials/{credential_name}": {
        "method": "private_key_jwt",
        "parameters": {"jwks": {"keys": [_SIGNING_KEY]}},
    },
    "PUT /v1/issuers/{name}": {
        "kind": "github_actions",
        "issuer": "https://token.actions.githubusercontent.com",
    },
    "PUT /v1/delegation-rules/{name}": {
        "issuer": "staff",
        "token_type": "id_token",
        "audience": "web-app",
        "clients": {"web-app": "front"},
    },
    "POST /v1/delegations/{delegation_id}/stop": {"reason": "it sends too much", "part": "session"},
    "POST /v1/access-requests": {"permit": _PERMIT, "reason": "the weekly report", "lifetime": 604800},
    "POST /v1/access-requests/{request_id}/approve": {"note": "until the audit is over"},
    "POST /v1/access-requests/{request_id}/deny": {"note": "use the shared report"},
    "POST /v1/access/simulate": {"app": "report", "permits": {"crm": None}},
    "PUT /v1/client-login": {"app": "agents", "integration": "staff"},
    "POST /v1/oauth-clients": {"name": "Coder", "redirect_uris": ["https://coder.example/callback"]},
    "PUT /v1/oauth-clients/{oauth_client_id}": {"disabled": True},
    "POST /v1/token-families/end": {"subject": "alice"},
    "POST /oauth/register": {"client_name": "Coder", "redirect_uris": ["http://127.0.0.1/callback"]},
    "PUT /v1/admin-login": {"integration": "staff", "roles": {"tenant_admin": ["evergrant-admins"]}},
    "POST /login/command": {"code": "…", "verifier": "…"},
    "POST /temporal/decode": {
        "payloads": [{"metadata": {"encoding": "…", "evergrant-workflow": "…"}, "data": "…"}]
    },
    "POST /v1/connections": {
        "integration": "crm",
        "subject": "alice",
        "return_to": "https://app.example/evergrant/connected",
    },
    "POST /v1/connections/{connection_id}/confirm": {"code": "…", "subject": "alice"},
    "POST /v1/connections/{connection_id}/choose": {"choice": "site-1"},
    "POST /v1/connections/{connection_id}/reauthorize": {"scopes": ["openid", "email"]},
    "POST /v1/connections/{connection_id}/refresh": {"generation": 7, "reason": "unauthorized"},
    "POST /v1/connections/{connection_id}/revoke": {"reason": "alice has left"},
    "POST /v1/lease": {"integration": "crm", "subject": "alice", "min_ttl": 60},
    "POST /v1/connections/{connection_id}/token": {"min_ttl": 60},
    "POST /v1/connections/{connection_id}/proof": {"htm": "GET", "htu": "https://api.example.com/v1/me"},
    "POST /v1/connections/{connection_id}/signatures": {
        "method": "GET",
        "url": "https://api.example.com/v1/me",
    },
    "POST /v1/connections/import": {
        "items": [{"integration": "crm", "subject": "alice", "access_token": "…", "expires": "unknown"}],
        "dry_run": True,
    },
    "POST /v1/imports": {
        "items": [{"integration": "crm", "subject": "alice", "access_token": "…", "expires": "unknown"}],
    },
    "POST /v1/connections/bulk": {"action": "refresh", "integration": "crm", "reason": "INC-9"},
    "POST /v1/connections/export": {"public_key": _PUBLIC_KEY, "filters": {"integration": "crm"}},
    "POST /v1/campaigns": {
        "integration": "crm",
        "successor": "crm-2026",
        "confirm": "crm",
        "reason": "OPS-9",
    },
    "POST /v1/campaigns/{campaign_id}/end": {"end": "keep"},
    "POST /v1/erasures": {"subject": "alice", "reason": "INC-9"},
    "POST /v1/offboardings": {"subject": "alice", "reason": "HR-7"},
    "POST /v1/offboardings/plan": {"user": "alice@example.com", "reason": "HR-7"},
    "PUT /v1/offboarding-rule": {"subject_from": "user_name", "sponsor": "platform-team"},
    "POST /v1/incidents": {"kind": "breach", "integration": "crm", "confirm": "crm", "reason": "INC-9"},
    "POST /v1/questions": {"question": "connection_uses", "connection_id": "con_5f0c2n8v3k7qmx1d9rtzab"},
    "POST /v1/legal-holds": {"subject": "alice", "reason": "CASE-7", "until": "2027-01-31T00:00:00Z"},
    "POST /v1/legal-holds/{hold_id}/end": {"reason": "CASE-7 is closed"},
    "PUT /v1/audit/streams/{name}": {
        "url": "https://siem.example/in",
        "format": "ocsf",
        "headers": {"Authorization": "…"},
    },
    "PUT /v1/webhooks/{name}": {"url": "https://app.example/events", "events": ["connection.needs_reauth"]},
    "POST /v1/webhooks/{name}/rotate-secret": {"overlap": 86400},
}
_SHORT = 60  # characters of a body on one line
_FORMS = {
    "POST /oauth/token": "grant_type=client_credentials&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A"
    "client-assertion-type%3Ajwt-bearer&client_assertion=…"
}


def example_of(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """The command for this operation of the OpenAPI document."""
    route = f"{method} {path}"
    collection = path.split("/")[2] if path.count("/") > 1 else ""
    values = {**_VALUES, "name": _NAMES.get(collection, "…")}
    url = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "…"), path)
    needed = [
        parameter["name"]
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query" and parameter["required"]
    ]
    query = "&".join(f"{name}={values.get(name, '…')}" for name in needed)
    words = ["curl"] if method == "GET" else ["curl", "-X", method]
    words.append(f'"$EVERGRANT_URL{url}{"?" if query else ""}{query}"')
    if operation.get("security"):
        words += ["-H", f'"{_KEY}"']
    if route in BODIES:
        body = json.dumps(BODIES[route], ensure_ascii=False)
        if len(body) > _SHORT:
            body = json.dumps(BODIES[route], ensure_ascii=False, indent=2)
        words += ["-H", quote("Content-Type: application/json"), "-d", quote(body)]
    elif (form := _form_of(route, operation)) is not None:
        words += ["-d", quote(form)]
    return " ".join(words).replace(" -H ", " \\\n  -H ").replace(" -d ", " \\\n  -d ")


def _form_of(route: str, operation: Mapping[str, Any]) -> str | None:
    """The form that a browser or an app posts, if the operation takes one."""
    content = operation.get("requestBody", {}).get("content", {})
    form = content.get("application/x-www-form-urlencoded")
    if form is None:
        return None
    return _FORMS.get(route) or "&".join(f"{name}=…" for name in form["schema"]["properties"])
