"""Rules for errors: what they match, where they apply, how they are inherited, and which are refused."""

from typing import Any

import httpx2
import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import MOST_OF_A_WHOLE_REPLY, ReplyFailure
from providers.definition.schema_errors import RequestKind, plain_text
from providers.responses.error_mapping import (
    error_name,
    failure_of_reply,
    is_token_refused,
    read_revocation,
)
from providers.responses.raw_reply import RawReply
from providers.responses.reply_error import PassingError, UnnamedRefusal
from tests.unit.providers.samples import fails, reply_of, spec_like

OVER, OURS, LATER = ErrorCode.GRANT_REJECTED, ErrorCode.CLIENT_REJECTED, ErrorCode.PROVIDER_ERROR
BUSY = ErrorCode.PROVIDER_RATE_LIMITED
SENT = httpx2.Request("POST", "https://acme.example/token", data={"refresh_token": "sesame-1234"})


def read_as(
    rules: list[dict[str, Any]],
    body: Any,
    status: int = 400,
    at: RequestKind = "refresh",
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> ReplyFailure:
    spec = spec_like(error_rules=rules, **fields)
    reply = reply_of(body, status)
    reply = RawReply(status, headers or {}, reply.body, SENT)
    return failure_of_reply(spec, reply, error_name(spec, reply, at), at=at)


@pytest.mark.parametrize(
    ("rule", "body", "code"),
    [
        (
            {"path": "error_description", "values": ["Token is dead"]},
            {"error_description": " token  IS dead. "},
            OVER,
        ),
        (
            {"path": "error_description", "values": ["Token is dead."]},
            {"error_description": "Token is dead"},
            OVER,
        ),
        ({"path": "code", "values": [1]}, {"code": 1}, OVER),
        ({"path": "code", "values": [1]}, {"code": True}, LATER),
        ({"path": "code", "values": [1]}, {"code": "1"}, LATER),
        ({"path": "code", "not_in": ["OK"]}, {"code": "ok"}, LATER),
        ({"body": "text", "pattern": "^.*is dead$"}, b"The token\n  is dead", OVER),
        ({"body": "text", "values": ["dead"]}, b"Dead!", OVER),
        ({"body": "text", "values": ["dead"]}, {"a": "dead"}, LATER),
        ({"body": "text", "pattern": "^error=gone.*$"}, b"error=gone&x=1", OVER),
        ({"body": "html", "pattern": "^.*gone.*$"}, b"<html>\n<p>It is gone</p>", OVER),
        ({"body": "text", "pattern": "^.*gone.*$"}, b"<html>\n<p>It is gone</p>", LATER),
        ({"body": "empty"}, b" \n", OVER),
        ({"body": "empty"}, b"x", LATER),
        ({"body": "text"}, b"\xff\xfe", OVER),
        ({"header": "X-Fault", "values": ["blocked"]}, {}, OVER),
        ({"header": "X-Fault", "values": ["other"]}, {}, LATER),
        ({"status": [400]}, b"anything", OVER),
        ({"status": [401]}, b"anything", LATER),
        ({"path": "a", "when": {"path": "b", "values": ["c"]}}, {"a": 1, "b": "C."}, OVER),
        ({"path": "a", "when": [{"path": "b"}, {"header": "x-fault"}]}, {"a": 1, "b": 2}, OVER),
        ({"path": "a", "when": [{"path": "b"}, {"header": "x-none"}]}, {"a": 1, "b": 2}, LATER),
    ],
)
def test_a_rule_matches_any_part_of_a_reply(rule: dict[str, Any], body: Any, code: ErrorCode) -> None:
    failure = read_as([rule | {"means": "dead_token"}], body, headers={"x-fault": "Blocked"})
    assert failure.code is code


def test_one_code_means_different_things_at_the_exchange_and_at_a_refresh() -> None:
    rules = [
        {"path": "error", "values": ["invalid_grant"], "at": ["exchange"], "means": "client"},
        {"path": "error", "values": ["invalid_grant"], "at": ["refresh"], "means": "passing"},
    ]
    body = {"error": "invalid_grant"}
    assert read_as(rules, body, at="exchange").code is OURS
    assert isinstance(read_as(rules, body, at="refresh"), PassingError)
    assert read_as(rules, body, at="device").code is OVER


def test_a_subject_who_has_to_do_more_leaves_the_token_alive() -> None:
    rules = [{"path": "error", "values": ["policy"], "means": "subject"}]
    assert read_as(rules, {"error": "policy"}).code is OVER
    spec = spec_like(error_rules=rules)
    with pytest.raises(Failure) as refused:
        read_revocation(spec, reply_of({"error": "policy"}, 400))
    assert not is_token_refused(refused.value)


def test_an_error_found_by_its_description_keeps_its_name() -> None:
    rules = [{"path": "error_description", "values": ["wrong client"], "means": "client"}]
    failure = read_as(rules, {"error": "invalid_grant", "error_description": "Wrong client."})
    assert failure.context["provider_error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("wait", "body", "seconds"),
    [
        ({"path": "retry.after", "unit": "min"}, {"retry": {"after": 2}}, 120),
        ({"path": "wait", "unit": "ms"}, {"wait": "1500"}, 1.5),
        ({"path": "wait"}, {"wait": True}, None),
        ({"path": "wait"}, {"wait": -1}, None),
        ({"path": "wait"}, {"wait": 1e300}, None),
        ({"path": "wait"}, {}, None),
        ({"path": "error", "pattern": "^.*wait ([0-9]+) seconds"}, {"error": "Please wait 40 seconds"}, 40),
        ({"pattern": "^.*again in ([0-9]+) minutes", "unit": "min"}, b"<p>Try\nagain in 3 minutes", 180),
        ({"path": "wait"}, b"<p>no JSON", None),
    ],
)
def test_a_body_says_how_long_to_wait(wait: dict[str, Any], body: Any, seconds: float | None) -> None:
    assert read_as([], body, 503, wait_in_body=wait).retry_after == seconds
    assert read_as([], body, 429, wait_in_body=wait, headers={"retry-after": "7"}).retry_after == 7


@pytest.mark.parametrize(
    ("description", "at", "code"),
    [
        ("The refresh token is no longer valid.", "refresh", OVER),
        ("RefreshToken does not exist", "refresh", OVER),
        ("unknown, invalid, or expired refresh token", "refresh", OVER),
        ("Invalid refresh_token", "refresh", OVER),
        ("Token has been revoked", "refresh", OVER),
        ("The token expired.", "refresh", OVER),
        ("There is no 'user' for this token.", "refresh", OVER),
        ("Token expired for this request", "refresh", OURS),
        ("The access token has expired", "refresh", OURS),
        ("Token has been revoked", "exchange", OURS),
        ("The refresh token is missing", "refresh", OURS),
        ("Refresh token is invalid for the requested scope", "refresh", OURS),
        ("Token was issued to a different client", "refresh", OURS),
        ("The refresh token is invalid", "exchange", OURS),
        ("Authorization code doesn't exist.", "exchange", OVER),
        ("Invalid device code", "device", OVER),
        ("Invalid Authorization code", "device", OVER),
        ("Internal Error", "refresh", LATER),
        ("token request rate limit exceeded", "refresh", BUSY),
        ("The client_id is wrong", "refresh", OURS),
    ],
)
def test_a_description_decides_where_the_name_says_nothing(
    description: str, at: RequestKind, code: ErrorCode
) -> None:
    body = {"error": "invalid_request", "error_description": description}
    assert read_as([], body, at=at).code is code
    assert read_as([], body | {"error": "invalid_client"}, at=at).code is OURS


def test_a_passing_fault_counts_as_no_refusal() -> None:
    for text in ("Internal Server Error", "Too many requests"):
        failure = read_as([], {"error": "invalid_request", "error_description": text})
        assert not isinstance(failure, UnnamedRefusal)


def test_an_exchange_that_blames_the_redirect_uri_is_the_admins() -> None:
    for text in (
        "redirect_uri mismatch",
        "Invalid redirect URI",
        "The specified 'redirect_uri' parameter differs",
    ):
        body = {"error": "invalid_grant", "error_description": text}
        assert read_as([], body, at="exchange").code is OURS
        assert read_as([], body, at="refresh").code is OVER
    every_cause = "The provided authorization grant is invalid, or does not match the redirection URI"
    body = {"error": "invalid_grant", "error_description": every_cause}
    assert read_as([], body, at="exchange").code is OVER


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"path": "error"}, {"path": "error", "values": ["a"]}),
        ({"path": "error", "values": ["A."]}, {"path": "error", "values": ["b", "a"]}),
        ({"path": "error", "pattern": "^a.*$"}, {"path": "error", "values": ["ab"]}),
        ({"path": "error", "not_in": ["x"]}, {"path": "error", "values": ["a"]}),
        ({"path": "error", "values": ["a"]}, {"path": "error", "values": ["a"], "at": ["refresh"]}),
        ({"path": "error", "values": ["a"]}, {"path": "error", "values": ["a"], "when": {"path": "b"}}),
        ({"body": "html"}, {"body": "html", "pattern": "^.*a.*$", "status": [400]}),
        ({"header": "X-A"}, {"header": "x-a", "values": ["b"]}),
        ({"status": [400, 401]}, {"path": "error", "status": [401]}),
    ],
)
def test_a_rule_that_can_never_hold_is_refused_and_names_both(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    rules = [first | {"means": "client"}, second | {"means": "passing"}]
    with pytest.raises(
        ValueError, match=r"error_rules\.1 never holds.*error_rules\.0.*client there, passing here"
    ):
        spec_like(error_rules=rules)


def test_a_value_that_an_earlier_rule_has_is_named() -> None:
    rules = [
        {"path": "error", "values": ["a", "b."], "means": "client"},
        {"path": "error", "values": ["B", "c", "A"], "means": "dead_token"},
    ]
    with pytest.raises(ValueError, match=r"error_rules\.1 never holds for B, A: error_rules\.0 comes first"):
        spec_like(error_rules=rules)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"path": "error", "values": ["a"], "at": ["refresh"]}, {"path": "error", "values": ["a"]}),
        ({"path": "error", "values": ["a"], "status": [400]}, {"path": "error", "values": ["a"]}),
        ({"path": "error", "values": ["a"]}, {"path": "error"}),
        ({"path": "error", "values": ["ab"]}, {"path": "error", "pattern": "^a.*$"}),
        ({"path": "error", "pattern": "^a$"}, {"path": "error", "pattern": "^ab$"}),
        ({"path": "error", "values": [1]}, {"path": "error", "values": [True, "1"]}),
    ],
)
def test_rules_that_can_both_hold_are_taken(first: dict[str, Any], second: dict[str, Any]) -> None:
    spec_like(error_rules=[first | {"means": "client"}, second | {"means": "passing"}])


def test_a_value_has_one_meaning() -> None:
    rule = {"path": "error", "values": ["gone"], "means": "passing"}
    with pytest.raises(
        ValueError, match=r"error_rules\.0 says that gone means passing, terminal_error_codes"
    ):
        spec_like(error_rules=[rule], terminal_error_codes=["Gone."])
    with pytest.raises(ValueError, match="client_error_codes has gone, as terminal_error_codes has"):
        spec_like(terminal_error_codes=["Gone"], client_error_codes=["gone"])


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"means": "client"}, "exactly one of path, header and body"),
        ({"path": "a", "body": "text"}, "exactly one of path, header and body"),
        ({"path": "a", "when": {"values": ["b"]}}, "exactly one of path, header and body"),
        ({"path": "a", "values": [1], "not_in": [2]}, "more than one of not_in, values and pattern"),
        ({"body": "jpeg"}, "error_rules.0.body"),
        ({"path": "a", "at": ["introspection"]}, "error_rules.0.at"),
        ({"path": "a", "means": "nobody"}, "error_rules.0.means"),
    ],
)
def test_a_rule_without_one_subject_is_refused(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        spec_like(error_rules=[rule])


def test_an_extended_definitions_errors_come_behind_ones_own() -> None:
    theirs = spec_like(
        error_rules=[
            {"path": "error", "values": ["a", "b"], "means": "client"},
            {"body": "empty", "means": "passing"},
        ],
        terminal_error_codes=["gone", "dead"],
        rate_limit_reset={"header": "X-Reset"},
        status_field="ok",
        ok_values=[1],
    )
    own = spec_like(
        error_rules=[{"path": "error", "values": ["A"], "means": "passing"}],
        client_error_codes=["Gone"],
        status_field="result",
        ok_values=[0],
    )
    both = own.with_errors_of(theirs)
    assert [rule.values for rule in both.error_rules] == [("A",), ("b",), None]
    assert (both.terminal_error_codes, both.client_error_codes) == (("dead",), ("Gone",))
    assert both.rate_limit_reset == theirs.rate_limit_reset
    assert (both.status_field, both.ok_values) == ("result", (0,))


def test_plain_text_keeps_what_tells_errors_apart() -> None:
    assert plain_text(" Token  has\nENDED!. ") == "token has ended"
    assert plain_text("a.b") != plain_text("a b")


def test_an_unreadable_reply_is_shown_whole_without_secrets_and_bounded() -> None:
    page = b"<style>p {color: red}</style><script>var a</script><p>Access denied &amp; logged</p> sesame-1234"
    failure = read_as([], page, 403)
    assert failure.said is not None
    assert failure.said.description == "Access denied & logged [redacted]"
    words = read_as([], b"word " * 5000, 400).said
    assert words is not None
    assert len(words.description or "") == MOST_OF_A_WHOLE_REPLY


def test_of_an_object_without_a_known_field_all_is_shown_as_well() -> None:
    said = {"outcome": {"kind": "blocked", "seen": "sesame-1234"}}
    for status, code in ((400, LATER), (200, ErrorCode.REPLY_UNREADABLE)):
        failure = read_as([], said, status)
        assert (failure.code, failure.said.status if failure.said else None) == (code, status)
        assert failure.said is not None
        assert failure.said.description == '{"outcome": {"kind": "blocked", "seen": "[redacted]"}}'
    words = read_as([], {"refresh_token_new": "x", "outcome": "odd"}, 200).said
    assert words is not None
    assert not str(words), "it may hold tokens"


def test_an_unreadable_success_that_may_hold_tokens_is_not_shown() -> None:
    spec = spec_like()
    for body in (b"<xml><access_token>sesame</access_token></xml>", b'{"access_token": "sesame'):
        reply = RawReply(200, {}, body, SENT)
        words = failure_of_reply(spec, reply, error_name(spec, reply)).said
        assert words is not None
        assert not str(words)
    with fails(ErrorCode.REPLY_UNREADABLE):
        raise failure_of_reply(spec, RawReply(200, {}, b"<p>sign in", SENT), None)
