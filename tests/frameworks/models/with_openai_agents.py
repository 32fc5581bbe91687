"""A scripted model of the OpenAI Agents SDK."""

import json
from typing import Any

from agents import Model, ModelResponse, Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from tests.frameworks.models.script import ARGUMENTS, TOOL


class Scripted(Model):
    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **more: Any) -> ModelResponse:
        said = [it["output"] for it in input if "output" in it] if isinstance(input, list) else []
        return ModelResponse([_says(str(said[-1])) if said else _calls()], Usage(), None)

    def stream_response(self, *_: Any, **more: Any) -> Any:
        raise NotImplementedError  # abstract in the SDK; the example asks for whole responses


def _calls() -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        arguments=json.dumps(ARGUMENTS), call_id="1", name=TOOL, type="function_call"
    )


def _says(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(annotations=[], text=text, type="output_text")
    return ResponseOutputMessage(
        id="2", content=[content], role="assistant", status="completed", type="message"
    )
