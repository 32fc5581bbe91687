"""What both clients put on the wire, and what they make of a transport that fails."""

import json
from typing import TypedDict

import httpx2

from evergrant.calls import Answer, Call
from evergrant.errors import EvergrantError, ProtocolError, Unreachable
from evergrant.patience import ATTEMPT_LIMIT_S, CONNECT_LIMIT_S, RetryBudget
from evergrant.replies import Response, check_version
from evergrant.target import ServerAddress


class RequestArguments(TypedDict):
    """Arguments of one `request` of httpx2."""

    method: str
    url: str
    params: dict[str, str] | None
    content: bytes | None
    headers: dict[str, str]
    timeout: httpx2.Timeout


def request_arguments(call: Call[Answer], target: ServerAddress, patience: RetryBudget) -> RequestArguments:
    """The arguments of one attempt. Its time is what is left of the whole call's."""
    headers = {"authorization": f"Bearer {target.api_key}", "accept": "application/json"}
    if call.body is not None:
        headers["content-type"] = "application/json"
    if call.idempotency_key is not None:
        headers["idempotency-key"] = call.idempotency_key
    left = patience.seconds_left()
    return RequestArguments(
        method=call.method,
        url=target.url + call.path,
        params=dict(call.query) if call.query else None,
        content=None if call.body is None else json.dumps(call.body).encode(),
        headers=headers,
        timeout=httpx2.Timeout(min(ATTEMPT_LIMIT_S, left), connect=min(CONNECT_LIMIT_S, left)),
    )


def read_response(response: httpx2.Response) -> Response:
    """The answer as the judge takes it. Raises ProtocolError for a server of another major version."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    reply = Response(response.status_code, headers, response.content)
    check_version(reply)
    return reply


def transport_error(error: httpx2.RequestError) -> EvergrantError:
    """Names the kind of trouble, not httpx2's message: that may quote what was received."""
    if isinstance(error, httpx2.TransportError):
        return Unreachable(f"no answer ({type(error).__name__})")
    return ProtocolError(f"the answer can't be read ({type(error).__name__})")
