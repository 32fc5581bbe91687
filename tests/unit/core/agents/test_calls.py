"""What an approval of a call is for: every part of it that an API may read, each told from every other."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evergrant_server.audit.decisions import call_hash
from evergrant_server.core.agents.calls import (
    NEUTRAL_HEADERS,
    NEUTRAL_META,
    AgentCall,
    Header,
    covered_headers,
    covered_params,
)
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.crypto import KeyRing

ROOT = Path(__file__).parents[4]
TENANT = Tenant("acme")
# few of them, which could be confused with each other
TEXTS = st.sampled_from(["", "a", "b", "a,b", "a: b", "a\nb", '"', "\\", "\x00", "é", "e\u0301", "1", "null"])
NAMES = st.sampled_from(["x-a", "x_a", "x-a-b", "xero-tenant-id", "content-type", "accept", "mcp-param-a"])
LINES = st.lists(st.tuples(NAMES, TEXTS.map(lambda it: it.strip(" \t"))), max_size=4)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(
    -(2.0**53), 2.0**53, exclude_min=True, exclude_max=True
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PARAMS = st.dictionaries(
    st.sampled_from(["arguments", "_meta", "task", "taskId", "further"]),
    JSON | st.dictionaries(TEXTS | st.sampled_from(sorted(NEUTRAL_META)), JSON, max_size=3),
)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.create(Path(tmp_path_factory.mktemp("keys")) / "keys.json")


@st.composite
def agent_calls(draw: st.DrawFn) -> AgentCall:
    who = {"agent": AppId(draw(TEXTS)), "subject": draw(TEXTS), "connection": ConnectionId(draw(TEXTS))}
    url, lines = draw(st.none() | TEXTS), draw(LINES)
    if draw(st.booleans()):
        params = covered_params({**draw(PARAMS), "name": draw(TEXTS)})
        return AgentCall(**who, url=url, headers=covered_headers(lines, of_tool=True), params=params)
    request = {"method": draw(TEXTS), "body_sha256": draw(st.none() | TEXTS)}
    return AgentCall(**who, url=url, headers=covered_headers(lines), **request)


def hashed(ring: KeyRing, call: AgentCall) -> str:
    return call_hash(ring, TENANT, call.members())


def a_request(lines: list[Header]) -> AgentCall:
    who = {"agent": AppId("app_1"), "subject": "ann", "connection": ConnectionId("con_1")}
    return AgentCall(**who, method="POST", url="https://api.example/x", headers=covered_headers(lines))


def a_tool(params: dict[str, Any]) -> AgentCall:
    who = {"agent": AppId("app_1"), "subject": "ann", "connection": ConnectionId("con_1")}
    return AgentCall(**who, params=covered_params({**params, "name": "pay"}))


@given(agent_calls(), agent_calls())
def test_two_different_calls_never_have_one_hash(ring: KeyRing, one: AgentCall, other: AgentCall):
    assume(one.members() != other.members())
    assert hashed(ring, one) != hashed(ring, other)


@given(agent_calls(), st.sampled_from(sorted(AgentCall.model_fields)), TEXTS, LINES, JSON)
def test_any_change_of_any_part_changes_the_hash(
    ring: KeyRing, call: AgentCall, part: str, text: str, lines: list[Header], value: Any
):
    wanted: dict[str, Any] = {"headers": tuple(lines), "params": {"name": text, "further": value}}
    changed = call.model_copy(update={part: wanted.get(part, text)})
    assume(changed.members() != call.members())
    assert hashed(ring, changed) != hashed(ring, call)


@given(LINES, st.data())
def test_any_change_of_a_header_that_goes_on_changes_the_hash(
    ring: KeyRing, lines: list[Header], data: st.DataObject
):
    lines = [it for it in lines if it != ("accept", "*/*")]
    at = data.draw(st.integers(0, len(lines)))
    name, value = data.draw(NAMES), data.draw(TEXTS)
    added = [*lines[:at], (name, value), *lines[at:]]
    assert hashed(ring, a_request(added)) != hashed(ring, a_request(lines))
    other = data.draw(TEXTS)
    assume(other != value)
    changed = [*lines[:at], (name, other), *lines[at:]]
    assume(changed != added)
    assert hashed(ring, a_request(changed)) != hashed(ring, a_request(added))


@given(LINES, st.lists(st.tuples(st.sampled_from(sorted(NEUTRAL_HEADERS)), TEXTS)))
def test_neutral_headers_case_and_the_order_of_names_change_nothing(
    ring: KeyRing, lines: list[Header], neutral: list[Header]
):
    shuffled = sorted(
        ((name.upper(), f" {value}\t") for name, value in lines), key=lambda it: it[0], reverse=True
    )
    assert hashed(ring, a_request([*neutral, *shuffled])) == hashed(ring, a_request(lines))


@given(PARAMS, st.sampled_from(["_meta", "task", "further"]), TEXTS, JSON)
def test_any_member_of_the_params_that_is_set_or_left_out_changes_the_hash(
    ring: KeyRing, params: dict[str, Any], name: str, key: str, value: Any
):
    without = {it: member for it, member in params.items() if it != name}
    assert hashed(ring, a_tool({**without, name: {key: value}})) != hashed(ring, a_tool(without))


@given(st.dictionaries(st.sampled_from(sorted(NEUTRAL_META)), JSON))
def test_neutral_members_of_meta_change_nothing(ring: KeyRing, neutral: dict[str, Any]):
    of_own = {"account": "acme"}
    assert hashed(ring, a_tool({"_meta": {**neutral, **of_own}})) == hashed(ring, a_tool({"_meta": of_own}))
    assert hashed(ring, a_tool({"_meta": neutral})) == hashed(ring, a_tool({}))


def test_a_call_without_arguments_is_one_call():
    assert len({str(a_tool(it)) for it in ({}, {"arguments": None}, {"arguments": {}})}) == 1


@pytest.mark.parametrize("number", [2**53, float(2**53), 1e300, float("inf"), float("nan")])
def test_a_number_that_stands_for_more_than_one_is_refused(ring: KeyRing, number: float):
    with pytest.raises(ValueError, match=r"\w"):
        hashed(ring, a_tool({"arguments": {"deep": [{"to": number}]}}))


@pytest.mark.parametrize(
    ("accept", "of_tool", "is_part"),
    [
        (["*/*"], False, False),
        ([" */* "], False, False),
        (["application/json"], False, True),
        (["*/*", "application/vnd.x+json"], False, True),
        (["*/*;q=0.1"], False, True),
        ([""], False, True),
        (["application/json, text/event-stream"], True, False),
        (["application/json", "Text/Event-Stream"], True, False),
        (["application/json; version=2"], True, True),
    ],
)
def test_an_accept_that_chooses_nothing_is_neutral(accept: list[str], of_tool: bool, is_part: bool):
    assert bool(covered_headers([("Accept", it) for it in accept], of_tool=of_tool)) == is_part


def test_the_guide_names_all_that_is_neutral():
    guide = (ROOT / "docs" / "guide" / "agents.md").read_text(encoding="utf-8")
    section = guide.partition("### What an approval covers")[2].partition("\n### ")[0].lower()
    names = [*NEUTRAL_HEADERS, *(it.removeprefix("io.modelcontextprotocol/") for it in NEUTRAL_META)]
    assert [it for it in names if f"`{it.lower()}`" not in section] == []
