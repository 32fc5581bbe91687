"""What introspection is believed, and about which token."""

import pytest

from evergrant_server.core.provider_events.external_revocation import (
    Certainty,
    IntrospectionAnswers,
    IntrospectionFinding,
    judge_introspection,
)


@pytest.mark.parametrize(
    ("refresh", "access", "answers", "finding"),
    [
        (True, None, False, IntrospectionFinding.REFRESH_TOKEN_ACTIVE),
        (False, None, True, IntrospectionFinding.REFRESH_TOKEN_INACTIVE),
        (False, True, False, IntrospectionFinding.ACCESS_TOKEN_ACTIVE),
        (False, False, False, IntrospectionFinding.ACCESS_TOKEN_INACTIVE),
        (False, None, False, IntrospectionFinding.NOTHING_LEARNT),
        (None, True, False, IntrospectionFinding.ACCESS_TOKEN_ACTIVE),
        (None, False, True, IntrospectionFinding.ACCESS_TOKEN_INACTIVE),
        (None, None, True, IntrospectionFinding.NOTHING_LEARNT),
    ],
)
def test_a_table(refresh: bool | None, access: bool | None, answers: bool, finding: IntrospectionFinding):
    assert judge_introspection(IntrospectionAnswers(refresh, access, answers)) is finding


def test_only_a_refresh_token_condemns():
    weights = {it: it.certainty for it in IntrospectionFinding if it.certainty is not None}
    assert weights == {
        IntrospectionFinding.REFRESH_TOKEN_INACTIVE: Certainty.ENDED,
        IntrospectionFinding.ACCESS_TOKEN_INACTIVE: Certainty.SUSPECTED,
    }
