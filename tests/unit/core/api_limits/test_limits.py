"""Which quotas a call has to fit: documented ones, and what replies name beyond them."""

from evergrant_server.core.api_limits.limits import ApiLimits, DocumentedQuota, LimitedCall, path_shape
from evergrant_server.core.api_limits.reply import ReplyLimit, ReplyLimits

OF_INTEGRATION = DocumentedQuota(requests=100, window_s=60, per="integration")
OF_CONNECTION = DocumentedQuota(requests=100, window_s=60, per="connection")


def a_call(app: str = "a", path: str = "GET users", **changes: object) -> LimitedCall:
    fields = {"weight": 2, "connection": "con_1", "integration": "int_1", "documented": (), **changes}
    return LimitedCall(app=app, path=path, **fields)  # type: ignore[arg-type]  # by name, as the tests need


def made(limits: ApiLimits, call: LimitedCall, now: float = 0.0, most: int = 1000) -> int:
    number = 0
    while number < most and (counted := limits.take(call, now)) is not None:
        limits.ended(counted)
        number += 1
    return number


def told(
    limits: ApiLimits, call: LimitedCall, *replies: ReplyLimit, now: float = 0.0, **pause: float
) -> None:
    counted = limits.take(call, now)
    assert counted is not None
    limits.answered(counted, ReplyLimits(replies, **pause), now)


def test_a_quota_of_the_integration_counts_all_of_its_connections():
    limits = ApiLimits()
    assert made(limits, a_call(documented=(OF_INTEGRATION,))) == 50
    assert made(limits, a_call(connection="con_2", documented=(OF_INTEGRATION,))) == 0
    assert made(limits, a_call(integration="int_2", documented=(OF_INTEGRATION,))) == 50


def test_a_quota_of_a_connection_is_its_own():
    limits = ApiLimits()
    assert made(limits, a_call(documented=(OF_CONNECTION,))) == 50
    assert made(limits, a_call(connection="con_2", documented=(OF_CONNECTION,))) == 50


def test_a_call_fits_all_of_its_quotas_or_is_counted_in_none():
    burst = DocumentedQuota(requests=2, window_s=1, per="connection")
    limits, call = ApiLimits(), a_call(documented=(burst, OF_CONNECTION))
    assert made(limits, call) == 1
    assert limits.ready_at(call, 0.0) < 1.2
    assert made(limits, a_call("b", documented=(OF_CONNECTION,))) > 20


def test_each_process_takes_its_part():
    assert made(ApiLimits(4), a_call(documented=(OF_CONNECTION,))) == 13  # half of 25, at once


def test_a_call_without_a_limit_is_always_taken():
    assert made(ApiLimits(), a_call(), most=500) == 500


def test_an_unnamed_limit_is_one_of_all_paths():
    limits = ApiLimits()
    told(limits, a_call(), ReplyLimit("", 10, 0, 30.0))
    for path in ("GET users", "GET files"):
        assert limits.take(a_call("b", path), 1.0) is None
        assert 29 < limits.ready_at(a_call("b", path), 1.0) <= 30
    assert limits.take(a_call(connection="con_2"), 1.0) is not None


def test_a_named_limit_is_one_of_the_paths_that_named_it():
    limits = ApiLimits()
    told(limits, a_call(path="GET search"), ReplyLimit("search", 10, 0, 30.0))
    assert limits.take(a_call("b", "GET search"), 1.0) is None
    assert limits.take(a_call("b", "GET users"), 1.0) is not None


def test_two_paths_whose_windows_end_elsewhere_have_limits_of_their_own():
    limits = ApiLimits()
    told(limits, a_call(path="GET users"), ReplyLimit("", 15, 0, 900.0))
    assert limits.take(a_call(path="GET files"), 1.0) is None  # it may be the same one
    told(limits, a_call(path="GET files"), ReplyLimit("", 15, 3, 899.0), now=901.0)
    told(limits, a_call(path="GET users"), ReplyLimit("", 15, 0, 400.0), now=902.0)
    assert limits.take(a_call(path="GET users"), 903.0) is None
    assert limits.take(a_call(path="GET files"), 903.0) is not None


def test_a_reply_about_a_documented_quota_corrects_it():
    limits, call = ApiLimits(), a_call(documented=(OF_INTEGRATION,))
    told(limits, call, ReplyLimit("", 100, 0, 40.0))
    assert made(limits, a_call("b", connection="con_2", documented=(OF_INTEGRATION,)), 1.0) == 0
    assert limits.ready_at(call, 1.0) == 40.0
    plan = a_call("c", integration="int_3", documented=(OF_INTEGRATION,))
    told(limits, plan, ReplyLimit("", 1000, 999, 60.0))
    assert made(limits, plan, 1.0) > 400, "a plan with more than the documented one"


def test_a_pause_is_one_of_the_path_that_was_refused():
    limits = ApiLimits()
    told(limits, a_call(path="POST messages"), pause_s=20.0)
    assert limits.take(a_call("b", "POST messages"), 1.0) is None
    assert limits.ready_at(a_call("b", "POST messages"), 1.0) == 20.0
    assert limits.take(a_call("b", "GET messages"), 1.0) is not None
    assert limits.take(a_call("b", "POST messages"), 20.0) is not None


def test_a_call_that_isnt_sent_is_given_back_once():
    limits, call = (
        ApiLimits(),
        a_call(documented=(DocumentedQuota(requests=1, window_s=60, per="connection"),)),
    )
    counted = limits.take(call, 0.0)
    assert counted is not None
    assert limits.take(call, 0.0) is None
    limits.give_back(counted)
    limits.give_back(counted)
    assert made(limits, call) == 1


def test_ids_in_a_path_are_one_route():
    assert path_shape("GET", "/repos/acme/web2/issues/17") == "GET repos/acme/*/issues"
    assert path_shape("GET", "/users/4f1c") == path_shape("GET", "users/99")
    assert path_shape("POST", "/users/99") != path_shape("GET", "/users/99")
