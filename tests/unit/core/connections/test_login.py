"""Who may go on after a login: the claim of the rule is the subject's name."""

import pytest

from evergrant_server.core.connections.login import LoginClaim, LoginRule, claimed_subject, judge_login

BY_SUB = LoginRule(integration="staff")
BY_EMAIL = LoginRule(integration="staff", claim=LoginClaim.EMAIL, domains=("corp.example",))


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"sub": "user-1"}, None),
        ({"sub": "user-2"}, "another subject"),
        ({"sub": "User-1"}, "another subject"),
        ({"sub": "\ud800"}, "another subject"),
        ({"sub": 1}, "the issuer names no sub"),
        ({"sub": ""}, "the issuer names no sub"),
        ({"email": "user-1", "email_verified": True}, "the issuer names no sub"),
    ],
)
def test_by_sub_exactly(claims: dict[str, object], why: str | None) -> None:
    assert judge_login(BY_SUB, claims, "user-1") == why


@pytest.mark.parametrize(
    ("email", "subject", "why"),
    [
        ("ann@corp.example", "ann@corp.example", None),
        ("ann@Corp.Example", "ann@corp.example", None),
        ("ann@corp.example", "ann@CORP.example", None),
        ("ANN@corp.example", "ann@corp.example", "another subject"),
        ("ann@other.example", "ann@other.example", "the email address is of another domain"),
        ("ann@corp.example.evil.example", "ann@corp.example", "the email address is of another domain"),
        ("evil@x@corp.example", "ann@corp.example", "another subject"),
    ],
)
def test_by_email_of_a_listed_domain(email: str, subject: str, why: str | None) -> None:
    claims = {"sub": "1", "email": email, "email_verified": True}
    assert judge_login(BY_EMAIL, claims, subject) == why


@pytest.mark.parametrize("verified", [False, None, "true", 1])
def test_an_unverified_email_address_names_no_person(verified: object) -> None:
    claims = {"email": "ann@corp.example", "email_verified": verified}
    assert judge_login(BY_EMAIL, claims, "ann@corp.example") == "the email address isn't verified"


def test_what_an_audit_record_can_hold_of_who_came() -> None:
    assert claimed_subject(BY_SUB, {"sub": "user-2"}) == "user-2"
    for sub in (None, 7, "x" * 256, "a\0b"):
        assert claimed_subject(BY_SUB, {"sub": sub}) is None
