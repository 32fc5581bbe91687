"""valid, due, fresh."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.clock import LATEST
from evergrant_server.core.connections.grant import Grant, ImportedTokens, TokenSet
from evergrant_server.core.secret import Secret

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MARGIN = timedelta(minutes=5)


def grant(lifetime_s: float | None) -> Grant:
    end = None if lifetime_s is None else NOW + timedelta(seconds=lifetime_s)
    return Grant(generation=1, scopes=("read",), obtained_at=NOW, expires_at=end, refreshable=True)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_the_margin_is_at_most_a_quarter_of_the_lifetime_and_a_due_token_is_valid():
    assert not grant(20).is_due(at(14.9), MARGIN)
    assert grant(20).is_due(at(15), MARGIN)
    assert grant(3600).is_due(at(3300), MARGIN)
    token = grant(20)
    assert token.is_valid(at(19.9))
    assert not token.is_valid(at(20))


def test_a_grant_dated_in_the_future_is_due_and_not_fresh():
    """A clock that was ahead dated it: it ends sooner than it says, and is to be replaced."""
    early = at(-121)
    assert grant(3600).is_due(early, MARGIN)
    assert not grant(3600).is_fresh(early, MARGIN, timedelta(seconds=60))
    assert not grant(3600).is_fresh(early, MARGIN)
    assert grant(3600).is_fresh(at(-120), MARGIN, timedelta(seconds=60)), "clocks differ a little"
    for moment in (early, at(10**9)):
        assert grant(None).is_fresh(moment, MARGIN, timedelta(days=9999)), "it never ends"


@pytest.mark.parametrize(
    ("age", "min_ttl", "fresh"),
    [(0, 60, True), (3500, 60, True), (3545, 60, False), (0, 99_999, True), (301, 99_999, False)],
)
def test_min_ttl_is_capped_so_that_it_cannot_ask_for_a_refresh_each_time(
    age: float, min_ttl: float, fresh: bool
):
    assert grant(3600).is_fresh(at(age), MARGIN, timedelta(seconds=min_ttl)) is fresh


def test_rfc6749_6_no_refresh_token_in_the_reply_keeps_the_old_one():
    before = grant(60).model_copy(update={"metadata": {"team": "a"}})
    after = Grant.from_tokens(
        TokenSet(access_token=Secret("x"), expires_in=60), generation=2, requested=("read", "write"), at=NOW,
        before=before,
    )  # fmt: skip
    assert after.refreshable
    assert after.scopes == ("read",)
    assert after.metadata == {"team": "a"}


def test_rfc6749_5_1_absent_scope_means_as_requested_and_a_narrower_one_is_recorded():
    tokens = TokenSet(access_token=Secret("x"))
    assert Grant.from_tokens(tokens, generation=1, requested=("a", "b"), at=NOW).scopes == ("a", "b")
    narrowed = tokens.model_copy(update={"scopes": ("a",)})
    assert Grant.from_tokens(narrowed, generation=1, requested=("a", "b"), at=NOW).scopes == ("a",)


@pytest.mark.parametrize("seconds", [1e12, 1e300])
def test_a_lifetime_beyond_every_date_ends_at_the_latest(seconds: float):
    tokens = TokenSet(access_token=Secret("x"), expires_in=seconds, refresh_expires_in=seconds)
    found = Grant.from_tokens(tokens, generation=1, requested=(), at=NOW)
    assert (found.expires_at, found.refresh_expires_at) == (LATEST, LATEST)
    assert found.is_valid(NOW)
    imported = ImportedTokens.from_token_set(tokens, NOW)
    assert (imported.expires_at, imported.refresh_expires_at) == (LATEST, LATEST)
