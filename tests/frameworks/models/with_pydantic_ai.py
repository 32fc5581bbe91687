"""A scripted model of Pydantic AI."""

from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel

from tests.frameworks.models.script import ARGUMENTS, TOOL


def _reply(messages: list[ModelMessage], _: Any) -> ModelResponse:
    said = [part.content for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    return ModelResponse([TextPart(str(said[-1])) if said else ToolCallPart(TOOL, ARGUMENTS)])


def Scripted() -> FunctionModel:  # noqa: N802  # named as the other frameworks' models, which are classes
    return FunctionModel(_reply)
