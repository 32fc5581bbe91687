"""Credentials in a request that replace a consent: static credentials and subject tokens."""

import base64
import re

from evergrant_server.api.connections.models import (
    ConnectionBody,
    CredentialBody,
)
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec

_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,65536}")  # fits into a header


def check_credentials(flow: Flow, body: ConnectionBody) -> None:
    """Raise Failure INVALID_REQUEST if the flow lacks a credential or can't use a given one."""
    if (body.credential is not None) is not flow.is_static:
        raise _invalid("credential", "The flows api_key and basic need it; no other flow takes it.")
    if body.credential is not None:
        credential_token(flow, body.credential)
    given = (body.source is not None) + (body.subject_token is not None)
    if given != (1 if flow is Flow.TOKEN_EXCHANGE else 0):
        raise _invalid(
            "source", "token_exchange needs a source or a subject_token; no other flow takes them."
        )
    if body.subject_token is not None and not _HEADER_VALUE.fullmatch(body.subject_token.reveal()):
        raise _invalid("subject_token", "It has characters that a token can't have.")
    if body.subject_token_type is not None and body.subject_token is None:
        raise _invalid("subject_token_type", "It needs a subject_token.")


def static_grant(spec: ProviderSpec, flow: Flow, credential: CredentialBody) -> ImportedTokens:
    """The credential as a grant without expiry and refresh token."""
    scheme = "Basic" if flow is Flow.BASIC else (spec.api_request.auth_scheme if spec.api_request else "")
    return ImportedTokens(
        access_token=credential_token(flow, credential), token_type=scheme or "ApiKey", expires_at=None
    )


def credential_token(flow: Flow, credential: CredentialBody) -> Secret:
    """The API key, or the encoded user-pass (RFC 7617 section 2). Raises Failure INVALID_REQUEST."""
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


def supplied_tokens(spec: ProviderSpec, flow: Flow, body: ConnectionBody) -> ImportedTokens | None:
    check_credentials(flow, body)
    if body.credential is not None:
        return static_grant(spec, flow, body.credential)
    if body.subject_token is not None:
        return ImportedTokens(access_token=body.subject_token, expires_at=None)
    return None
