"""Where a proxied request goes, and which paths have more than one reading."""

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.proxy.target import read_caller_path, target_of_call

BASE = "https://api.example/v3"


def sent(raw: str, query: str = "", base: str = BASE, *, hidden: bool = False) -> str:
    target = target_of_call(
        base, read_caller_path("GET", raw.encode(), query.encode()), hidden_slashes=hidden
    )
    return target.origin + target.target.decode()


@pytest.mark.parametrize(
    ("raw", "query", "url"),
    [
        ("user", "", "https://api.example/v3/user"),
        ("", "", "https://api.example/v3/"),
        ("user/", "", "https://api.example/v3/user/"),
        ("repos/%61/b:c@d", "q=%2f&r=a+b&x", "https://api.example/v3/repos/%61/b:c@d?q=%2f&r=a+b&x"),
        ("a;v=1/b", "", "https://api.example/v3/a;v=1/b"),
        ("%E2%9C%93", "x=%0d%0aX:%20y", "https://api.example/v3/%E2%9C%93?x=%0d%0aX:%20y"),
        ("...", "", "https://api.example/v3/..."),
        (":443@evil.example/x", "", "https://api.example/v3/:443@evil.example/x"),
    ],
)
def test_a_path_is_sent_as_it_was_written(raw: str, query: str, url: str):
    assert sent(raw, query) == url


@pytest.mark.parametrize(
    "raw",
    [
        *(
            "..",
            "../x",
            "a/../b",
            "./a",
            "a/.",
            "..;v=1/x",
            "%2e%2e/x",
            "%2E./x",
            ".%2e",
            "..%2fx",
            "a%2f..%2fb",
        ),
        *(
            "%252e%252e/x",
            "%25%32%65",
            "%252f",
            "a%255cb",
            "a%5cb",
            "a\\b",
            "/evil.example",
            "//evil.example",
        ),
        *("a//b", "%0d%0aX:%20y", "a%00", "a%7f", "%", "%zz", "a%2", "a b", "a#b", "a?b", "a\x00", "\u00fc"),
        *("%c0%ae%c0%ae/x", "%ff", "%e0%80%af", "a%2fb", "a%2Fb", " ..", "%20../x"),
    ],
)
def test_a_path_with_two_readings_is_refused(raw: str):
    with pytest.raises(Failure) as refused:
        sent(raw)
    assert (refused.value.code, refused.value.context["field"]) == (ErrorCode.INVALID_REQUEST, "path")


def test_an_escaped_slash_passes_where_the_definition_says_so_and_the_permit_sees_the_slash():
    assert sent("projects/a%2Fb", hidden=True) == "https://api.example/v3/projects/a%2Fb"
    assert read_caller_path("GET", b"projects/a%2Fb", b"").judged([], b"", ()).path == "/projects/a%2Fb"
    with pytest.raises(Failure):
        sent("projects/a%2F..%2Fb", hidden=True)


@pytest.mark.parametrize("query", ["a#b", "a b", "a\r\nX: y", "\x00", "<", "\u00fc"])
def test_a_query_that_a_url_cannot_have_is_refused(query: str):
    with pytest.raises(Failure):
        sent("user", query)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "", "A" * 21, "GET ", "G\r\n"])
def test_a_method_that_is_never_sent(method: str):
    with pytest.raises(Failure) as refused:
        read_caller_path(method, b"", b"")
    assert refused.value.code is ErrorCode.METHOD_NOT_ALLOWED
