"""Cedar as the oracle: permits as its policies, random requests, the same verdict for the same reasons."""

import json
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from random import Random
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

import cedarpy
import pytest

from evergrant_server.core.access import Effect, EnforcementMode, Permit
from evergrant_server.core.connections.grant import UNKNOWN_SCOPE
from evergrant_server.policy import PermitQuestion, explain
from tests.unit.policy.random_permits import random_permits, random_question
from tests.unit.policy.test_policy import permit

SETS, QUESTIONS = 500, 10
LENIENT = 8  # readings of a path by lenient servers


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def set_of(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(quoted, texts))}]"


def conditions(permit: Permit) -> Iterable[str]:
    """What has to hold. A forbid holds too for what isn't known; an allow doesn't."""
    denies = permit.effect is Effect.DENY

    def known(name: str, condition: str) -> str:
        return (
            f"(!(context has {name}) || ({condition}))"
            if denies
            else f"(context has {name} && ({condition}))"
        )

    for name in ("integration", "provider"):
        if (wanted := getattr(permit, name)) != "*":
            yield known(name, f"context.{name} == {quoted(wanted)}")
    if "*" not in permit.subjects:
        # a pattern of Cedar has * for whatever follows as well, anywhere
        patterns = (quoted(it) for it in permit.subjects)
        yield known("subject", " || ".join(f"context.subject like {it}" for it in patterns))
    if permit.methods is not None:
        yield known("method", f"{set_of(permit.methods)}.contains(context.method)")
    if permit.paths is not None:
        # a forbid holds for any of the readings, an allow for each of them
        forms = [*(f"lenient{it}" for it in range(LENIENT))] if denies else ["exact0", "exact1"]
        one = [" || ".join(path_condition(it, form) for it in permit.paths) for form in forms]
        yield known("path", (" || " if denies else " && ").join(f"({it})" for it in one))
    if permit.tools is not None:
        name = "context.folded_tool" if denies else "context.tool"
        patterns = (quoted(folded(it) if denies else it) for it in permit.tools)
        calls = " || ".join(f"{name} like {it}" for it in patterns)
        # the protocol's own messages, which call "": no deny is about them
        own = f'context.tool != "" && ({calls})' if denies else f'context.tool == "" || {calls}'
        yield known("tool", own)
    if permit.connections is not None:
        among = f"context has connection && {set_of(permit.connections)}.contains(context.connection)"
        yield f"(!(context has subject) || ({among}))" if denies else f"({among})"
    if permit.expires_at is not None:
        yield f"context.at < {microseconds(permit.expires_at)}"
    if permit.sources is not None:
        ranges = (f"context.address.isInRange(ip({quoted(it)}))" for it in permit.sources)
        yield known("address", " || ".join(ranges))
    if denies and permit.scopes is not None:
        unknown = f"context.scopes.contains({quoted(UNKNOWN_SCOPE)})"
        denied = set_of(it.casefold() for it in permit.scopes)
        yield f"context.folded_scopes.containsAny({denied}) || {unknown}"
    if permit.scope_ceiling is not None:
        yield f"{set_of(permit.scope_ceiling)}.containsAll(context.scopes)"
    if permit.exact_scopes:
        yield "context.excess.isEmpty()"


def path_condition(pattern: str, form: str) -> str:
    """A pattern as what holds for the number of a path's segments, and for each of them."""
    wanted = pattern[1:].split("/")
    if form.startswith("lenient"):
        wanted = [*lenient_paths(pattern)][-1]
    rest = wanted[-1:] == ["**"]
    wanted = wanted[: len(wanted) - rest]
    holds = [f"context.{form}.count {'>=' if rest else '=='} {len(wanted)}"]
    for place, part in enumerate(wanted):
        segment = f"context.{form}.s{place}"
        holds.append(f'{segment} != ""' if part == "*" else f"{segment} == {quoted(part)}")
    return f"({' && '.join(holds)})"


def path_context(path: str) -> dict[str, dict[str, Any]]:
    """Each reading, numbered; what a lenient server may read fills all of its numbers."""
    exact = [[unquote(it) for it in path[1:].split("/")], unquote(path)[1:].split("/")]
    lenient = [*lenient_paths(path)]
    numbered = {f"exact{place}": parts for place, parts in enumerate(exact)}
    numbered |= {f"lenient{place}": lenient[place % len(lenient)] for place in range(LENIENT)}
    return {
        form: {"count": len(parts)} | {f"s{place}": part for place, part in enumerate(parts)}
        for form, parts in numbered.items()
    }


def lenient_paths(path: str) -> Iterator[list[str]]:
    """What lenient servers make of a path: split first or last, with a format or without, OData's key as a
    segment or not. The last one is without both."""
    for parts in (unquote(path).split("/"), [unquote(it) for it in path.split("/")]):
        plain = [it for part in parts if (it := part.split(";")[0].casefold().rstrip(" ."))]
        for named in (plain, [*plain[:-1], *(re.sub(r"\.\w+$", "", it) for it in plain[-1:])]):
            yield named
            yield [
                half for part in named for half in re.sub(r"^(\w+)\('(\w+)'\)$", r"\1/\2", part).split("/")
            ]


def folded(tool: str) -> str:
    return normalize("NFKC", tool).casefold().strip()


def policy(permit: Permit) -> str:
    actions = ", ".join(f"Action::{quoted(it)}" for it in permit.actions)
    effect = "forbid" if permit.effect is Effect.DENY else "permit"
    holds = " && ".join(["true", *(f"({it})" for it in conditions(permit))])
    return f"{effect} (principal, action in [{actions}], resource) when {{ {holds} }};"


def microseconds(at: Any) -> int:
    return round(at.timestamp() * 1_000_000)


def request(question: PermitQuestion) -> dict[str, Any]:
    target = question.target._asdict()
    target["connection"] = target.pop("connection_id")
    context: dict[str, Any] = {name: it for name, it in target.items() if it is not None}
    context |= {"at": microseconds(question.at), "scopes": [*question.scopes], "excess": [*question.excess]}
    context["folded_scopes"] = [it.casefold() for it in question.scopes]
    if question.request is not None:
        context |= {"path": question.request.path, **path_context(question.request.path)}
        if not question.request.overrides:
            context["method"] = question.request.method
        if (tool := question.request.tool) is not None:
            context |= {"tool": tool, "folded_tool": folded(tool)}
    try:
        address = ip_address(question.address or "")
        plain = getattr(address, "ipv4_mapped", None) or address
        context["address"] = {"__extn": {"fn": "ip", "arg": str(plain)}}
    except ValueError:
        pass  # not known
    action = f"Action::{quoted(question.action)}"
    return {"principal": 'App::"a"', "action": action, "resource": 'Tenant::"acme"', "context": context}


def reasons(permits: list[Permit], questions: list[PermitQuestion]) -> list[tuple[bool, set[str]]]:
    """Cedar's verdicts, each with the names of the permits that it says decided."""
    policies = cedarpy.PolicySet.from_str("\n".join(map(policy, permits)))
    found: list[tuple[bool, set[str]]] = []
    for result in cedarpy.is_authorized_batch([request(it) for it in questions], policies, []):
        assert result.diagnostics.errors == []
        names = {permits[int(it.removeprefix("policy"))].name for it in result.diagnostics.reasons}
        found.append((result.allowed, names))
    return found


def test_cedar_decides_the_same_for_the_same_reasons(capsys: pytest.CaptureFixture[str]):
    random, verdicts = Random(7), {"allowed": 0, "denied": 0, "nothing fits": 0, "observed": 0}
    for _ in range(SETS):
        permits = random_permits(random)
        questions = [random_question(random) for _ in range(QUESTIONS)]
        observing = [it for it in permits if it.mode is EnforcementMode.OBSERVE]
        enforced = [it for it in permits if it not in observing]
        cedar = reasons(enforced, questions)
        seen = reasons([permit("all", actions=tuple(type(questions[0].action))), *observing], questions)
        for question, (allowed, names), (_, observed) in zip(questions, cedar, seen, strict=True):
            ours = explain(permits, question)
            assert ours.decision.allowed is allowed, (permits, question)
            also = ours.allowed_by if allowed else ours.denied_by
            assert {*also, ours.decided_by} - {None} == names, (permits, question)
            assert {*ours.observed_by} == {*ours.decision.observed} == observed - {"all"}
            verdicts["allowed" if allowed else "denied" if names else "nothing fits"] += 1
            verdicts["observed"] += bool(ours.observed_by)
    assert min(verdicts.values()) > SETS * QUESTIONS / 50, verdicts
    with capsys.disabled():
        print(f"\n{SETS * QUESTIONS} verdicts compared with Cedar: {verdicts}")
