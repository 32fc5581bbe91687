"""An MCP server with the fixtures that the judge of servers calls, by the SDK's low-level server: both eras.

`python -m tests.conformance.mcp.everything` serves it at /mcp, and prints its port.
"""

import asyncio
import base64
import json
import socket
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError

Context = Any  # the SDK's ServerRequestContext
Answer = types.CallToolResult | types.InputRequiredResult
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003"
        "010100c9fe92ef0000000049454e44ae426082"
    )
).decode()
WAV = base64.b64encode(
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0"
).decode()
_PAUSE_S = 0.05  # which the judge asks for

changes = InMemorySubscriptionBus()


def text(said: str, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=said)], **more)


def resource(uri: str, said: str, kind: str) -> types.EmbeddedResource:
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type=kind, text=said))


IMAGE = types.ImageContent(data=PNG, mime_type="image/png")
AUDIO = types.AudioContent(data=WAV, mime_type="audio/wav")
EMBEDDED = resource("test://embedded-resource", "This is an embedded resource content.", "text/plain")
MIXED = resource("test://mixed-content-resource", '{"test":"data","value":123}', "application/json")


# --- tools ------------------------------------------------------------------------------


async def logging(context: Context, arguments: dict[str, Any]) -> Answer:
    for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await context.session.send_log_message("info", said, related_request_id=context.request_id)
        await asyncio.sleep(_PAUSE_S)
    return text("logged")


async def progress(context: Context, arguments: dict[str, Any]) -> Answer:
    for done in (0, 50, 100):
        await context.session.report_progress(done, 100)
        await asyncio.sleep(_PAUSE_S)
    return text("done")


async def sampling(context: Context, arguments: dict[str, Any]) -> Answer:
    content = types.TextContent(text=arguments["prompt"])
    message = types.SamplingMessage(role="user", content=content)
    sampled = await context.session.create_message(
        [message], max_tokens=100, related_request_id=context.request_id
    )
    return text(f"LLM response: {sampled.content.text}")


def _schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": []}


async def _elicited(context: Context, message: str, schema: dict[str, Any]) -> Answer:
    given = await context.session.elicit_form(message, schema, related_request_id=context.request_id)
    return text(f"Elicitation completed: action={given.action}, content={json.dumps(given.content)}")


async def elicitation(context: Context, arguments: dict[str, Any]) -> Answer:
    schema = _schema(username={"type": "string"}, email={"type": "string"})
    return await _elicited(context, arguments["message"], schema | {"required": ["username", "email"]})


async def defaults(context: Context, arguments: dict[str, Any]) -> Answer:
    schema = _schema(
        name={"type": "string", "default": "John Doe"},
        age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5},
        status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        verified={"type": "boolean", "default": True},
    )
    return await _elicited(context, "defaults", schema)


async def enums(context: Context, arguments: dict[str, Any]) -> Answer:
    plain, titled = (
        ["option1", "option2", "option3"],
        _titled("First Option", "Second Option", "Third Option"),
    )
    named = ["Option One", "Option Two", "Option Three"]
    schema = _schema(
        untitledSingle={"type": "string", "enum": plain},
        titledSingle={"type": "string", "oneOf": titled},
        legacyEnum={"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": named},
        untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
        titledMulti={"type": "array", "items": {"anyOf": _titled("First Choice", "Second", "Third")}},
    )
    return await _elicited(context, "enums", schema)


def _titled(*titles: str) -> list[dict[str, str]]:
    return [{"const": f"value{n}", "title": it} for n, it in enumerate(titles, 1)]


async def streaming(context: Context, arguments: dict[str, Any]) -> Answer:
    await context.session.report_progress(1, 2)
    return types.InputRequiredResult.model_validate({"inputRequests": {"user_name": NAME}})


async def region(context: Context, arguments: dict[str, Any]) -> Answer:
    return text(f"region: {arguments.get('region')}")


async def change_tools(context: Context, arguments: dict[str, Any]) -> Answer:
    await changes.publish(ToolsListChanged())
    return text("changed")


async def change_prompts(context: Context, arguments: dict[str, Any]) -> Answer:
    await changes.publish(PromptsListChanged())
    return text("changed")


async def needs_sampling(context: Context, arguments: dict[str, Any]) -> Answer:
    wanted = types.ClientCapabilities(sampling=types.SamplingCapability())
    if not context.session.check_client_capability(wanted):
        data = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "sampling is needed", data)
    return text("sampled")


# --- tools that ask for input (revision 2026-07-28) ---------------------------------------


def form(message: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sample(said: str, most: int) -> dict[str, Any]:
    message = {"role": "user", "content": {"type": "text", "text": said}}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": most}}


STRING = {"type": "string"}
NAME = form("What is your name?", name=STRING)
ROOTS = {"method": "roots/list", "params": {}}
ROUNDS: dict[
    str, list[tuple[dict[str, Any], bool]]
] = {  # the requests of each round, and whether it has a state
    "elicitation": [({"user_name": NAME}, False)],
    "sampling": [({"capital_question": sample("What is the capital of France?", 100)}, False)],
    "list_roots": [({"client_roots": ROOTS}, False)],
    "request_state": [({"confirm": form("Please confirm", ok={"type": "boolean"})}, True)],
    "tampered_state": [({"confirm": form("Please confirm", ok={"type": "boolean"})}, True)],
    "multiple_inputs": [
        ({"user_name": NAME, "greeting": sample("Generate a greeting", 50), "client_roots": ROOTS}, True)
    ],
    "multi_round": [
        ({"step1": form("Step 1: What is your name?", name=STRING)}, True),
        ({"step2": form("Step 2: What is your favorite color?", color=STRING)}, True),
    ],
    "capabilities": [({"user_name": NAME, "greeting": sample("Generate a greeting", 50)}, False)],
}
_OF_METHOD = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
INPUT = "test_input_required_result_"


def asks(name: str, context: Context, params: Any) -> Answer:
    """The next round of a tool that asks, or its answer."""
    rounds, given = ROUNDS[name], params.input_responses or {}
    reached = int((params.request_state or "0").removeprefix("state-"))
    for place, (requests, has_state) in enumerate(rounds):
        if place < reached - 1 or (place == reached - 1 and requests.keys() <= given.keys()):
            continue
        if not has_state and requests.keys() <= given.keys() and all(map(_is_sound, given.values())):
            continue
        able = context.session.client_capabilities
        wanted = {key: it for key, it in requests.items() if getattr(able, _OF_METHOD[it["method"]], None)}
        state = f"state-{place + 1}" if has_state else None
        return types.InputRequiredResult.model_validate({"inputRequests": wanted, "requestState": state})
    said = json.dumps([it.model_dump(mode="json") for it in given.values()])
    return text(f"state-ok {said}")


def _is_sound(given: Any) -> bool:
    return not isinstance(given, types.ElicitResult) or given.action != "accept" or bool(given.content)


# --- the server ---------------------------------------------------------------------------

Tool = Callable[[Context, dict[str, Any]], Awaitable[Answer]]
PLAIN: dict[str, types.CallToolResult] = {
    "test_simple_text": text("This is a simple text response for testing."),
    "test_image_content": types.CallToolResult(content=[IMAGE]),
    "test_audio_content": types.CallToolResult(content=[AUDIO]),
    "test_embedded_resource": types.CallToolResult(content=[EMBEDDED]),
    "test_multiple_content_types": types.CallToolResult(
        content=[types.TextContent(text="Multiple content types test:"), IMAGE, MIXED]
    ),
    "test_error_handling": text("This tool intentionally returns an error for testing", is_error=True),
}
TOOLS: dict[str, Tool] = {
    "test_tool_with_logging": logging,
    "test_logging_tool": logging,
    "test_streaming_elicitation": streaming,
    "test_x_mcp_header": region,
    "test_tool_with_progress": progress,
    "test_sampling": sampling,
    "test_elicitation": elicitation,
    "test_elicitation_sep1034_defaults": defaults,
    "test_elicitation_sep1330_enums": enums,
    "test_missing_capability": needs_sampling,
    "test_trigger_tool_change": change_tools,
    "test_trigger_prompt_change": change_prompts,
}
ARGUMENTS = {"test_sampling": ("prompt",), "test_elicitation": ("message",)}
MIRRORED = {"type": "object", "properties": {"region": STRING | {"x-mcp-header": "Region"}}, "required": []}


def schema_of(name: str) -> dict[str, Any] | None:
    """That of the tool with an argument that a header repeats."""
    return MIRRORED if name == "test_x_mcp_header" else None


async def list_tools(context: Context, params: Any) -> types.ListToolsResult:
    names = [*PLAIN, *TOOLS, *(INPUT + it for it in ROUNDS)]
    tools: list[types.Tool] = []
    for name in names:
        wanted = ARGUMENTS.get(name, ())
        schema = {"type": "object", "properties": dict.fromkeys(wanted, STRING), "required": [*wanted]}
        schema = schema_of(name) or schema
        tools.append(types.Tool(name=name, description=f"A fixture: {name}", input_schema=schema))
    return types.ListToolsResult(tools=tools)


async def call_tool(context: Context, params: types.CallToolRequestParams) -> Answer:
    if params.name in PLAIN:
        return PLAIN[params.name]
    if params.name in TOOLS:
        return await TOOLS[params.name](context, params.arguments or {})
    if params.name.removeprefix(INPUT) in ROUNDS:
        return asks(params.name.removeprefix(INPUT), context, params)
    raise MCPError(types.INVALID_PARAMS, f"no tool {params.name}")


async def list_resources(context: Context, params: Any) -> types.ListResourcesResult:
    named = {"static-text": "text/plain", "static-binary": "image/png", "watched-resource": "text/plain"}
    return types.ListResourcesResult(
        resources=[
            types.Resource(uri=f"test://{name}", name=name, description=f"A fixture: {name}", mime_type=kind)
            for name, kind in named.items()
        ]
    )


async def list_templates(context: Context, params: Any) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(
        uri_template="test://template/{id}/data", name="template", description="A fixture: a template"
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> Any:
    uri = str(params.uri)
    if uri == "test://static-binary":
        blob = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
        return types.ReadResourceResult(contents=[blob])
    if uri.startswith("test://template/"):
        id = uri.split("/")[3]
        said = json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})
        kind = "application/json"
    elif uri in ("test://static-text", "test://watched-resource"):
        said, kind = "This is the content of the static text resource.", "text/plain"
    else:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    contents = types.TextResourceContents(uri=uri, mime_type=kind, text=said)
    return types.ReadResourceResult(contents=[contents])


PROMPTS = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    "test_input_required_result_prompt": (),
}


async def list_prompts(context: Context, params: Any) -> types.ListPromptsResult:
    prompts: list[types.Prompt] = []
    for name, wanted in PROMPTS.items():
        arguments = [types.PromptArgument(name=it, description="A fixture", required=True) for it in wanted]
        prompts.append(types.Prompt(name=name, description=f"A fixture: {name}", arguments=arguments))
    return types.ListPromptsResult(prompts=prompts)


async def get_prompt(context: Context, params: types.GetPromptRequestParams) -> Any:
    given = params.arguments or {}
    contents: list[Any]
    match params.name:
        case "test_simple_prompt":
            contents = [types.TextContent(text="This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            said = f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"
            contents = [types.TextContent(text=said)]
        case "test_prompt_with_embedded_resource":
            embedded = resource(given["resourceUri"], "Embedded resource content for testing.", "text/plain")
            contents = [embedded, types.TextContent(text="Please process the embedded resource above.")]
        case "test_prompt_with_image":
            contents = [IMAGE, types.TextContent(text="Please analyze the image above.")]
        case "test_input_required_result_prompt" if not params.input_responses:
            wanted = {"user_context": form("What context should the prompt use?", context=STRING)}
            return types.InputRequiredResult.model_validate({"inputRequests": wanted})
        case "test_input_required_result_prompt":
            contents = [types.TextContent(text="With context")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"no prompt {params.name}")
    messages = [types.PromptMessage(role="user", content=it) for it in contents]
    return types.GetPromptResult(messages=messages)


async def complete(context: Context, params: Any) -> types.CompleteResult:
    return types.CompleteResult(
        completion=types.Completion(values=["paris", "park"], total=2, has_more=False)
    )


async def nothing(context: Context, params: Any) -> types.EmptyResult:
    return types.EmptyResult()


def everything() -> Server[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older era's logging is deprecated, and judged
        server: Server[Any] = Server(
            "everything",
            version="1",
            get_tool_input_schema=schema_of,
            on_list_tools=list_tools,
            on_call_tool=call_tool,
            on_list_resources=list_resources,
            on_list_resource_templates=list_templates,
            on_read_resource=read_resource,
            on_subscribe_resource=nothing,
            on_unsubscribe_resource=nothing,
            on_subscriptions_listen=ListenHandler(changes),
            on_list_prompts=list_prompts,
            on_get_prompt=get_prompt,
            on_completion=complete,
            on_set_logging_level=nothing,
        )
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=None))
    return server


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    app = everything().streamable_http_app()
    # httptools takes whitespace behind a value for a part of it
    uvicorn.Server(uvicorn.Config(app, log_level="error", http="h11")).run(sockets=[listener])
