"""Runs one example with a scripted model: `python -m tests.frameworks.run with_NAME`; prints its answers."""

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from tests.frameworks.models.script import ARGUMENTS, QUESTION


def main(name: str) -> None:
    gateway, server = os.environ["GATEWAY_MCP_URL"], os.environ["TOOLS_URL"]
    if name == "with_temporal":
        model = importlib.import_module("tests.frameworks.models.with_temporal")
        return _print("auth()", model.answer, os.environ["TEMPORAL_ADDRESS"], server)
    example = importlib.import_module(f"examples.frameworks.{name}")
    asked: tuple[object, ...] = (ARGUMENTS["name"],)
    if name != "with_mcp":
        asked = (QUESTION, importlib.import_module(f"tests.frameworks.models.{name}").Scripted())
    _print("gateway", example.through_gateway, gateway, *asked)
    if hasattr(example, "with_auth"):
        parts = urlsplit(server)
        _print("auth()", example.with_auth, server, f"{parts.scheme}://{parts.netloc}", *asked)


def _print(way: str, ask: Callable[..., Any], *arguments: object) -> None:
    answer = ask(*arguments)
    if inspect.iscoroutine(answer):
        answer = asyncio.run(answer)
    print(f"{way}: {answer}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
