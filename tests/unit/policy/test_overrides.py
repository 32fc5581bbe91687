"""Where a request names another method than its own, and what a permit with methods says to it then."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.policy import DecisionReason, ProxiedRequest, method_overrides, query_names
from tests.unit.policy.test_policy import deny, judge, permit

FORM = [(b"content-type", b"application/x-www-form-urlencoded")]
MULTIPART = [(b"Content-Type", b"multipart/form-data; boundary=x")]


@pytest.mark.parametrize(
    "query",
    [
        *("_method=DELETE", "_HttpMethod=PATCH", "%24httpMethod=x", "http_method=put", "httpMethod=delete"),
        *("a=b&method=delete", "a;_method=DELETE", "%5Fmethod=delete", "_method[]=delete", "METHOD=%20put"),
        *("X-HTTP-Method-Override=", "x_http_method=DELETE", "_method=get&_method=delete"),
    ],
)
def test_a_query_that_names_a_method(query: str):
    assert len(method_overrides(query.encode())) == 1


@pytest.mark.parametrize(
    "query",
    ["method=flickr.photos.search", "payment_method=card", "methods=delete", "q=_method", "_method", ""],
)
def test_a_query_that_names_none(query: str):
    assert method_overrides(query.encode()) == ()


@pytest.mark.parametrize(
    ("name", "value", "counts"),
    [
        (b"X-HTTP-Method-Override", b"DELETE", True),
        (b"x_http_method_override", b"anything", True),
        (b"X-Http-Method", b"MERGE", True),
        (b"X-Method-Override", b"", True),
        (b":method", b"POST", False),  # as Envoy hands the request's own on
        (b"Content-Type", b"text/plain", False),
        (b"X-Own", b"1", False),
    ],
)
def test_headers(name: bytes, value: bytes, counts: bool):
    assert bool(method_overrides(b"", [(name, value)])) is counts


@pytest.mark.parametrize(
    ("headers", "body", "counts"),
    [
        (FORM, b"a=b&_method=DELETE", True),
        (FORM, b"a=b", False),
        (FORM, None, True),  # too long to be kept
        ([*FORM, (b"content-encoding", b"gzip")], b"x", True),
        ([(b"content-type", FORM[0][1] + b"; charset=utf-16")], b"x", True),
        ([(b"content-type", FORM[0][1] + b"; charset=UTF-8")], b"x=1", False),
        ([], b"_method=DELETE", True),  # some take what has no type for a form
        ([], b"", False),
        ([(b"content-type", b"application/json")], b'{"method": "DELETE"}', False),
        ([(b"content-type", b"application/octet-stream")], None, False),
        ([*FORM, (b"content-type", b"application/json")], b"_method=DELETE", True),
        (MULTIPART, b'--x\r\nContent-Disposition: form-data; name="_method"\r\n\r\nDELETE\r\n--x--', True),
        (MULTIPART, b"--x\nCONTENT-disposition:form-data;\n name=_method\nA: b\n\nput\n--x--", True),
        (
            MULTIPART,
            b"--x\r\nContent-Disposition: form-data; name*=UTF-8''%5Fmethod\r\n\r\nPUT\r\n--x--",
            True,
        ),
        (MULTIPART, b'--x\r\nContent-Disposition: form-data; filename="_method"\r\n\r\nPUT\r\n--x--', False),
        (MULTIPART, b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n_method=PUT\r\n--x--', False),
        (
            MULTIPART,
            b'--x\r\nContent-Disposition: form-data; f="%b"; name="_method"\r\n\r\nPUT\r\n' % (b"a" * 9000),
            True,
        ),
        (MULTIPART, None, True),
    ],
)
def test_forms(headers: list[tuple[bytes, bytes]], body: bytes | None, counts: bool):
    assert bool(method_overrides(b"", headers, body)) is counts


def test_a_definition_adds_names_whose_value_may_be_anything():
    assert method_overrides(b"do=1") == ()
    assert method_overrides(b"do=1", [(b"X-Do", b"2")], own_names=("do", "x_do")) == (
        "the query's do",
        "the header X-Do",
    )


def test_permits_that_name_methods_do_not_know_the_method_then():
    named = {"actions": (Action.PROXY,), "methods": ("POST",)}
    request = ProxiedRequest("POST", "/x", None, method_overrides(b"_method=DELETE"))

    def reason(*permits: object) -> DecisionReason:
        return judge(list(permits), action=Action.PROXY, request=request).reason

    anything = permit(actions=(Action.PROXY,))
    assert reason(permit(**named)) is DecisionReason.REQUEST_NOT_PERMITTED
    assert reason(anything) is DecisionReason.ALLOWED
    assert reason(anything, deny(actions=(Action.PROXY,), methods=("DELETE",))) is DecisionReason.DENIED
    assert reason(anything, deny(actions=(Action.PROXY,), methods=("GET",))) is DecisionReason.DENIED


def test_the_names_of_a_query_are_recorded_without_values():
    assert query_names(b"q=secret&page=1&q=2&acl&a%00b=c") == ("a?b", "acl", "page", "q")
    assert query_names(b"") == ()
    long = query_names(b"x" * 60 + b"=1")
    assert long == ("x" * 40 + "…",), "a token that has no name isn't written whole"
    assert len(query_names(b"&".join(b"a%d=1" % it for it in range(300)))) == 51
