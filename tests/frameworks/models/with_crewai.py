"""A scripted model of CrewAI, which writes the name of the tool in its prompt, prefixed by the server's."""

import json
import re
from typing import Any

from crewai import BaseLLM

from tests.frameworks.models.script import ARGUMENTS, EXPECTED, TOOL


class Scripted(BaseLLM):
    def __init__(self) -> None:
        super().__init__(model="scripted")

    def call(self, messages: Any, *_: Any, **more: Any) -> str:
        prompt = json.dumps(messages)
        if EXPECTED in prompt:
            return f"Thought: done\nFinal Answer: {EXPECTED}"
        named = re.search(rf"\b(\w*{TOOL})\b", prompt.partition("Tool Name:")[2])
        assert named is not None, prompt
        return f"Thought: greet\nAction: {named[1]}\nAction Input: {json.dumps(ARGUMENTS)}"

    def supports_function_calling(self) -> bool:
        return False
