"""What introspection is believed, and about which token."""

import pytest

from evergrant_server.core.elsewhere import Weight
from evergrant_server.core.introspection import Finding, Seen, judge_introspection


@pytest.mark.parametrize(
    ("refresh", "access", "answers", "finding"),
    [
        (True, None, False, Finding.REFRESH_TOKEN_ACTIVE),
        (False, None, True, Finding.REFRESH_TOKEN_INACTIVE),
        (False, True, False, Finding.ACCESS_TOKEN_ACTIVE),
        (False, False, False, Finding.ACCESS_TOKEN_INACTIVE),
        (False, None, False, Finding.NOTHING_LEARNT),
        (None, True, False, Finding.ACCESS_TOKEN_ACTIVE),
        (None, False, True, Finding.ACCESS_TOKEN_INACTIVE),
        (None, None, True, Finding.NOTHING_LEARNT),
    ],
)
def test_a_table(refresh: bool | None, access: bool | None, answers: bool, finding: Finding):
    assert judge_introspection(Seen(refresh, access, answers)) is finding


def test_only_a_refresh_token_condemns():
    weights = {it: it.weight for it in Finding if it.weight is not None}
    assert weights == {
        Finding.REFRESH_TOKEN_INACTIVE: Weight.ENDED,
        Finding.ACCESS_TOKEN_INACTIVE: Weight.DOUBTED,
    }
