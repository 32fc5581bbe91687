"""An allow fits each reading of a path, a deny any that a server may have."""

import re
from collections.abc import Callable
from random import Random
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evergrant_server.core.errors import Failure
from evergrant_server.gateway.proxy.target import read_caller_path
from evergrant_server.policy.paths import PathReadings, path_pattern_problem


def allowed(path: str, *patterns: str) -> bool:
    return PathReadings(path).fits_allow(patterns)


def denied(path: str, *patterns: str) -> bool:
    return PathReadings(path).fits_deny(patterns)


def test_an_encoded_slash_passes_neither_an_allow_nor_a_deny_by():
    issue, project = "/projects/*/issues/*", "/projects/*"
    hidden = "/projects/acme%2Fissues%2Fprod"  # decoded an issue, to GitLab a project
    assert not allowed(hidden, issue)
    assert not allowed(hidden, project)
    assert allowed(hidden, issue, project), "named in both readings"
    assert allowed(hidden, "/projects/**")
    assert denied(hidden, issue)
    assert denied(hidden, project)
    assert not denied(hidden, "/projects", "/projects/*/*")


@pytest.mark.parametrize(
    "path",
    [
        *("/admin/users", "/ADMIN/users", "/admin/users/", "//admin//users", "/admin;v=1/users;x"),
        *("/admin/users.json", "/admin/users.XML", "/admin/users.json.gz", "/admin/users.json/"),
        *("/admin/users.", "/admin/users%20", "/admin/users%20.%20", "/admin./users", "/admin/users%2e"),
        *(
            "/admin%2Fusers",
            "/%61dmin/users",
            "/admin%3Bv=1/users",
            "/admin/users;v=1.json",
            "/admin/;/users",
        ),
        *("/admin('users')", '/Admin("users")', "/admin(users)", "/admin('users').json"),
        *("/admin/users()", "/%EF%BD%81dmin/users", "/admin/users%CD%BEx"),
    ],
)
def test_a_deny_fits_each_way_to_write_what_it_names(path: str):
    assert denied(path, "/admin/users")
    assert denied(path, "/admin/**")
    assert not denied(path, "/admin", "/users", "/admin/users/*", "/admin/user")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/users('1')", "/users/1", True),
        ("/users('1')", "/users(1)", True),
        ("/users(1)/mail", "/users('1')/mail", True),
        ("/users/*/mail", "/users('o''neil')/mail", True),
        ("/users/o'neil", "/users('o''neil')", True),
        ("/users/1", "/users(guid'1')", True),
        ("/users/1", "/users(id='1')", True),
        ("/users/delta", "/users/delta(token='x')", True),
        ("/users", "/users('1')", False),
        ("/users/**", "/users('1')", True),
        ("/me.json", "/me", True),
        ("/me.json", "/me.xml", True),
        ("/me.json/**", "/me.json/x", True),
        ("/v1/**", "/v1.1/x", False),
        ("/report.pdf", "/report.pdf", True),
        ("/report.pdf", "/report.PDF.json", True),
        ("/report.pdf", "/report.doc", False),
        ("/john.doe", "/john.smith", False),
        ("/**", "/", True),
        ("/", "/", True),
        ("/a", "/", False),
    ],
)
def test_a_pattern_of_a_deny_is_read_leniently_too(pattern: str, path: str, fits: bool):
    assert path_pattern_problem(pattern) is None
    assert denied(path, pattern) is fits


def test_a_long_path_is_judged_at_once():
    """Each segment has many forms, and each form is tried at each place: together, not one after another."""
    path = "/" + "/".join(["a('b').c.d.e.f"] * 1000)
    assert not denied(path, "/" + "/".join(["*"] * 200))
    assert not denied("/" + ".x" * 8000, "/a/b")


# --- servers ----------------------------------------------------------------------------------------------


def splits_first(path: str) -> list[str]:
    return [unquote(it) for it in path[1:].split("/")]


def decodes_first(path: str) -> list[str]:
    return unquote(path)[1:].split("/")


def merges_slashes(parts: list[str]) -> list[str]:
    return [it for it in parts if it]


def ignores_case(parts: list[str]) -> list[str]:
    return [it.lower() for it in parts]


def drops_parameters(parts: list[str]) -> list[str]:
    return [re.sub(r";.*", "", it, flags=re.DOTALL) for it in parts]


def trims_ends(parts: list[str]) -> list[str]:
    return [it.rstrip(" .") for it in parts]


def takes_a_format(parts: list[str]) -> list[str]:
    return [*parts[:-1], re.sub(r"(?<=.)\.[A-Za-z0-9]{1,5}\Z", "", parts[-1])] if parts else []


def drops_a_final_slash(parts: list[str]) -> list[str]:
    return parts[:-1] if parts and not parts[-1] else parts


def speaks_odata(parts: list[str]) -> list[str]:
    segments: list[str] = []
    for part in parts:
        found = re.fullmatch(r"([^(]+)\('?([^'()]*)'?\)", part)
        segments += [part] if found is None else [it for it in found.groups() if it]
    return segments


Step = Callable[[list[str]], list[str]]
LENIENT: list[Step] = [
    *(merges_slashes, ignores_case, drops_parameters, trims_ends),
    *(drops_a_final_slash, takes_a_format, speaks_odata),
]
ORDERS = [Random(seed).sample(LENIENT, len(LENIENT)) for seed in range(60)]
WORDS = ("admin", "users", "1", "a")
DENIED = ["admin", "users", "1"]


def odd(word: str) -> st.SearchStrategy[str]:
    """A word as a caller may write it who wants to pass a deny by."""
    cases = st.sampled_from([word, word.upper(), word.title(), f"%{ord(word[0]):02x}{word[1:]}"])
    ends = st.sampled_from(["", "", ".", "%20", ";v=1", ";", "%3Bx", ".json", ".xml", "%2e", ".json;a=b"])
    return st.tuples(cases, ends).map("".join)


SEPARATORS = st.sampled_from(["/", "/", "/", "//", "%2F", "%2f", "/;/"])
KEYED = st.sampled_from(["/admin('users')/1", "/admin(users)/1", "/admin/users('1')", "/admin/users(1)"])


@st.composite
def paths(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 5)) == 0:
        return draw(KEYED) + draw(st.sampled_from(["", "/", ".json", ";v=1"]))
    words = draw(st.one_of(st.just(DENIED), st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)))
    path = "".join(draw(SEPARATORS) + draw(odd(word)) for word in words)
    return "/" + path.lstrip("/") + draw(st.sampled_from(["", "", "/", "%2F"]))


@settings(max_examples=400)
@given(path=paths(), split=st.sampled_from([splits_first, decodes_first]), steps=st.sampled_from(ORDERS))
@example("/admin%2Fusers.json/1.;x", decodes_first, LENIENT)
def test_no_lenient_server_serves_what_is_denied(
    path: str, split: Callable[[str], list[str]], steps: list[Step]
):
    """Whatever a server drops, and in which order: what reaches the denied resource fits the deny."""
    for most in range(len(steps) + 1):
        parts = split(path)
        for step in steps[:most]:
            parts = step(parts)
        if parts == DENIED:
            assert denied(path, "/admin/users/1")
            assert denied(path, "/admin/**")


@settings(max_examples=200)
@given(path=paths())
def test_each_reading_of_what_is_allowed_is_allowed(path: str):
    """The servers that take a path literally, split first or last, both serve something that is named."""
    patterns = ("/admin/users/*", "/admin/users", "/admin/*")
    named = [re.compile(it.replace("*", "[^\0]+")) for it in (it.replace("/", "\0") for it in patterns)]
    if allowed(path, *patterns):
        for split in (splits_first, decodes_first):
            assert any(it.fullmatch("\0" + "\0".join(split(path))) for it in named)


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab.;()'= A1,"), min_size=1, max_size=12).map(lambda it: f"/{it}"))
def test_a_pattern_denies_at_least_itself(pattern: str):
    if path_pattern_problem(pattern) is not None or set(pattern[1:].strip()) <= {".", ";", " "}:
        return
    path = "/" + quote(pattern[1:], safe=";()'=,")
    try:
        read_caller_path("GET", path[1:].encode(), b"")
    except Failure:
        return
    assert denied(path, pattern)
