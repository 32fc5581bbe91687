"""What replies say of limits, with the units of each vendor. Sources: docs/guide/api-limits.md."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.core.api_limits.reply import LONGEST_S, NOTHING, ReplyLimit, read_limits

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)
EPOCH = int(NOW.timestamp())


def limits(*headers: str) -> tuple[ReplyLimit, ...]:
    return read_limits(200, raw(headers), NOW).limits


def raw(headers: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    pairs = (header.partition(": ") for header in headers)
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, _, value in pairs]


@pytest.mark.parametrize(
    ("headers", "limit"),
    [
        # the IETF's draft, revision 08 and later
        (
            ('RateLimit-Policy: "burst";q=100;w=60', 'RateLimit: "burst";r=50;t=30'),
            ReplyLimit("burst", 100, 50, 30, 60),
        ),
        (('RateLimit: "default";r=0;t=12',), ReplyLimit("default", None, 0, 12)),
        (
            ('RateLimit-Policy: "p";q=10;w=1;pk=:c2VjcmV0:', 'RateLimit: "p";r=9;t=1;pk=:c2VjcmV0:'),
            ReplyLimit("p", 10, 9, 1, 1),
        ),
        # its revisions 06 and 07, and those before
        (
            ("RateLimit: limit=100, remaining=50, reset=5", "RateLimit-Policy: 100;w=10"),
            ReplyLimit("", 100, 50, 5, 10),
        ),
        (
            ("RateLimit-Limit: 100, 100;w=60", "RateLimit-Remaining: 7", "RateLimit-Reset: 50"),
            ReplyLimit("", 100, 7, 50, 60),
        ),
        # GitHub: an epoch in seconds, and a resource
        (
            (
                "X-RateLimit-Limit: 5000",
                "X-RateLimit-Remaining: 4999",
                f"X-RateLimit-Reset: {EPOCH + 60}",
                "X-RateLimit-Resource: core",
            ),
            ReplyLimit("core", 5000, 4999, 60),
        ),
        # X and Okta: a hyphen more
        (
            ("x-rate-limit-limit: 15", "x-rate-limit-remaining: 3", f"x-rate-limit-reset: {EPOCH + 900}"),
            ReplyLimit("", 15, 3, 900),
        ),
        # Reddit: fractions, and no limit
        (("x-ratelimit-remaining: 99.0", "x-ratelimit-reset: 301"), ReplyLimit("", None, 99, 301)),
        # Discord: an epoch with a fraction, and the seconds beside it
        (
            (
                "X-RateLimit-Limit: 5",
                "X-RateLimit-Remaining: 4",
                f"X-RateLimit-Reset: {EPOCH + 2}.5",
                "X-RateLimit-Reset-After: 1.5",
                "X-RateLimit-Bucket: abcd",
            ),
            ReplyLimit("abcd", 5, 4, 1.5),
        ),
        # milliseconds of Unix time
        (
            ("X-RateLimit-Limit: 9", "X-RateLimit-Remaining: 1", f"X-RateLimit-Reset: {EPOCH * 1000 + 4000}"),
            ReplyLimit("", 9, 1, 4),
        ),
        # a duration that is longer than a month is in milliseconds
        (
            ("X-RateLimit-Limit: 9", "X-RateLimit-Remaining: 1", "X-RateLimit-Reset: 3600000"),
            ReplyLimit("", 9, 1, 3600),
        ),
        # a date
        (
            ("X-RateLimit-Remaining: 1", "X-RateLimit-Reset: 2026-11-30T12:00:09Z"),
            ReplyLimit("", None, 1, 9),
        ),
        # Kong: the window in the name
        (
            ("X-RateLimit-Limit-Minute: 20", "X-RateLimit-Remaining-Minute: 19"),
            ReplyLimit("minute", 20, 19, None, 60),
        ),
        # with the vendor's name: HubSpot, with the window in milliseconds, and Fitbit
        (
            (
                "X-HubSpot-RateLimit-Max: 110",
                "X-HubSpot-RateLimit-Remaining: 108",
                "X-HubSpot-RateLimit-Interval-Milliseconds: 10000",
                "X-HubSpot-RateLimit-Daily: 250000",
            ),
            ReplyLimit("", 110, 108, None, 10),
        ),
        (
            ("Fitbit-Rate-Limit-Limit: 150", "Fitbit-Rate-Limit-Remaining: 9", "Fitbit-Rate-Limit-Reset: 70"),
            ReplyLimit("", 150, 9, 70),
        ),
        # the provider's clock is its own
        (
            (
                "Date: Mon, 30 Nov 2026 13:00:00 GMT",
                "X-RateLimit-Remaining: 1",
                f"X-RateLimit-Reset: {EPOCH + 3610}",
            ),
            ReplyLimit("", None, 1, 10),
        ),
        # past already
        (("X-RateLimit-Remaining: 0", f"X-RateLimit-Reset: {EPOCH - 5}"), ReplyLimit("", None, 0, 0)),
    ],
)
def test_a_limit_is_read_in_its_units(headers: tuple[str, ...], limit: ReplyLimit):
    assert limits(*headers) == (limit,)


def test_several_policies_are_several_limits():
    headers = (
        'RateLimit-Policy: "burst";q=10;w=1, "daily";q=1000;w=86400, "bytes";q=9;w=9;qu="content-bytes"',
        'RateLimit: "burst";r=9;t=1, "daily";r=80;t=4000, "bytes";r=3;t=3',
    )
    burst, daily = ReplyLimit("burst", 10, 9, 1, 1), ReplyLimit("daily", 1000, 80, 4000, 86_400)
    assert limits(*headers) == (burst, daily)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7", 7),
        ("Retry-After: 1.5", 1.5),
        ("Retry-After: Mon, 30 Nov 2026 12:00:30 GMT", 30),
        ("retry-after-ms: 250", 0.25),
        ("x-ms-retry-after-ms: 1500", 1.5),
        ("Retry-After: 9999999", 9999.999),
    ],
)
def test_a_429_says_how_long_nothing_is_to_be_sent(header: str, seconds: float):
    assert read_limits(429, raw((header,)), NOW).pause_s == pytest.approx(seconds)
    assert read_limits(503, raw((header,)), NOW).pause_s is None


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: text/plain",
        "Date: Mon, 30 Nov 2026 12:00:00 GMT",
        "X-RateLimit-Remaining: many",
        "X-RateLimit-Remaining: -1",
        "RateLimit: ;;;=,,",
        'RateLimit: "a;r=1',
        "X-Generated-Rate: 4",
        "Retry-After: soon",
    ],
)
def test_what_cant_be_read_says_nothing(header: str):
    assert read_limits(429, raw((header,)), NOW) == NOTHING


names = st.sampled_from(
    [
        *("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "x-ratelimit-remaining", "RateLimit-Reset"),
        *("Retry-After", "X-Rate-Limit-Reset", "x-ratelimit-remaining-day", "Date", "retry-after-ms"),
    ]
)
values = st.text(st.characters(codec="latin-1"), max_size=60) | st.from_regex(
    r'\A"[a-z]{0,4}";[rtqw]=[0-9]{1,18}(;[rtqw]=-?[0-9.]{1,4})?(, ?)?\Z'
)


@given(st.lists(st.tuples(names, values), max_size=8), st.sampled_from([200, 403, 429, 503]))
def test_no_reply_breaks_the_reader_or_names_an_endless_window(headers: list[tuple[str, str]], status: int):
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    reply = read_limits(status, pairs, NOW)
    assert 0 <= (reply.pause_s or 0) <= timedelta(days=1).total_seconds()
    for limit in reply.limits:
        assert limit.remaining is None or limit.remaining >= 0
        assert 0 <= (limit.ends_in_s or 0) <= LONGEST_S
        assert 0 <= (limit.window_s or 0) <= LONGEST_S
