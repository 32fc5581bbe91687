"""A deny compares scopes by the names that a provider has for one, and takes what isn't known for each."""

import pytest

from evergrant_server.core.connections.grant import UNKNOWN_SCOPE, Grant, TokenSet
from evergrant_server.core.secret import Secret
from evergrant_server.policy import DecisionReason
from evergrant_server.policy.question import denied_scopes
from providers.definition.registry import Registry
from tests.fakes.databases import NOW
from tests.unit.policy.test_policy import deny, judge, permit

EMAIL = "https://www.googleapis.com/auth/userinfo.email"
MAIL = "https://graph.microsoft.com/Mail.Read"
ALIASES = Registry.load().scope_aliases("google")


@pytest.mark.parametrize(
    ("scope", "denied", "fits"),
    [
        ("read", "read", True),
        ("Read", "read", True),
        ("read", "READ", True),
        ("read", "write", False),
        (MAIL, "Mail.Read", True),
        ("mail.read", MAIL, True),
        (MAIL, "Mail.ReadWrite", False),
        (MAIL, "https://outlook.office.com/Mail.Read", False),
        (EMAIL, "email", True),
        ("email", EMAIL, True),
        ("Email", "userinfo.email", True),
        (EMAIL, "profile", False),
        ("https://mail.google.com/", "", False),
        (UNKNOWN_SCOPE, "anything", True),
    ],
)
def test_a_deny_fits_each_name_of_a_scope(scope: str, denied: str, fits: bool):
    assert denied_scopes((scope,), (denied,), ALIASES) == ((scope,) if fits else ())
    decision = judge([permit(), deny(scopes=(denied,))], scopes=(scope,), aliases=ALIASES)
    assert decision.reason is (DecisionReason.DENIED if fits else DecisionReason.ALLOWED)
    assert decision.refused_scopes == ((scope,) if fits else ())


def test_an_allow_fits_the_name_that_it_has():
    assert not judge([permit(ceiling=("email",))], scopes=(EMAIL,), aliases=ALIASES).allowed
    assert not judge([permit(ceiling=("read",))], scopes=("Read",)).allowed


def test_the_catalogue_knows_aliases_of_each_google_provider():
    registry = Registry.load()
    at_google = [
        spec for spec in registry.all() if "accounts.google.com" in (spec.authorization_endpoint or "")
    ]
    assert len(at_google) >= 10
    for spec in at_google:
        assert frozenset({"email", EMAIL}) in registry.scope_aliases(spec.name), spec.name
    assert registry.scope_aliases(None) == registry.scope_aliases("acme") == ()


def granted(scopes: tuple[str, ...] | None, before: Grant | None = None) -> tuple[str, ...]:
    tokens = TokenSet(access_token=Secret("at"), scopes=scopes)
    return Grant.from_tokens(tokens, generation=1, requested=("read",), at=NOW, before=before).scopes


def test_an_empty_scope_grants_what_was_requested_and_perhaps_more():
    unknown = granted((UNKNOWN_SCOPE,))
    assert unknown == ("read", UNKNOWN_SCOPE)
    assert granted(None) == ("read",)
    assert judge([permit()], scopes=unknown).allowed
    assert not judge([permit(ceiling=("read",))], scopes=unknown).allowed
    assert judge([permit(), deny(scopes=("admin",))], scopes=unknown).reason is DecisionReason.DENIED
    before = Grant.from_tokens(
        TokenSet(access_token=Secret("at"), scopes=(UNKNOWN_SCOPE,)),
        generation=1,
        requested=("read",),
        at=NOW,
    )
    assert granted(None, before) == unknown, "a refresh that says nothing leaves it unknown"
    assert granted(("read",), before) == ("read",)
