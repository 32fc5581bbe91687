"""One HTTP attempt: what httpx2 is given for a call or a token request, and what its exceptions mean."""

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import httpx2

from evergrant.api.call import Call, Result
from evergrant.errors import BadRequest, EvergrantError, ProtocolError, ReconnectNeeded, Unreachable
from evergrant.identity.access_tokens import ACCESS_TOKEN, GRANT, TOKEN_PATH
from evergrant.origins import ServerAddress
from evergrant.retries import ATTEMPT_LIMIT_S, CONNECT_LIMIT_S, Deadline

_START = "Start Evergrant there (make dev), or correct EVERGRANT_URL."
_KEY = (
    "The API key is unknown to this server, or has expired or been revoked: check EVERGRANT_API_KEY, "
    "EVERGRANT_API_KEY_FILE or --api-key-file. After evergrant login, log in again."
)
_CONFIRM = (
    "Check the code: it counts once, for a short time, for this connection and subject, and with the key of "
    "the app that began the consent. Otherwise connect again, which makes a new one."
)
_OTHER_PORT = "Correct EVERGRANT_URL: another program has this port (beside make dev: http://127.0.0.1:8480)."
_KINDS = {
    "apps": "app",
    "integrations": "integration",
    "connections": "connection",
    "permits": "permit",
    "keys": "key",
    "credentials": "credential",
    "webhooks": "webhook",
    "issuers": "issuer",
}
_TRUST = "Name its authority's certificates in SSL_CERT_FILE, or correct EVERGRANT_URL."


def call_arguments(
    call: Call[Result], server: ServerAddress, credential: str, deadline: Deadline
) -> dict[str, Any]:
    """The arguments of one attempt. Its timeout is what is left of the deadline."""
    if call.form is not None:
        return _exchange_arguments(call.form, server, credential, deadline)
    headers = {"authorization": f"Bearer {credential}", "accept": call.accept}
    if (wait := int(deadline.patience_s())) > 0:  # an answer that comes after the deadline is none
        headers["prefer"] = f"wait={wait}"
    if call.body is not None:
        headers["content-type"] = "application/json"
    if call.idempotency_key is not None:
        headers["idempotency-key"] = call.idempotency_key
    return dict(
        method=call.method,
        url=server.url + call.path,
        params=dict(call.query) if call.query else None,
        content=None if call.body is None else json.dumps(call.body).encode(),
        headers=headers,
        timeout=_timeout(deadline),
    )


def token_arguments(server: ServerAddress, proof: Mapping[str, str], deadline: Deadline) -> dict[str, Any]:
    """The arguments of a token request; the proof is new for each, since it may count once."""
    headers = {"accept": "application/json"}
    url, form = server.url + TOKEN_PATH, {**GRANT, **proof}
    return dict(method="POST", url=url, data=form, headers=headers, timeout=_timeout(deadline))


def _exchange_arguments(
    form: Mapping[str, str | list[str]], server: ServerAddress, credential: str, deadline: Deadline
) -> dict[str, Any]:
    """The arguments of a token exchange, whose actor is the app (RFC 8693 section 2.1)."""
    base = server.issuer or server.url
    resources = [
        f"{base}{resource}" if resource.startswith("/") else resource for resource in form["resource"]
    ]
    actor = {"actor_token": credential, "actor_token_type": ACCESS_TOKEN}
    data = {**form, **actor, "resource": resources}
    headers = {"accept": "application/json"}
    return dict(
        method="POST", url=server.url + TOKEN_PATH, data=data, headers=headers, timeout=_timeout(deadline)
    )


def _timeout(deadline: Deadline) -> httpx2.Timeout:
    left = deadline.seconds_left()
    return httpx2.Timeout(min(ATTEMPT_LIMIT_S, left), connect=min(CONNECT_LIMIT_S, left))


def transport_error(error: httpx2.RequestError, url: str) -> EvergrantError:
    """The error that a failed attempt at Evergrant's `url` stands for.

    Names the exception's class and not its message, which may quote received data.
    """
    for cause in _causes(error):
        match cause:
            case ConnectionRefusedError():
                return Unreachable(f"nothing listens at {url}", repair=_START)
            case socket.gaierror():
                return Unreachable(f"the host of {url} has no address", repair="Correct EVERGRANT_URL.")
            case ssl.SSLCertVerificationError():
                why = f"the certificate of {url} is not trusted: {cause.verify_message or cause.reason}"
                return Unreachable(why, code="certificate_untrusted", repair=_TRUST)
            case ssl.SSLError():
                why = f"{url} doesn't answer in TLS"
                return Unreachable(why, code="tls_failed", repair="Correct EVERGRANT_URL: is it http://?")
            case _:
                pass
    if isinstance(error, httpx2.RemoteProtocolError) and "disconnected" not in str(error):
        return Unreachable(f"{url} doesn't answer in HTTP", code="not_http", repair=_OTHER_PORT)
    if isinstance(error, httpx2.TransportError):
        late = {"timed_out": isinstance(error, httpx2.TimeoutException)}
        return Unreachable(f"no answer from {url} ({type(error).__name__})", context=late)
    return ProtocolError(f"the answer of {url} can't be read ({type(error).__name__})")


def require_open(http: httpx2.Client | httpx2.AsyncClient) -> None:
    """Raises BadRequest for a client that its program has closed."""
    if http.is_closed:
        repair = "Make one client for the whole program, and close it last."
        raise BadRequest("this client is closed", code="client_closed", repair=repair)


def require_same_loop(before: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """The running event loop. Raises BadRequest if the client's connections belong to another one."""
    running = asyncio.get_running_loop()
    if before is not None and before is not running:
        repair = "Make an AsyncEvergrant in each asyncio.run, or use Evergrant."
        raise BadRequest("this client belongs to another event loop", code="client_elsewhere", repair=repair)
    return running


def explained(error: EvergrantError, call: Call[Result], server: ServerAddress) -> EvergrantError:
    """The error, with what was asked for where the server says only that it isn't there."""
    if error.code == "not_found":
        names = _asked_for(call)
        asked = ", ".join(f"{kind} {name}" for kind, name in names.items())
        error.detail = f"{error.detail.rstrip('.')}: {asked or unquote(call.path.removeprefix('/v1/'))}"
        error.context = {**names, **error.context}
        if path := httpx2.URL(server.url).path.strip("/"):
            error.repair = f"Leave out /{path} in EVERGRANT_URL."
        elif not names.get("connection", "con_").startswith("con_"):
            error.repair = "A connection's id begins with con_: evergrant connections ls shows it."
    if error.code == "not_found" and call.path.endswith("/confirm"):
        error.repair = _CONFIRM
    if error.code == "scope_not_permitted" and isinstance(scopes := error.context.get("scopes"), str):
        error.detail = f"{error.detail.rstrip('.')}: {scopes}"
    connection_id = _asked_for(call).get("connection")
    if isinstance(error, ReconnectNeeded) and error.connect_url is None and connection_id:
        command = f"evergrant connections reauthorize {connection_id}"
        error.repair = f"Get a new link for the subject: {command}, with the key of an app that may connect."
    if error.code == "unauthenticated" and server.identity is None:
        error.repair = _KEY
    return error


def _asked_for(call: Call[Result]) -> dict[str, str]:
    """What a call needs to be there, by kind: from its body, or else from its path."""
    body = call.body or {}
    if call.method == "POST" and "integration" in body:
        return {kind: str(body[kind]) for kind in ("integration", "subject") if kind in body}
    parts = [unquote(part) for part in call.path.removeprefix("/v1/").split("/")]
    pairs = list(zip(parts[::2], parts[1::2], strict=False))
    needed = pairs[:-1] if call.method == "PUT" else pairs  # PUT makes the last one
    return {_KINDS[plural]: name for plural, name in needed if plural in _KINDS}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions behind one, from the outermost on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
