"""The act: an agent uses the connection without holding its token, and a person approves one of its calls."""

import asyncio
import json
import os
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

from examples.demo.agent.memory import search_memory
from examples.demo.claims import Claim, expect
from examples.demo.processes import Process
from examples.demo.story import Story
from examples.demo.waiting import wait_until

_NOTE = "buy a new kettle"
_BEFORE = "call_approval_required"


async def play(story: Story, started: list[int]) -> None:
    """Start the agent, and a process that leases a token: the search must find that one's."""
    key = await _agent_key(story)
    story.secrets.append(key)  # no history may have it
    async with AsyncExitStack() as stack:
        holder, agent = await asyncio.gather(
            _started(story, stack, story.app_key, "--holds-token", story.integration, story.subject),
            _started(story, stack, key, story.connection_id, _NOTE),
        )
        started += [holder.pid, agent.pid]
        ended = await _approved(story, agent)
        expect(ended == {"approved": "201", "again": _BEFORE}, f"the agent's calls ended in {ended}")
        notes = await story.server.calls("note")
        expect(notes == 1, f"the API has had {notes} of the agent's notes")
        story.claims.observed(
            Claim.AGENT,
            f"it read {agent.ready['read']}; its note: {agent.ready['unasked']}, then approved: "
            f"{ended['approved']}, then again: {ended['again']}",
        )
        await _search(story, holder, agent, key)


async def _agent_key(story: Story) -> str:
    """An agent that may read as it likes, and write what a person approves."""
    name = f"agent-{story.suffix}"
    ends = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    await story.admin.put(f"/v1/agents/{name}", {"purpose": "takes notes in the demo", "ends_at": ends})
    permit = {"integration": story.integration, "subjects": [story.subject], "actions": ["proxy"]}
    reads = {**permit, "methods": ["GET"]}
    writes = {**permit, "methods": ["POST"], "paths": ["/notes"], "call_approval": True}
    await asyncio.gather(
        story.admin.put(f"/v1/apps/{name}/permits/reads", reads),
        story.admin.put(f"/v1/apps/{name}/permits/writes", writes),
    )
    return (await story.admin.post(f"/v1/apps/{name}/keys"))["key"]


async def _started(story: Story, stack: AsyncExitStack, key: str, *arguments: str) -> Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    own = {"URL": story.platform.api, "GATEWAY_URL": story.platform.gateway, "API_KEY": key}
    env = kept | {f"EVERGRANT_{name}": value for name, value in own.items()}
    process = await Process.start("agent", ["-m", "examples.demo.agent", *arguments], env=env)
    stack.push_async_callback(process.stop)
    return process


async def _approved(story: Story, agent: Process) -> dict[str, Any]:
    """A person reads what the agent wants to send, and approves it. Returns what the agent says then."""
    expect(agent.ready["unasked"] == _BEFORE, f"an unapproved call ended in {agent.ready['unasked']}")
    asked = f"/v1/call-approvals/{agent.ready['asked']}"
    shown = (await story.admin.get(asked))["call"]
    expect((shown["method"], shown["body"]) == ("POST", json.dumps({"note": _NOTE})), f"it shows {shown}")
    await story.admin.post(f"{asked}/approve", {"note": "go ahead"})

    async def said() -> dict[str, Any] | None:
        return next((json.loads(line) for line in agent.last_lines if line.startswith('{"approved"')), None)

    return await wait_until(said, "the agent's approved call", 60)


async def _search(story: Story, holder: Process, agent: Process, key: str) -> None:
    tokens = {*await story.server.secrets(), story.app_key}
    comparison = await asyncio.to_thread(search_memory, holder.pid, tokens)
    leased = comparison.found - {story.app_key}
    expect(bool(leased), "the search finds no token in a process that leased one")
    searched = await asyncio.to_thread(search_memory, agent.pid, {*tokens, key})
    expect(key in searched.found, "the search can't even find the agent's own key")
    expect(searched.found == {key}, f"{len(searched.found) - 1} secrets are in the agent's memory")
    story.claims.observed(
        Claim.NOT_HELD,
        f"{len(tokens)} secrets searched in {searched.bytes_read / 1e6:.0f} MB; its own key is there, "
        f"as is the token in a process that leased it",
    )
