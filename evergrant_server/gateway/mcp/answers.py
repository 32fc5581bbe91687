"""The gateway's own errors as clients of MCP take them: a JSON-RPC error, with the problem document in it."""

import json

from starlette.responses import Response

from evergrant_server.api.http.problems import problem_document, problem_response
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.mcp.message import McpMessage

_INVALID_REQUEST, _INTERNAL = -32600, -32603  # JSON-RPC 2.0 section 5.1
_HEADER_MISMATCH = -32020  # MCP's revision 2026-07-28
_STATUS = {ErrorCode.SCOPE_NOT_GRANTED: 403}  # as an MCP server says it (RFC 6750 section 3.1)


def refusal(failure: Failure, message: McpMessage | None, base_url: str) -> Response:
    """The answer to a message that wasn't sent. A request that has no `id`, or none that could be read, is
    answered too: its HTTP status says that it failed."""
    response = problem_response(failure, base_url)
    problem = problem_document(failure, base_url)
    code = _INTERNAL if response.status_code >= 500 else _INVALID_REQUEST
    if message is not None and message.differs:
        code = _HEADER_MISMATCH
    error = {"code": code, "message": failure.detail or problem["title"], "data": problem}
    answer = {"jsonrpc": "2.0", "id": None if message is None else message.id, "error": error}
    response.status_code = _STATUS.get(failure.code, response.status_code)
    response.body = json.dumps(answer).encode()
    response.headers["Content-Type"] = "application/json"
    response.headers["Content-Length"] = str(len(response.body))
    return response
