"""`WWW-Authenticate` is parsed as RFC 9110 has it: what a quoted string says is no parameter."""

import pytest

from providers.responses.challenges import bearer_challenge, challenged_scopes, parse_challenges

INSUFFICIENT = 'error="insufficient_scope"'


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Bearer", [("bearer", {})]),
        ("BEARER Realm=x , SCOPE = y", [("bearer", {"realm": "x", "scope": "y"})]),
        (
            'Basic realm="a, Bearer b=c", bearer d=e',
            [("basic", {"realm": "a, Bearer b=c"}), ("bearer", {"d": "e"})],
        ),
        ("Negotiate YWJj==, Bearer a=b", [("negotiate", {}), ("bearer", {"a": "b"})]),
        (",, Bearer a=b,, ,Basic c=d,", [("bearer", {"a": "b"}), ("basic", {"c": "d"})]),
        (r'Bearer a="q\"u, scope=admin", b=""', [("bearer", {"a": 'q"u, scope=admin', "b": ""})]),
    ],
)
def test_rfc9110_11_6_1_challenges(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(it.scheme, dict(it.params)) for it in parse_challenges(header)] == found


@pytest.mark.parametrize(
    "header",
    [
        *('Bearer a="open', "Bearer a=b c", "Bearer a=b, a=c", "Bearer a=b Basic", "=x", 'Bearer a="b"c'),
        *("Bearer a=b\x00", 'Bearer a="b\x07"', "Bearer " + "a=b, " * 3000, ", ".join(["X"] * 21)),
    ],
)
def test_a_malformed_field_has_no_challenge(header: str) -> None:
    assert parse_challenges(header) == ()


def test_two_bearer_challenges_are_none() -> None:
    assert bearer_challenge(["Bearer scope=a", "Bearer scope=b"]) is None
    assert bearer_challenge(["Basic realm=x", "Bearer scope=a"]) is not None


@pytest.mark.parametrize(
    ("header", "scopes"),
    [
        (f'Bearer {INSUFFICIENT}, scope="files:read files:write"', ("files:read", "files:write")),
        (f'Bearer {INSUFFICIENT}, scope="a a"', ("a",)),
        (f'Bearer {INSUFFICIENT}, scope="a  b"', ()),  # not a list of scopes: RFC 6749 section 3.3
        (f"Bearer {INSUFFICIENT}", ()),
        ('Bearer error="invalid_token", scope="admin"', ()),
        (f'DPoP {INSUFFICIENT}, scope="admin"', ()),
        (f'Bearer {INSUFFICIENT}, error_description="x scope=admin"', ()),
        (f'Bearer error_description="x scope=admin", {INSUFFICIENT}, scope="read"', ("read",)),
        ('Bearer error_description="error=\\"insufficient_scope\\" scope=admin"', ()),
        (f'Basic realm="x", Bearer {INSUFFICIENT}, scope="repo"', ("repo",)),
        (f'Bearer {INSUFFICIENT}, scope="a\\"b"', ()),
        (f'Bearer {INSUFFICIENT}, scope="a\x01b"', ()),
        ("", ()),
    ],
)
def test_rfc6750_3_1_the_scopes_that_a_403_demands(header: str, scopes: tuple[str, ...]) -> None:
    assert challenged_scopes(header) == scopes
