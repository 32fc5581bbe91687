"""Forms of the console about who may do what, with placeholders for things of a world."""

_A_RULE = {"issuer": "{trusted_issuer}", "token_type": "id_token", "audience": "a", "actors": "{app}"}
_A_CLIENT = {"name": "new", "redirect_uris": "https://new.example/cb"}
_THUMBPRINT = {"method": "self_signed_tls_client_auth", "parameters.thumbprint": "a" * 64}
_AN_AGENT = {"purpose": "a test", "ends_at": "2026-03-01T00:00"}
_A_STREAM = {"url": "https://siem.example.com/in", "headers": "DD-API-KEY: s"}
RIGHTS = {
    "POST /console/new/agent": {"name": "new", **_AN_AGENT},
    "POST /console/agents/{name}/edit": _AN_AGENT,
    "POST /console/new/stream": {"name": "new", **_A_STREAM},
    "POST /console/streams/{name}/edit": _A_STREAM,
    "POST /console/streams/{name}/rotate-secret": {"once": "once-of-this-very-form"},
    "POST /console/streams/{name}/delete": {"confirm": "{audit_stream}"},
    "POST /console/new/app": {"name": "new"},
    "POST /console/apps/{name}/edit": {},
    "POST /console/apps/{name}/disable": {},
    "POST /console/apps/{name}/enable": {},
    "POST /console/apps/{name}/delete": {"confirm": "{app}"},
    "POST /console/apps/{name}/new/credential": {"name": "new", **_THUMBPRINT},
    "POST /console/apps/{name}/credentials/{credential_name}/remove": {"confirm": "{credential}"},
    "POST /console/apps/{name}/new/permit": {
        **{"name": "new", "integration": "{integration}", "actions": "connect", "subjects": "*"}
    },
    "POST /console/apps/{name}/permits/{permit_name}": {
        **{"integration": "{integration}", "actions": "connect", "subjects": "*"}
    },
    "POST /console/apps/{name}/permits/{permit_name}/remove": {"confirm": "{permit}"},
    "POST /console/new/rule": {"name": "new", **_A_RULE},
    "POST /console/rules/{name}": _A_RULE,
    "POST /console/rules/{name}/delete": {"confirm": "{delegation_rule}"},
    "POST /console/new/issuer": {"name": "new", "kind": "oidc", "issuer": "https://new.example"},
    "POST /console/issuers/{name}/read": {},
    "POST /console/issuers/{name}/delete": {"confirm": "{trusted_issuer}"},
    "POST /console/new/client": _A_CLIENT,
    "POST /console/clients/{oauth_client_id}/edit": _A_CLIENT,
    "POST /console/clients/{oauth_client_id}/switch": {"disabled": "yes"},
    "POST /console/clients/{oauth_client_id}/delete": {"confirm": "{oauth_client_id}"},
    "POST /console/authorizations/{family_id}/end": {},
    "POST /console/people/{session_id}/end": {},
    "POST /console/people-login": {"integration": "{issuer}", "roles.auditor": "board"},
    "POST /console/client-login": {"app": "{app}", "integration": "{issuer}"},
    "POST /console/client-login/delete": {"confirm": "{app}"},
    "POST /console/people-login/delete": {"confirm": "{issuer}"},
}
