"""ID-JAG: an identity provider grants a client access at an issuer that trusts it, on a subject's behalf.

draft-ietf-oauth-identity-assertion-authz-grant, and MCP's extension
`io.modelcontextprotocol/enterprise-managed-authorization`. The subject's id token is exchanged at the
identity provider for a signed grant, the ID-JAG (section 4.3), which the issuer takes as a JWT bearer
assertion (section 4.4). Neither leg spends a credential: the id token stays good, and each ID-JAG is made for
one request. Pure.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import with_code
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.requests.client_grants import JWT_BEARER, TOKEN_EXCHANGE
from providers.requests.request_format import (
    ProviderAccess,
    ProviderRequest,
    token_request,
)
from providers.responses.error_mapping import (
    error_name,
    raise_for_failure,
    reply_fields,
    unreadable_reply,
)
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens

ID_JAG_PROFILE = "urn:ietf:params:oauth:grant-profile:id-jag"  # section 7.2
ID_JAG = "urn:ietf:params:oauth:token-type:id-jag"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LONGEST_JAG = 65_536
# OpenID Connect Core 1.0 section 3.1.2.6, RFC 9470 section 3: the subject has to log in again
_LOGIN_ERRORS = frozenset(
    {"insufficient_user_authentication", "login_required", "interaction_required", "consent_required"}
)
_POLICY_ERRORS = frozenset(
    {"access_denied", "invalid_grant", "invalid_request", "invalid_scope", "invalid_target"}
)


def id_jag_request(
    identity_provider: ProviderAccess,
    id_token: Secret,
    *,
    audience: str,
    resources: Sequence[str],
    scopes: Sequence[str],
) -> ProviderRequest:
    """Exchange the subject's id token for a grant to `audience`, the issuer of the resources' tokens."""
    fields = {
        "requested_token_type": ID_JAG,
        "audience": audience,
        "subject_token": id_token.reveal(),
        "subject_token_type": ID_TOKEN,
    }
    if scopes:
        fields["scope"] = " ".join(scopes)
    return token_request(identity_provider, TOKEN_EXCHANGE, fields).with_resources(resources)


def read_id_jag(spec: ProviderSpec, reply: RawReply, now: datetime) -> Secret:
    """The grant of an identity provider's reply (section 4.3.3).

    Raises Failure IDENTITY_NEEDED when the subject has to log in there again, ID_JAG_REFUSED for a refusal by
    its policy, REPLY_UNREADABLE for a token of another type, which must not reach the issuer, and as
    `read_tokens`.
    """
    try:
        raise_for_failure(spec, reply, spec.success_statuses, now)
    except Failure as failure:
        raise _meaning(failure, error_name(spec, reply)) from None
    fields = reply_fields(spec, reply)
    if fields.get("issued_token_type") != ID_JAG:
        raise unreadable_reply(spec, reply, "an issued_token_type that is no ID-JAG")
    token = fields.get("access_token")
    if not isinstance(token, str) or len(token) > _LONGEST_JAG or not _JWT.fullmatch(token):
        raise unreadable_reply(spec, reply, "an ID-JAG that is no signed JWT")
    return Secret(token)


def id_jag_token_request(
    provider: ProviderAccess, id_jag: Secret, resources: Sequence[str]
) -> ProviderRequest:
    """Exchange the grant for an access token. Its scopes are those of the grant."""
    return token_request(provider, JWT_BEARER, {"assertion": id_jag.reveal()}).with_resources(resources)


def read_id_jag_tokens(
    spec: ProviderSpec, reply: RawReply, *, requested_scopes: Sequence[str], now: datetime
) -> TokenSet:
    """The issuer's tokens. Raises as `read_tokens`, with ID_JAG_REFUSED for a grant that it doesn't take: no
    consent of the subject changes that."""
    try:
        return read_tokens(spec, reply, requested_scopes=requested_scopes, refreshing=False, now=now)
    except Failure as failure:
        raise _meaning(failure, error_name(spec, reply)) from None


def _meaning(failure: Failure, error: str | None) -> Failure:
    if error in _LOGIN_ERRORS:
        return with_code(failure, ErrorCode.IDENTITY_NEEDED)
    if error in _POLICY_ERRORS or failure.code is ErrorCode.GRANT_REJECTED:
        return with_code(failure, ErrorCode.ID_JAG_REFUSED)
    return failure
