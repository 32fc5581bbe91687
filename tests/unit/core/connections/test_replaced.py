"""Which replaced grants are revoked: as far as that ends no grant in use."""

import pytest

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.replaced import RevocationReach, continues, may_revoke
from evergrant_server.core.secret import Secret

TOKEN, GRANT, UNKNOWN = RevocationReach.TOKEN, RevocationReach.GRANT, RevocationReach.UNKNOWN
FAR = (GRANT, UNKNOWN)


@pytest.mark.parametrize("same", [True, False, None])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("with_connection", [True, False])
def test_a_token_that_ends_its_own_grant_alone_is_always_revoked(same, shared, with_connection):
    assert may_revoke(TOKEN, same, shared=shared, with_connection=with_connection)


@pytest.mark.parametrize("reach", FAR)
@pytest.mark.parametrize(
    ("same", "shared", "at_once", "with_connection"),
    [
        (True, False, False, True),  # the grant in use is of the same account
        (True, True, False, True),
        (None, False, False, True),
        (None, True, False, False),
        (False, False, True, True),
        (False, True, False, False),  # another connection uses a grant of that account
    ],
)
def test_where_more_may_end_only_the_grant_of_another_unused_account_is_revoked_at_once(
    reach, same, shared, at_once, with_connection
):
    assert may_revoke(reach, same, shared=shared) is at_once
    assert may_revoke(reach, same, shared=shared, with_connection=True) is with_connection


def tokens(access: str, refresh: str | None) -> TokenSet:
    return TokenSet(access_token=Secret(access), refresh_token=refresh and Secret(refresh))


@pytest.mark.parametrize(
    ("new", "same_grant"),
    [
        (tokens("at-2", "rt-1"), True),
        (tokens("at-1", "rt-2"), True),
        (tokens("at-2", "rt-2"), False),
        (tokens("at-2", None), False),
    ],
)
def test_a_token_that_is_issued_again_continues_its_grant(new: TokenSet, same_grant: bool):
    assert continues(tokens("at-1", "rt-1"), new) is same_grant


def test_two_grants_without_a_refresh_token_share_none():
    assert not continues(tokens("at-1", None), tokens("at-2", None))
