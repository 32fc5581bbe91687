"""The gateway's own errors as clients of MCP take them: a JSON-RPC error, with the problem document in it."""

import json
from typing import Any

from starlette.responses import Response

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.mcp.message import McpMessage
from evergrant_server.problems import problem_document, problem_response

_INVALID_REQUEST, _INTERNAL = -32600, -32603  # JSON-RPC 2.0 section 5.1
_HEADER_MISMATCH = -32020  # MCP's revision 2026-07-28
_URL_ELICITATION = -32042  # of the revisions before it: the client has a person open a URL
_STATUS = {ErrorCode.SCOPE_NOT_GRANTED: 403}  # as an MCP server says it (RFC 6750 section 3.1)
_OF_HTTP = frozenset({400, 401, 404, 405, 429})  # mean something to the client's transport
_ENDING = frozenset({ErrorCode.APP_DISABLED, ErrorCode.AGENT_ENDED, ErrorCode.TENANT_DISABLED})
_PERSON = "You log in, see what it asks for, and decide."


def refusal(failure: Failure, message: McpMessage | None, base_url: str) -> Response:
    """The answer to a message that wasn't sent. A request that has no `id`, or none that could be read, is
    answered too: its HTTP status says that it failed.

    Clients of the older era end their session at most statuses of failure, so a request that was understood
    gets its error with status 200, unless the caller's time is over.
    """
    response = problem_response(failure, base_url)
    response.status_code = _STATUS.get(failure.code, response.status_code)
    legacy = message is not None and message.id is not None and not message.is_modern
    error = _error(failure, message, problem_document(failure, base_url), legacy=legacy)
    answer = {"jsonrpc": "2.0", "id": None if message is None else message.id, "error": error}
    if legacy and response.status_code not in _OF_HTTP and failure.code not in _ENDING:
        response.status_code = 200
    response.body = json.dumps(answer).encode()
    response.headers["Content-Type"] = "application/json"
    response.headers["Content-Length"] = str(len(response.body))
    return response


def _error(
    failure: Failure, message: McpMessage | None, problem: dict[str, Any], *, legacy: bool
) -> dict[str, Any]:
    code = _INTERNAL if problem["status"] >= 500 else _INVALID_REQUEST
    said, data, url = failure.detail or problem["title"], problem, problem.get("connect_url")
    if message is not None and message.differs:
        code = _HEADER_MISMATCH
    elif url is not None:
        said = f"{problem['title']} Give the person this address: {url}"
        if legacy:
            asked = {"mode": "url", "elicitationId": problem["connection_id"], "url": url}
            code, data = _URL_ELICITATION, {**problem, "elicitations": [{**asked, "message": _PERSON}]}
    return {"code": code, "message": said, "data": data}
