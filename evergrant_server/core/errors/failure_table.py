"""Each code's failure sorted by who repairs it: `FAILURES` has its HTTP status, retry advice and repair.

`core.lifecycle.schedule.retry_at` computes the delays; it tries the platform's own failures sooner.
"""

from evergrant_server.core.errors import kinds
from evergrant_server.core.errors.codes import ErrorCode
from evergrant_server.core.errors.kinds import FailureKind, FailureRule, Repairer, RetryAdvice

_reconnect, _client, _provider, _denied = kinds.reconnect, kinds.client, kinds.provider, kinds.denied
_refused, _caller = kinds.refused, kinds.caller
_identity = kinds.rules_of(FailureKind.DENIED, Repairer.SUBJECT, RetryAdvice.BACKOFF, 403)
_REAUTHORIZE = "Reauthorize the connection: evergrant connections reauthorize."
_BEGIN_ANEW = "Begin anew: evergrant connect, or POST /v1/connections."

FAILURES: dict[ErrorCode, FailureRule] = {
    ErrorCode.CONSENT_REQUIRED: _reconnect(
        "The subject has not consented, or must consent again.", "Send the subject to connect_url."
    ),
    ErrorCode.CONSENT_DENIED: _reconnect(
        "The subject, or the provider, denied the consent.",
        "Once they agree, connect again: evergrant connect, or POST /v1/connections.",
    ),
    ErrorCode.CONSENT_EXPIRED: _reconnect("The consent was not finished before its deadline.", _BEGIN_ANEW),
    ErrorCode.GRANT_REJECTED: _reconnect("The provider no longer accepts this grant.", _REAUTHORIZE),
    ErrorCode.OUTCOME_UNKNOWN: _reconnect(
        "A refresh was sent, its answer was lost and the old token is spent.", _REAUTHORIZE
    ),
    ErrorCode.REFRESH_REFUSED: _reconnect(
        "The provider refuses to refresh this grant without saying why; such refreshes worked.", _REAUTHORIZE
    ),
    ErrorCode.REFRESH_KEEPS_FAILING: _reconnect(
        "The provider keeps answering this grant alone with an error that it doesn't explain.", _REAUTHORIZE
    ),
    ErrorCode.GRANT_PROBABLY_OVER: _reconnect(
        "The provider refuses this grant as it refuses a token that doesn't exist: it is probably over.",
        "Reauthorize the connection. A day later it is tried once more by itself.",
    ),
    ErrorCode.GRANT_REVOKED_ELSEWHERE: _reconnect(
        "The provider reports that this grant was ended on its side.",
        "Reauthorize the connection; or revoke it, if the subject doesn't want it any more.",
    ),
    ErrorCode.RECONSENT_REQUIRED: _reconnect(
        "The integration has another OAuth client: a campaign asks the subject to consent to it.",
        "Send the subject to a new connect link, which the app makes: POST /v1/connections.",
    ),
    ErrorCode.CONNECTION_REVOKED: _reconnect("The connection was revoked; revocation is final.", _BEGIN_ANEW),
    ErrorCode.SCOPE_NOT_GRANTED: _reconnect(
        "The subject has not granted a requested scope.",
        "Send the subject to connect_url; without one, reauthorize the connection with that scope.",
    ),
    ErrorCode.TOKEN_REFUSED: _reconnect(
        "The provider's API refuses the connection's token, a renewed one as well.",
        "Check what its account may do there; reauthorize the connection if its grant was ended.",
    ),
    ErrorCode.CALLBACK_INVALID: _reconnect(
        "The provider's callback doesn't belong to an open consent in this browser.",
        "Connect again in the app, which gives a new link, and finish in one browser.",
        status=400,
    ),
    ErrorCode.CHOICE_REQUIRED: _reconnect(
        "The grant reaches several accounts, and the connection's account is still to be chosen.",
        "Choose one of the connection's choices: the subject on the connect page, or an app by "
        "evergrant connections choose.",
    ),
    ErrorCode.ID_TOKEN_REFUSED: _reconnect(
        "An id token is not for this consent: its issuer, audience or nonce is missing or wrong. That of a "
        "login may also be expired, or not signed by its issuer.",
        "Open the connect link again. Where the provider never repeats the nonce, its definition has to say "
        "id_token_nonce: false.",
    ),
    ErrorCode.CONFIRM_REQUIRED: _reconnect(
        "The consent has come back from the provider, and its app has not confirmed the subject yet.",
        "Finish in the app where you began. If the app doesn't confirm in time, open the connect link again.",
    ),
    ErrorCode.CONFIRM_EXPIRED: _reconnect(
        "The app did not confirm the subject in time, and nothing was exchanged.",
        "Open the connect link again: it works until it expires.",
    ),
    ErrorCode.SUBJECT_MISMATCH: _reconnect(
        "The person who consented is not the one for whom the connection was requested; nothing was stored.",
        "Start again in the app, logged in as the subject, with a new link.",
    ),
    ErrorCode.ACCOUNT_MISMATCH: _reconnect(
        "The consent came from another account than the connection's or the expected; the old grant stays.",
        "Ask for a new link, and choose the account that was meant.",
    ),
    ErrorCode.MADE_BY_ANOTHER_APP: _refused(
        "Another app made this connection, and an app has only its own authorized again.",
        "Connect again in that app, or have an admin reauthorize it. Another label is this app's own.",
    ),
    ErrorCode.CLIENT_REJECTED: _client(
        "The provider refused our client id, secret, redirect URI or request.",
        "Correct the integration's client id and secret, or its registration at the provider.",
    ),
    ErrorCode.REPLY_UNREADABLE: _client(
        "The provider answered, but not in a form its definition describes.",
        "Check the provider's definition; the old grant was kept.",
    ),
    ErrorCode.DISCOVERY_FAILED: _client(
        "The issuer's metadata could not be read, or names another issuer.",
        "Check the issuer URL, exactly as the provider prints it.",
    ),
    ErrorCode.EGRESS_REFUSED: _client(
        "A provider URL points where Evergrant may not connect.",
        "Use a public https URL, or start the workers with EVERGRANT_EGRESS_ALLOW=HOST:PORT; then refresh.",
    ),
    ErrorCode.HOST_NOT_ACCEPTED: kinds.host(
        "The provider's definition or metadata names a host at which no grant of the integration was made: "
        "neither a token nor a client credential is sent there.",
        "On a worker's host, see: python -m evergrant_server authority hosts. If the provider has moved: "
        "python -m evergrant_server authority accept-hosts INTEGRATION --host HOST.",
    ),
    ErrorCode.API_UNKNOWN: _client(
        "The provider's definition names no API for this connection, so no request is proxied there.",
        "Lease the token; or name the API: of a server of your own with evergrant integrations put "
        "--api-base-url, of a provider by a definition with api_base_url.",
    ),
    ErrorCode.PROVIDER_UNREACHABLE: _provider("The provider did not answer in time, or at all.", kinds.LATER),
    ErrorCode.PROVIDER_ERROR: _provider("The provider answered with an error of its own.", kinds.LATER),
    ErrorCode.PROVIDER_RATE_LIMITED: _provider("The provider asks us to slow down.", kinds.LATER),
    ErrorCode.REFRESH_PENDING: _provider("A refresh is under way and has not ended yet.", kinds.LATER),
    ErrorCode.WORKER_BUSY: _provider(
        "Other calls of the same tenant or integration take its share of a worker.", kinds.LATER
    ),
    ErrorCode.TOKEN_RENEWED: _provider(
        "The provider's API refused the token, which has been renewed; the request's body was not kept.",
        "Send the request again.",
    ),
    ErrorCode.API_LIMIT_REACHED: _provider(
        "The provider's API takes no more calls of this app for now.", kinds.LATER, status=429
    ),
    ErrorCode.NOT_PERMITTED: _denied(
        "No permit of this app covers that, or one denies it.",
        "Give the app a permit for this integration and subject, or change the one that the answer names.",
    ),
    ErrorCode.APP_DISABLED: _denied("The app is disabled.", "Run: evergrant apps put APP --no-disabled."),
    ErrorCode.CONNECTION_HELD: _denied(
        "The connection's subject leaves: it is stopped, and is revoked once the grace is over.",
        "Was it a mistake: evergrant offboard ls, and evergrant offboard undo before the grace is over.",
    ),
    ErrorCode.AGENT_ENDED: _denied(
        "The agent's time is over, or its sponsor is disabled.",
        "Give the agent a later end or another sponsor: evergrant agents put.",
    ),
    ErrorCode.DELEGATION_ENDED: _denied(
        "The delegation has ended, or one above it has.",
        "Have the person's app exchange a new token of the person: POST /oauth/token.",
    ),
    ErrorCode.TENANT_DISABLED: kinds.closed(
        "The operator has disabled the tenant. Its connections are kept.", "Ask the operator."
    ),
    ErrorCode.APPROVAL_REQUIRED: _denied(
        "A second admin must approve this command first (EVERGRANT_FOUR_EYES).",
        "Have another admin read it (evergrant approvals ls) and approve it: evergrant approvals give "
        "{approval_id}. Then send it again.",
    ),
    ErrorCode.APPROVAL_OUTDATED: _caller(
        "The approval no longer fits: what the command names has changed since.",
        "Have another admin compare what it resolves to now and approve it anew: evergrant approvals ls, "
        "evergrant approvals give {approval_id}; then send the request again.",
        status=409,
    ),
    ErrorCode.CALL_APPROVAL_REQUIRED: _denied(
        "A person must approve exactly this call first; an approval is used once, within a day.",
        "Ask for it: evergrant approvals ask, or POST /v1/call-approvals. An admin decides, in the console "
        "or by evergrant approvals approve.",
    ),
    ErrorCode.SCOPE_NOT_PERMITTED: _denied(
        "A scope is above the ceiling of the permit or the integration, or a permit denies it.",
        "Ask for fewer scopes, raise the ceiling, or change the permit that the answer names.",
    ),
    ErrorCode.SOURCE_NOT_PERMITTED: _denied(
        "The app on whose behalf another connection's token is exchanged for this one's may no longer "
        "lease that other one.",
        "Give that app a permit to lease the source, with all of its scopes; or have an app that has one "
        "reauthorize the connection.",
        retry=RetryAdvice.AFTER_REPAIR,
    ),
    ErrorCode.IDENTITY_NEEDED: _identity(
        "The subject has no connection at the integration's identity provider whose id token is still good, "
        "so no access is granted on their behalf (ID-JAG).",
        "Connect the subject at the integration that identity_provider of this one names, with openid; then "
        "send the request again.",
    ),
    ErrorCode.ID_JAG_REFUSED: _client(
        "The identity provider, or the issuer, refuses this subject, client, resource or scope (ID-JAG).",
        "Have the identity provider's admin allow this client and resource; see what the provider says.",
    ),
    ErrorCode.SCOPE_NOT_NARROWED: _refused(
        "There is no token with exactly the requested scopes: down_scoping says whether the provider issues "
        "narrower ones, scopes what the connection's token can do.",
        "Request all of the token's scopes, or not exactly these; or consent to these alone in a connection "
        "of their own.",
    ),
    **{ErrorCode(code): rule for code, rule in kinds.PLATFORM_FAILURES.items()},
    ErrorCode.INVALID_REQUEST: _caller("The request is malformed.", "Correct the named field."),
    ErrorCode.UNAUTHENTICATED: _caller(
        "No valid credential came with the request.",
        "Send Authorization: Bearer with an API key, or an access token of POST /oauth/token. A database "
        "that was made anew knows no key of before: python -m evergrant_server doctor says so.",
        status=401,
    ),
    ErrorCode.CERTIFICATE_REQUIRED: _caller(
        "The access token is bound to a client certificate, and the request came without it.",
        "Send the request with that certificate to the mtls_endpoint_aliases of "
        "/.well-known/oauth-authorization-server.",
        status=401,
    ),
    ErrorCode.NOT_FOUND: _caller(
        "There is no such thing, or not for this app.", "Check the name and the permit.", status=404
    ),
    ErrorCode.METHOD_NOT_ALLOWED: _caller("This route has no such method.", "See /docs.", status=405),
    ErrorCode.PROVIDER_UNKNOWN: _caller(
        "No provider in the catalogue has this name.", "List them: evergrant providers ls.", status=404
    ),
    ErrorCode.ALREADY_EXISTS: _caller(
        "Something with this name is there already.",
        "Use another name, or first remove or revoke what is there.",
        status=409,
    ),
    ErrorCode.INTEGRATION_IN_USE: _caller(
        "Connections of the integration have not ended.", "Revoke them, and delete it then.", status=409
    ),
    ErrorCode.UNDER_LEGAL_HOLD: _caller(
        "A legal hold forbids to erase this.",
        "Read why with evergrant holds ls. Once it may go: evergrant holds end HOLD --reason …, then again.",
        status=409,
    ),
    ErrorCode.IDEMPOTENCY_CONFLICT: _caller(
        "This Idempotency-Key was used with another request.", "Use a new key.", status=409
    ),
    ErrorCode.BODY_TOO_LARGE: _caller("The request body is too large.", "Send less than 1 MiB.", status=413),
    ErrorCode.SIGNATURE_NEEDED: _caller(
        "Each request with this connection's token is signed, so there is no token to lease.",
        "Have requests signed: evergrant connections sign, or POST /v1/connections/{id}/signatures.",
        status=409,
    ),
    ErrorCode.BINDING_REQUIRED: _caller(
        "This consent can't be bound to its subject as the integration demands.",
        "Use another flow or binding; EVERGRANT_ALLOW_UNBOUND_CONSENT allows the binding none.",
    ),
    ErrorCode.STEP_UP_REQUIRED: _refused(
        "A person has to log in again, moments before a command like this one.",
        "Open login_url, or run evergrant login --again, and send the request again within five minutes.",
    ),
    ErrorCode.CLIENT_UNKNOWN: _caller(
        "The program that sent the browser is no client of Evergrant, or names another's redirect URI.",
        "Remove Evergrant's server from the program and add it again. Admins see: evergrant clients ls.",
    ),
    ErrorCode.CLIENTS_OFF: _denied(
        "This tenant lets no such OAuth client act for its people.",
        "An admin says as which app clients act, and which kinds: evergrant clients login.",
    ),
    ErrorCode.CROSS_SITE_REQUEST: _refused(
        "A browser sent a change with a session's cookie, and no Origin of Evergrant's own.",
        "Send it from a page of this origin, or with a bearer token.",
    ),
}
