"""Messages of MCP as permits see them: one reading, or none."""

import base64
import json
from typing import Any

import pytest

from evergrant_server.gateway.mcp.message import McpMessage, read_message
from evergrant_server.policy import NO_TOOL

JSON = (b"content-type", b"application/json")


def message(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()


CALL = message("tools/call", name="safe", arguments={"a": 1, "deep": {"where": "ü"}})


def read(content: bytes | None, *headers: tuple[bytes, bytes]) -> McpMessage:
    return read_message("POST", [JSON, *headers], content)


def test_a_call_of_a_tool_is_read():
    found = read(CALL)
    assert (found.method, found.tool, found.id, found.unclear) == ("tools/call", "safe", 7, None)
    assert found.params == {"name": "safe", "arguments": {"a": 1, "deep": {"where": "ü"}}}


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        (message("initialize"), NO_TOOL),
        (message("tools/list", cursor="x"), NO_TOOL),
        (b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}', NO_TOOL),
        (b'{"jsonrpc":"2.0","id":1,"result":{"action":"accept"}}', NO_TOOL),
        (message("resources/read", uri="file:///x"), None),
        (message("tasks/list"), None),
        (message("vendor/anything"), None),
    ],
)
def test_the_protocols_own_messages_call_no_tool(content: bytes, tool: str | None):
    found = read(content)
    assert (found.tool, found.unclear) == (tool, None)


def test_a_stream_and_the_end_of_a_session_have_no_message():
    assert read_message("GET", [], b"").tool == NO_TOOL
    assert read_message("DELETE", [], CALL).tool is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[" + CALL + b"]",
        b"[" * 60_000,
        b"\xef\xbb\xbf" + CALL,
        CALL.decode().encode("utf-16"),
        CALL + CALL,
        b'{"method":"ping","method":"tools/call","params":{"name":"danger"}}',
        b'{"method":"ping","Method":"tools/call","params":{"name":"danger"}}',
        '{"method":"ping","param\u017f":{"name":"danger"}}'.encode(),  # a long s, which folds to s
        b'{"method":"tools/call","params":{"name":"safe","name":"danger"}}',
        b'{"method":"tools/call","params":{"name":"safe","NAME":"danger"}}',
        b'{"method":"tools/call","params":{"name":["danger"]}}',
        b'{"method":"tools/call","params":{"name":"safe","arguments":[1]}}',
        b'{"method":"tools/call","params":[{"name":"danger"}]}',
        b'{"method":"tools/call","params":{"name":"safe","arguments":{"n":NaN}}}',
        b'{"id":1}',
    ],
)
def test_what_has_two_readings_has_none(content: bytes | None):
    found = read(content)
    assert found.tool is None
    assert found.unclear is not None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [JSON, (b"Content_Type", b"application/json")],
        [JSON, (b"content-encoding", b"identity")],
    ],
)
def test_a_body_that_may_be_decoded_otherwise_has_no_reading(headers: list[tuple[bytes, bytes]]):
    assert read_message("POST", headers, CALL).unclear is not None
    utf8 = (b"Content-Type", b'application/json; charset="UTF-8"')
    assert read_message("POST", [utf8], CALL).tool == "safe"


def encoded(text: str) -> bytes:
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="


@pytest.mark.parametrize(
    ("headers", "differs"),
    [
        ([(b"Mcp-Method", b"tools/call"), (b"Mcp-Name", b"safe")], False),
        ([(b"Mcp-Name", encoded("safe")), (b"Mcp-Param-Where", encoded("ü"))], False),
        ([(b"Mcp-Param-A", b"1")], False),
        ([(b"Mcp-Name", b"danger")], True),
        ([(b"Mcp-Method", b"ping")], True),
        ([(b"Mcp-Name", b"safe"), (b"mcp-name", b"safe")], True),
        ([(b"Mcp-Name", b"safe"), (b"Mcp_Name", b"danger")], True),
        ([(b"Mcp-Name", b"=?base64?c2FmZQ?=")], True),  # without its padding
        ([(b"Mcp-Param-A", b"2")], True),
    ],
)
def test_headers_that_say_otherwise_than_the_body_are_told(headers: list[tuple[bytes, bytes]], differs: bool):
    found = read(CALL, *headers)
    assert (found.differs, found.tool) == (differs, None if differs else "safe")
    assert (found.unclear is not None) == differs


def test_a_header_for_what_the_body_does_not_name_differs():
    assert read(message("initialize"), (b"Mcp-Name", b"safe")).differs
    assert not read(message("resources/read", uri="file:///x"), (b"Mcp-Name", b"file:///x")).differs
