"""A hostile definition ends soon in a typed error that names provider and field."""

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evergrant_server.core.errors import Failure
from providers.definition.host_validation import hosts_are_pinned
from providers.definition.patterns import InvalidPattern, check_pattern, matches
from providers.definition.registry import Registry
from tests.unit.providers.definition.test_schema import MINIMAL, problem
from tests.unit.providers.samples import spec_like


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchors or aliases"),
        (MINIMAL + "x: " + "[" * 300, "is nested too deeply"),
        (MINIMAL + "x: " + "[" * 30_000, "is not YAML"),
        (MINIMAL + "note: " + "9" * 70_000, "characters; the limit is 65536"),
        (MINIMAL + "version: " + "9" * 5000, "a number or a date"),
        (MINIMAL + "? [a]\n: b\n", "a key must be a scalar"),
        (MINIMAL + "!!python/name:os.system x: y\n", "is not YAML"),
        (MINIMAL + "<<: {a: b}\n", "is no field"),
        ("- a\n", "is an array, not a mapping"),
        ("# nothing yet\n", "is empty"),
        ("a:\n\tb: c\n", "is not YAML: it has a tab where YAML needs spaces (line 2)"),
        ("\x00", "is not YAML"),
        (MINIMAL + "name: acme\n", "'name' is repeated"),
        (MINIMAL + "? " + "k" * 1000 + "\n: v\n", "is no field"),
        (MINIMAL + "".join(f"field{n}: 1\n" for n in range(500)), "and 488 more"),
    ],
)
def test_invalid_yaml_refused(text: str, said: str) -> None:
    assert said in problem(text)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("token_endpoint: https://\u0430cme.example/token", "token_endpoint"),  # a Cyrillic letter
        ("token_endpoint: https://evil.example?.acme.example/token", "token_endpoint"),
        ("token_endpoint: https://[::1]/token", "token_endpoint"),
        ('token_endpoint: "https://acme.example/\\r\\nX: y"', "token_endpoint"),
        ("post_auth: [{url: 'http://169.254.169.254/', metadata: {a: b}}]", "post_auth.0.url"),
        ('display_name: "Ac\\u202eme"', "display_name"),
        ('notes: ["a\\nb"]', "notes.0"),
        ('required_headers: {x: "a\\r\\nb: c"}', "required_headers.x"),
        ('required_headers: {"a b": c}', "required_headers.a b.[key]"),
        ("refresh_token_lifetime_s: .inf", "refresh_token_lifetime_s"),
        ("refresh_token_idle_s: .nan", "refresh_token_idle_s"),
        ("refresh_rotates: true\nrotation_grace_s: -1", "rotation_grace_s"),
        ("token_params: {a: '{client_secret}'}", "token_params"),
        ("redirect_uri_override: '{unknown}'", "redirect_uri_override"),
        ("template_params: {a: {pattern: '^(?=evil)$'}}", "template_params.a.pattern"),
        (
            "response: {metadata_patterns: {a: {path: b, pattern: '(a)'}}}",
            "response.metadata_patterns.a.pattern",
        ),
    ],
)
def test_hostile_field_named_and_not_quoted(line: str, field: str) -> None:
    replaced = line.split(":")[0]
    kept = [kept for kept in MINIMAL.splitlines() if kept.split(":")[0] != replaced]
    detail = problem("\n".join([*kept, line]))
    assert f"provider 'acme' in acme.yaml: {field}" in detail
    assert "evil" not in detail
    assert "169.254" not in detail


def test_unreadable_file_refused(tmp_path: Path) -> None:
    for name, content in (("a.yaml", b"\xff\xfe"), ("b.yaml", b"name: x\n" * 100_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Failure, match=name):
            Registry.load(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(Failure, match=r"c\.yaml: can't be read"):
        Registry.load(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a", "anchored"),
        ("^a", "anchored"),
        (r"^a\$", "anchored"),
        ("^(a)$", "no capturing group"),
        ("^" + "a" * 500 + "$", "longer"),
        ("^(?=a)a$", "look-around"),
        (r"^(a)\1$", "back reference"),
        ("^[a$", "not a regular expression"),
        (r"^\pL{900}$", "not a regular expression"),  # needs too much memory
    ],
)
def test_pattern_refused(pattern: str, why: str) -> None:
    with pytest.raises(InvalidPattern, match=why):
        check_pattern(pattern)


PARTS = (*"ab-|*+?)^$.", "[ab]", "[^a]", "(?:", "{1,9}", "{0,63}", "\\.")


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PARTS), max_size=12).map(lambda parts: f"^{''.join(parts)}$"))
@example("^(?:a+)+$")
@example("^(?:a{1,63}){1,8}$")
@example("^a*a*a*a*a*a*a*a*$")
def test_pattern_matched_in_linear_time(pattern: str) -> None:
    try:
        check_pattern(pattern)
    except InvalidPattern:
        return
    began = time.thread_time()
    for text in ("a" * 253, "a" * 252 + "!", "ab" * 126 + "!", "a\ud800"):
        matches(pattern, text)
    assert time.thread_time() - began < 20, (
        "seconds of this thread's own work: a search of exponential time would take years"
    )


@pytest.mark.parametrize("where", ["api_base_url", "token_endpoint"])
def test_callback_parameter_in_a_credential_host_refused(where: str):
    """Apps send their tokens to `api_base_url`, and a callback is untrusted."""
    from_callback = {"x": {"pattern": "^[a-z.]{1,40}$", "source": "callback"}}
    loose = spec_like(template_params=from_callback, **{where: "https://{x}/v1"})
    assert [field for field, _, _ in hosts_are_pinned(loose)] == ["template_params.x"]
    slashed = {"x": {"pattern": "^[a-z./]{1,40}$", "source": "callback"}}
    with pytest.raises(ValueError, match="may hold a /"):
        spec_like(template_params=slashed, **{where: "https://{x}.acme.example/v1"})
