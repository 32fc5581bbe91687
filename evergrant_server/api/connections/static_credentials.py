"""What somebody brings instead of a consent: a static credential, or a token to be exchanged."""

import base64
import re

from evergrant_server.api.http.requests import ConnectionBody, CredentialBody
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.imported_tokens import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec

_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,65536}")  # it must fit into a header


def check_credentials(flow: Flow, body: ConnectionBody) -> None:
    """Raise Failure INVALID_REQUEST for what a flow needs and doesn't get, or can't use."""
    if (body.credential is not None) is not flow.is_static:
        raise _invalid("credential", "It goes with the flows api_key and basic, which need it.")
    if body.credential is not None:
        credential_token(flow, body.credential)
    given = (body.source is not None) + (body.subject_token is not None)
    if given != (1 if flow is Flow.TOKEN_EXCHANGE else 0):
        raise _invalid("source", "token_exchange needs a source or a subject_token, and nothing else does.")
    if body.subject_token is not None and not _HEADER_VALUE.fullmatch(body.subject_token.reveal()):
        raise _invalid("subject_token", "It has characters that no token has.")
    if body.subject_token_type is not None and body.subject_token is None:
        raise _invalid("subject_token_type", "It goes with a subject_token.")


def static_grant(spec: ProviderSpec, flow: Flow, credential: CredentialBody) -> ImportedTokens:
    """The credential as a grant: it never expires, and there is nothing to refresh it with."""
    scheme = "Basic" if flow is Flow.BASIC else (spec.api_request.auth_scheme if spec.api_request else "")
    return ImportedTokens(
        access_token=credential_token(flow, credential), token_type=scheme or "ApiKey", expires_at=None
    )


def credential_token(flow: Flow, credential: CredentialBody) -> Secret:
    """The key, or what goes behind `Basic` (RFC 7617 section 2). Raises Failure INVALID_REQUEST."""
    names = (credential.username is not None, credential.password is not None)
    if flow is Flow.BASIC:
        if names != (True, True) or credential.api_key is not None or ":" in (credential.username or ""):
            raise _invalid("credential", "basic needs a user name without a colon, and a password.")
        assert credential.password is not None
        pair = f"{credential.username}:{credential.password.reveal()}"
        return Secret(base64.b64encode(pair.encode()).decode("ascii"))
    if credential.api_key is None or any(names) or not _HEADER_VALUE.fullmatch(credential.api_key.reveal()):
        raise _invalid("credential", "api_key needs a key of printable characters, without spaces.")
    return credential.api_key


def _invalid(field: str, why: str) -> Failure:
    return Failure(ErrorCode.INVALID_REQUEST, why, field=field)
