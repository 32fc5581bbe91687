"""What replies say is left of a limit, in the spellings there are, and from providers that mean harm."""

from datetime import UTC, datetime

import pytest

from providers.definition.schema_errors import RateLimitReset
from providers.responses.remaining import nothing_left_for

NOW = datetime(2030, 1, 1, tzinfo=UTC)
EPOCH = int(NOW.timestamp())
FITBIT = RateLimitReset(header="Fitbit-Rate-Limit-Reset")
OKTA = RateLimitReset(header="X-Rate-Limit-Reset", format="epoch_s")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": '"a, b";r=5;t=60, "daily" ; r=0 ; t=7200'}, 7200),
        ({"ratelimit": "default;r=0;pk=:c2FtZQ==:;t=9"}, 9),
        ({"ratelimit": '"day";r=0', "ratelimit-policy": '"hour";q=9;w=3600, "day";q=99;w=86400'}, 86400),
        ({"ratelimit": "limit=100, remaining=0, reset=12"}, 12),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "50"}, 50),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1.5"}, 1.5),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(EPOCH + 40)}, 40),
        ({"x-rate-limit-remaining": "0", "x-rate-limit-reset": str(EPOCH + 40)}, 40),
        (
            {
                "x-rate-limit-remaining": "0",
                "x-rate-limit-reset": str(EPOCH + 40),
                "date": "Tue, 01 Jan 2030 00:00:10 GMT",
            },
            30,
        ),
    ],
)
def test_nothing_is_left_until_the_reset(headers: dict[str, str], seconds: float):
    assert nothing_left_for(headers, None, NOW) == pytest.approx(seconds)


def test_a_definitions_own_header_is_read_with_the_one_beside_it():
    own = {"fitbit-rate-limit-remaining": "0", "fitbit-rate-limit-reset": "1800"}
    assert nothing_left_for(own, FITBIT, NOW) == 1800
    assert nothing_left_for(own, None, NOW) is None
    both = {"x-rate-limit-remaining": "0", "x-rate-limit-reset": str(EPOCH + 20)}
    assert nothing_left_for(both, OKTA, NOW) == 20


@pytest.mark.parametrize("left", ["1", "", "-0", "-1", "nan", "0x0", "00:00", "null", "\u0660", "1e-9"])
@pytest.mark.parametrize("prefix", ["ratelimit-", "x-ratelimit-"])
def test_something_may_be_left(prefix: str, left: str):
    assert nothing_left_for({f"{prefix}remaining": left, f"{prefix}reset": "30"}, None, NOW) is None


@pytest.mark.parametrize(
    "reset",
    [
        "-1",
        "0",
        "nan",
        "inf",
        "1e9",
        "31536000",
        "9" * 15,
        "9" * 400,
        str(EPOCH - 5),
        f"{EPOCH}000",
        "",
        "soon",
    ],
)
def test_a_reset_that_is_past_far_away_or_no_number_is_ignored(reset: str):
    pair = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": reset}
    assert nothing_left_for(pair, None, NOW) is None
    assert nothing_left_for({"ratelimit": f'"a";r=0;t={reset}'}, None, NOW) is None


@pytest.mark.parametrize(
    "text",
    ["", ",", ";;;", '"', '"";r=0', '"a;r=0;t=30', "r=0;t=30", "a;r;t", '"a";r=0;t="30"', "=;=0,=", '""",;"'],
)
def test_what_is_no_such_field_says_nothing(text: str):
    assert nothing_left_for({"ratelimit": text, "ratelimit-policy": text}, None, NOW) is None


def test_ten_megabytes_are_not_read():
    long = '"a";r=0;t=30, ' * 700_000
    assert nothing_left_for({"ratelimit": long, "ratelimit-policy": long}, None, NOW) is None
    assert (
        nothing_left_for({"x-ratelimit-remaining": "0" * 10_000_000, "x-ratelimit-reset": "3"}, None, NOW)
        is None
    )
