"""Accounts: which id token is believed, which account it names, and whether that one was meant."""

import base64
import json
from contextlib import nullcontext
from typing import Any

import pytest

from evergrant_server.core.connections.account import Account, OnReconnect, is_expected_account
from evergrant_server.core.connections.id_token import checked_claims
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from tests.fakes.failures import fails

ISSUER = "https://idp.example"
CLAIMS = {"iss": ISSUER, "aud": "client-1", "sub": "account-1"}


def token(**claims: Any) -> Secret:
    return Secret(f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()}.c2ln")


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({}, False),
        ({"iss": f"{ISSUER}/"}, False),  # a final slash is another spelling
        ({"iss": "idp.example"}, False),  # section 15.6.2
        ({"iss": "https://idp.example.evil"}, True),
        ({"iss": None}, True),
        ({"iss": [ISSUER]}, True),
        ({"aud": ["client-1"]}, False),
        ({"aud": ["client-1", "other"], "azp": "client-1"}, False),
        ({"aud": ["client-1", "other"]}, True),
        ({"aud": "client-1", "azp": "other"}, True),
        ({"aud": "client-10"}, True),
        ({"sub": ""}, True),
        ({"sub": 7}, True),
    ],
)
def test_oidc_core_3_1_3_7_issuer_audience_and_subject(changes: dict[str, Any], bad: bool) -> None:
    given = token(**{**CLAIMS, **changes})
    with fails(ErrorCode.ID_TOKEN_REFUSED) if bad else nullcontext():
        checked_claims(given, issuer=ISSUER, client_id="client-1")


@pytest.mark.parametrize("audience", [None, "", [], [""]])
def test_an_empty_audience_is_the_admins(audience: object) -> None:
    """The provider's client was made without one: no further consent fills it."""
    with fails(ErrorCode.CLIENT_REJECTED) as failed:
        checked_claims(token(**{**CLAIMS, "aud": audience}), issuer=ISSUER, client_id="client-1")
    assert "audience" in failed.value.repair
    with fails(ErrorCode.ID_TOKEN_REFUSED):
        checked_claims(
            token(**{**CLAIMS, "aud": audience, "iss": "https://x"}), issuer=ISSUER, client_id="client-1"
        )


def test_without_a_known_issuer_any_is_accepted_and_what_is_no_id_token_says_nothing() -> None:
    elsewhere = token(**{**CLAIMS, "iss": "https://login.example/tenant"})
    assert checked_claims(elsewhere, issuer=None, client_id="client-1")["sub"] == "account-1"
    assert checked_claims(Secret("opaque"), issuer=ISSUER, client_id="client-1") == {}


def test_oidc_core_5_7_an_account_is_its_issuer_and_sub() -> None:
    mail = {"email": "Ann@Example.org", "email_verified": True, "hd": "example.org", "tid": 5}
    one = Account.of_id_token({**CLAIMS, **mail, "iss": f"{ISSUER}/"})
    same = Account.of_id_token({**CLAIMS, "email": "bob@example.org"})
    assert one is not None
    assert same is not None
    assert one.id == same.id
    assert (one.name, same.name) == ("Ann@Example.org", "bob@example.org")
    assert one.claims == {"sub": "account-1", "email": "Ann@Example.org", "hd": "example.org"}
    assert same.claims == {"sub": "account-1"}, "an address that nobody verified proves nothing"
    other = Account.of_id_token({**CLAIMS, "iss": "https://other.example"})
    assert other is not None
    assert other.id != one.id
    assert "Ann" not in repr(one)
    assert Account.of_id_token({**CLAIMS, "sub": "\ud800"}) is None


USABLE = [("u-1", "u-1"), (17, "17"), (True, None), ("", None), (None, None)]


@pytest.mark.parametrize(("value", "id"), USABLE)
def test_a_providers_own_id(value: object, id: str | None) -> None:
    account = Account.of_fact("user_id", value)
    assert (None if account is None else account.claims["sub"]) == id


SAME, ANY = OnReconnect.SAME, OnReconnect.ANY


@pytest.mark.parametrize(
    ("came", "pin", "expected", "rule", "good"),
    [
        ("a", None, {}, SAME, True),
        (None, None, {}, SAME, True),
        ("a", "a", {}, SAME, True),
        ("b", "a", {}, SAME, False),
        (None, "a", {}, SAME, False),
        ("b", "a", {}, ANY, True),
        (None, "a", {}, ANY, True),
        ("a", None, {"sub": "x"}, SAME, True),
        ("a", None, {"sub": "y"}, SAME, False),
        ("a", None, {"sub": "x", "hd": "z"}, SAME, False),
        ("a", "a", {"sub": "y"}, SAME, True),  # the pinned account, whose address has changed since
        ("b", "a", {"sub": "y"}, ANY, False),
        ("b", "a", {"sub": "x"}, ANY, True),
    ],
)
def test_which_account_is_meant(
    came: str | None, pin: str | None, expected: dict[str, str], rule: OnReconnect, good: bool
) -> None:
    claims = {} if came is None else {"sub": "x"}
    assert is_expected_account(came, claims, pin=pin, expected=expected, rule=rule) is good
