"""Signs requests of OAuth 1.0a (RFC 5849 section 3), with authlib's arithmetic. Pure but for the nonce."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from urllib.parse import parse_qsl, urlsplit

from authlib.oauth1.rfc5849.parameters import prepare_headers
from authlib.oauth1.rfc5849.signature import (
    construct_base_string,
    hmac_sha1_signature,
    plaintext_signature,
    rsa_sha1_signature,
)
from authlib.oauth1.rfc5849.util import escape
from joserfc.jwk import RSAKey

from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.client_auth import import_signing_key
from providers.definition.schema_request import SignatureMethod
from providers.requests.request_format import OAuthClient

Pairs = Sequence[tuple[str, str]]

_NO_TOKEN = TokenPair(Secret(""), Secret(""))


def oauth1_authorization_header(
    client: OAuthClient,
    signature_method: SignatureMethod,
    method: str,
    url: str,
    *,
    at: datetime,
    pair: TokenPair | None = None,
    form: Pairs = (),
    realm: str | None = None,
    protocol: Iterable[tuple[str, str]] = (),
) -> str:
    """The `Authorization` header of one request (RFC 5849 section 3.5.1).

    `form` is the body, if it is a form; other bodies are not signed. Raises Failure CLIENT_REJECTED
    when the integration lacks the secret or key, INVALID_REQUEST for a URL or form with an `oauth_`
    parameter.
    """
    params = [
        ("oauth_consumer_key", client.client_id),
        ("oauth_nonce", secrets.token_hex(16)),
        ("oauth_signature_method", signature_method.value),
        ("oauth_timestamp", str(int(at.timestamp()))),
        ("oauth_version", "1.0"),
        *protocol,
    ]
    if pair is not None:
        params.append(("oauth_token", pair.token.reveal()))
    params.append(
        ("oauth_signature", oauth1_signature(client, signature_method, method, url, params, form, pair))
    )
    return str(prepare_headers(params, realm=realm)["Authorization"])


def oauth1_signature(
    client: OAuthClient,
    signature_method: SignatureMethod,
    method: str,
    url: str,
    protocol: Pairs,
    form: Pairs = (),
    pair: TokenPair | None = None,
) -> str:
    """RFC 5849 section 3.4. Raises as `oauth1_authorization_header`."""
    unsigned = [*parse_qsl(urlsplit(url).query, keep_blank_values=True), *form]
    if any(name.startswith("oauth_") for name, _ in unsigned):
        detail = "A request to sign may have no oauth_ parameters."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="url")
    # authlib expects protocol parameters escaped, as in a header
    base = construct_base_string(method, url, [*unsigned, *((n, escape(v)) for n, v in protocol)])
    token_secret = (pair or _NO_TOKEN).secret.reveal()
    match signature_method:
        case SignatureMethod.RSA_SHA1:
            return rsa_sha1_signature(base, _rsa_key(client))
        case SignatureMethod.PLAINTEXT:
            return plaintext_signature(_client_secret(client), token_secret)
        case SignatureMethod.HMAC_SHA1:
            return hmac_sha1_signature(base, _client_secret(client), token_secret)
        case SignatureMethod.HMAC_SHA256:
            key = f"{escape(_client_secret(client))}&{escape(token_secret)}"
            return base64.b64encode(hmac.digest(key.encode(), base.encode(), hashlib.sha256)).decode()


def require_signable(method: SignatureMethod) -> None:
    """Raise Failure INVALID_REQUEST for a method whose signature reveals the secrets."""
    if method is SignatureMethod.PLAINTEXT:
        detail = "A PLAINTEXT signature would reveal the secrets of the client and the token."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="connection_id")


def _client_secret(client: OAuthClient) -> str:
    if client.client_secret is None:
        raise Failure(ErrorCode.CLIENT_REJECTED, "the integration has no client secret to sign with")
    return client.client_secret.reveal()


def _rsa_key(client: OAuthClient) -> bytes:
    if client.key is None:
        raise Failure(
            ErrorCode.CLIENT_REJECTED, "the integration has no key to sign with", field="client_key"
        )
    key = import_signing_key(client.key)
    if not isinstance(key, RSAKey):
        raise Failure(ErrorCode.CLIENT_REJECTED, "RSA-SHA1 needs an RSA key", field="client_key")
    return key.as_pem(private=True)
